import json
import sys

import _runs
import pytest
import reproduce

# A trainer and an evaluator with fairseq's arguments and log. The training takes one file "accuracies" in the save
# folder's parent's parent: {cell: [accuracy of each epoch]}, the last of which goes on for ever.
FAKE = """
import json, pathlib, signal, sys, time
def value(flag, default=None):
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else default
if sys.argv[1] == "validate":
    path = pathlib.Path(value("--path"))
    print(json.dumps({f"{split}_{m}": path.read_text() for split in value("--valid-subset").split(",") for m in ("accuracy", "f1")}))
    sys.exit()
folder = pathlib.Path(value("--save-dir"))
plan = json.loads((pathlib.Path(sys.argv[0]).parent / "plan.json").read_text())
plan = plan.get(folder.parent.name, plan.get("*"))
last = folder / "checkpoint_last.pt"
epoch = int(last.read_text()) if last.exists() else 0
print(f"from epoch {epoch}", flush=True)
while epoch < int(value("--max-epoch", 10**9)) and 200 * epoch < int(value("--max-update", 10**9)):
    epoch += 1
    accuracy = plan[min(epoch, len(plan)) - 1]
    if accuracy == "fail":
        print("it broke", flush=True)
        sys.exit(3)
    if accuracy == "hang":
        (folder / "hangs").touch()
        time.sleep(60)
    for name in (f"checkpoint{epoch}.pt", "checkpoint_last.pt", "checkpoint_best.pt"):
        (folder / name).write_text(str(epoch))
    print(json.dumps({"epoch": epoch, "train_num_updates": str(200 * epoch), "train_accuracy": str(accuracy), "train_f1": str(accuracy), "train_wall": str(2 * epoch)}), flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes fake.py the trainer, with the accuracies of each cell's epochs."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(_runs, "TRAIN", [sys.executable, str(script), "train"])
    monkeypatch.setattr(_runs, "VALIDATE", [sys.executable, str(script), "validate"])
    monkeypatch.setattr(_runs, "POLL", 0.02)
    monkeypatch.setattr(reproduce, "device", lambda: [])
    return lambda plan: (tmp_path / "plan.json").write_text(json.dumps(plan))


@pytest.fixture
def table1(call, tmp_path):
    for length in (15, 30):
        (tmp_path / "out" / f"data-{length}").mkdir(parents=True)
    return lambda *args: call(reproduce, "table1", "--out", tmp_path / "out", *args)


def result(tmp_path, name):
    return json.loads((tmp_path / "out" / name / "result.json").read_text())


def test_solved_and_given_up(fake, table1, tmp_path):
    fake({"15-none": [30, 99.6, 99.4, 99.5, 99.7, 100], "*": [25.5]})
    status, out, err = table1("--cells", "15-cell-step-expected", "--budget", "3")
    print(out, err)
    assert status == 0
    none = result(tmp_path, "15-none/seed1")
    assert (none["solved"], none["updates"], none["training"], none["test"]) == (True, 1000, 99.7, {"test": 5.0})
