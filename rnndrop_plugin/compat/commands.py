"""The entry points of fairseq's commands."""

import functools
import logging
import sys
from argparse import Namespace

from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import progress_bar
from fairseq_cli import generate
from hydra.core.hydra_config import HydraConfig
from torch.multiprocessing import ProcessExitedException

from rnndrop_plugin.compat import flags, machine
from rnndrop_plugin.compat.errors import STATUS, run
from rnndrop_plugin.errors import InputError

upstream_call_main = distributed_utils.call_main


@functools.wraps(upstream_call_main)
def call_main(cfg, main, **kwargs):
    """fairseq/distributed/utils.py, call_main: check the flags first, and report an input error in one line."""
    close_logs()
    run(flags.check_flags, cfg)
    machine.use_one_process_on_a_cpu(cfg)
    run(machine.check_processes, cfg)
    # A partial of a module's function can be pickled for the processes that fairseq starts for several GPUs.
    try:
        return upstream_call_main(cfg, functools.partial(run, main), **kwargs)
    except ProcessExitedException as error:
        if error.exit_code != STATUS:
            raise
        if HydraConfig.initialized():
            raise InputError("a process of the training has ended with the error above") from error
        sys.exit(STATUS)  # the process has printed the reason


def close_logs() -> None:
    """Close the log files of an earlier run in this process. fairseq_cli/train.py and logging/progress_bar.py would
    keep writing to them as well, and to the first run's TensorBoard folder, wandb run and aim run."""
    for name in ("fairseq_cli.train", progress_bar.__name__):
        log = logging.getLogger(name)
        for handler in [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]:
            log.removeHandler(handler)
            handler.close()
    progress_bar._close_writers()
    progress_bar._tensorboard_writers.clear()
    if progress_bar.get_aim_run is not None:
        progress_bar.get_aim_run.cache_clear()
    if progress_bar.wandb is not None:
        progress_bar.wandb.finish()


upstream_generate_main = generate.main


@functools.wraps(upstream_generate_main)
def generate_main(args):
    """fairseq_cli/generate.py, main: the only command that does not use call_main."""
    return run(_generate, args)


def _generate(args):
    cfg = convert_namespace_to_omegaconf(args) if isinstance(args, Namespace) else args
    flags.check_flags(cfg)
    return upstream_generate_main(cfg)
