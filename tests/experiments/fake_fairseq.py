"""Stands in for fairseq-train and fairseq-validate in test_reproduce.py: their arguments, logs and checkpoints.

plan.json beside ARGUMENT 1 has the training accuracy of each epoch by cell ("*" for the others), the last of which goes
on for ever; "fail" and "hang" do that. A checkpoint holds the number of its epoch, which is also its test accuracy.
"""

import json
import sys
import time
from pathlib import Path


def value(flag, default=None):
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else default


if sys.argv[2] == "validate":
    accuracy = Path(value("--path")).read_text()
    for split in value("--valid-subset").split(","):
        print(json.dumps({f"{split}_accuracy": accuracy, f"{split}_f1": accuracy}))
    sys.exit()
folder = Path(value("--save-dir"))
plan = json.loads(Path(sys.argv[1]).read_text())
plan = plan.get(folder.parent.name, plan.get("*"))
last = folder / "checkpoint_last.pt"
start = epoch = int(last.read_text()) if last.exists() else 0
print(f"starts from epoch {epoch}; finetune {value('--finetune-from-model')}", flush=True)
while epoch < int(value("--max-epoch", 10**9)) and 200 * epoch < int(value("--max-update", 10**9)):
    epoch += 1
    accuracy = plan[min(epoch, len(plan)) - 1]
    if accuracy == "fail":
        print("RuntimeError: it broke", flush=True)
        sys.exit(3)
    if accuracy == "hang":
        (folder / "hangs").touch()
        time.sleep(60)
    for name in (f"checkpoint{epoch}.pt", "checkpoint_last.pt", "checkpoint_best.pt"):
        (folder / name).write_text(str(epoch))
    line = {
        "accuracy": f"{accuracy}",
        "f1": f"{accuracy}",
        "num_updates": f"{200 * epoch}",
        "wall": 2 * (epoch - start),
    }
    print(json.dumps({"epoch": epoch, **{f"train_{name}": v for name, v in line.items()}}), flush=True)
    time.sleep(0.01)
