"""Train with several processes on a machine without a GPU.

All arguments but --processes are those of fairseq-train. Each process reads --batch-size rows of its own, and the
gradients are averaged at every update.
"""

import argparse
import gc
import logging
import os
import sys
import tempfile
from pathlib import Path

import rnndrop_plugin
from rnndrop_plugin.cli.arguments import positive
from rnndrop_plugin.cli.fairseq_train import complete

GRACE = 5  # how many seconds the other processes have to end by themselves after one has failed


def train(rank: int, processes: int, init: str, arguments: list[str]) -> None:
    """Train as process ``rank`` of ``processes``, which find each other by the file ``init``."""
    import torch
    import torch.distributed.nn.functional  # imported later, its functions would keep the group as a default for ever
    from fairseq_cli.train import cli_main

    rnndrop_plugin.register()  # --user-dir does nothing if the package has already been imported
    if rank > 0:
        sys.stderr = open(f"{init}.{rank}", "w")  # all processes have the same input errors, so only the first prints
    together = f"--cpu --distributed-world-size {processes} --distributed-rank {rank} --distributed-no-spawn "
    together += "--distributed-backend gloo --ddp-backend legacy_ddp --device-id 0 --distributed-init-method"
    sys.argv = ["fairseq-train", *arguments, *together.split(), f"file://{init}"]  # the path may have blanks
    cli_main()
    # fairseq leaves the process groups to the end of the interpreter. A thread of theirs that still has to free a
    # tensor then aborts the process. Their threads end with the last reference to the groups.
    if torch.distributed.is_initialized():
        import fairseq.distributed.utils  # not before fairseq_cli.train, which sets up the logging

        vars(fairseq.distributed.utils.get_global_group).clear()  # fairseq keeps a group there
        torch.distributed.destroy_process_group()
        gc.collect()  # the trainer also holds a group


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Run fairseq-train with this plugin in several processes on a machine without a GPU. --user-dir "
        "and the architecture's --task are filled in.",
        usage="%(prog)s --processes N DATA --arch ARCHITECTURE ...",
        epilog="All other arguments are those of fairseq-train. --batch-size is that of one process.",
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=positive, required=True, metavar="N", help="number of processes")
    args, arguments = parser.parse_known_args()

    import torch  # takes seconds, which --help need not wait for
    from torch.multiprocessing.spawn import ProcessException

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // args.processes)))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        init = os.path.join(folder, "init")
        command = (args.processes, init, complete(arguments))
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns when it ends a process
        group = torch.multiprocessing.spawn(train, command, args.processes, join=False)
        try:
            while not group.join(grace_period=GRACE):
                pass
        except ProcessException as error:
            first, failed = (group.processes[i].exitcode for i in (0, error.error_index))
            if first != 2 and failed == 2:
                sys.stderr.write(Path(f"{init}.{error.error_index}").read_text())
            if 2 in (first, failed):  # the process has printed the reason
                sys.exit(2)
            print(f"{Path(sys.argv[0]).name}: error: {str(error).strip()}", file=sys.stderr)
            sys.exit(1)
        finally:
            for process in group.processes:
                process.terminate()
