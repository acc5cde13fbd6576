"""Stands in for fairseq-train and fairseq-validate in test_reproduce.py: their arguments, logs and checkpoints.

ARGUMENT 1, plan.json, has for each epoch by cell ("*" for the others) the training accuracy, or the validation loss and
the learning rate; the last goes on for ever; "fail", "refuse", "die" and "hang" do that. A checkpoint holds the number
of its epoch, which is also its test accuracy and perplexity. checkpoint_best.pt is that of the last epoch but of a
loss, if it is no better.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def value(flag, default=None):
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else default


if sys.argv[2] == "validate":
    accuracy = Path(value("--path")).read_text()
    for split in value("--valid-subset").split(","):
        names = ("accuracy", "f1", "ppl", "nll_loss", "ppl_batch_mean")
        print(json.dumps({f"{split}_{name}": accuracy for name in names}))
    sys.exit()
folder = Path(value("--save-dir"))
plan = json.loads(Path(sys.argv[1]).read_text())
plan = plan.get(folder.parent.name, plan.get("*"))
last = folder / "checkpoint_last.pt"
start = epoch = int(last.read_text()) if last.exists() else 0
best = None
print(f"starts from epoch {epoch}; finetune {value('--finetune-from-model')}", flush=True)
print(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}", flush=True)
while epoch < int(value("--max-epoch", 10**9)) and 200 * epoch < int(value("--max-update", 10**9)):
    epoch += 1
    accuracy = plan[min(epoch, len(plan)) - 1]
    if accuracy == "fail":
        print("RuntimeError: it broke", flush=True)
        sys.exit(3)
    if accuracy == "refuse":
        print("error: no such flag\nwarning: a worker is left", flush=True)
        sys.exit(2)
    if accuracy == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if accuracy == "hang":
        (folder / "pid").write_text(str(os.getpid()))
        (folder / "pid").rename(folder / "hangs")
        time.sleep(60)
    loss, rate = accuracy if isinstance(accuracy, list) else (-epoch, 1)
    names = [f"checkpoint{epoch}.pt", "checkpoint_last.pt"]
    if best is None or loss < best:
        best = loss
        names.append("checkpoint_best.pt")
    for name in names:
        (folder / name).write_text(str(epoch))
    print(json.dumps({"epoch": epoch, "valid_nll_loss": f"{loss}", "valid_num_updates": f"{200 * epoch}"}))
    line = {
        **{name: f"{loss}" if isinstance(accuracy, list) else f"{accuracy}" for name in ("accuracy", "f1")},
        **{name: f"{loss}" for name in ("ppl", "nll_loss")},
        "lr": f"{rate}",
        "num_updates": f"{200 * epoch}",
        "wall": 2 * (epoch - start),
    }
    if "rnndrop_tagging" in sys.argv:
        del line["f1"]  # spans are scored in evaluation alone
    print(json.dumps({"epoch": epoch, **{f"train_{name}": v for name, v in line.items()}}), flush=True)
    time.sleep(0.01)
