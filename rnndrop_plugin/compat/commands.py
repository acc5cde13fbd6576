"""Where fairseq's commands begin."""

import functools
import sys
from argparse import Namespace

from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import generate
from hydra.core.hydra_config import HydraConfig
from torch.multiprocessing import ProcessExitedException

from rnndrop_plugin.compat import flags, machine, resume
from rnndrop_plugin.compat.errors import STATUS, run
from rnndrop_plugin.errors import InputError

upstream_call_main = distributed_utils.call_main


@functools.wraps(upstream_call_main)
def call_main(cfg, main, **kwargs):
    """fairseq/distributed/utils.py, call_main: check what can be checked, and say an error of the input in one line."""
    resume.close_logs()
    run(flags.check_flags, cfg)
    machine.use_one_process_on_a_cpu(cfg)
    run(machine.check_processes, cfg)
    # A partial of a module's function can be sent to the processes that fairseq starts for several GPUs.
    try:
        return upstream_call_main(cfg, functools.partial(run, main), **kwargs)
    except ProcessExitedException as error:
        if error.exit_code != STATUS:
            raise
        if HydraConfig.initialized():
            raise InputError("a process of the training has ended with the error above") from error
        sys.exit(STATUS)  # the process has said why


upstream_generate_main = generate.main


@functools.wraps(upstream_generate_main)
def generate_main(args):
    """fairseq_cli/generate.py, main: the one command that does without call_main."""
    return run(_generate, args)


def _generate(args):
    cfg = convert_namespace_to_omegaconf(args) if isinstance(args, Namespace) else args
    flags.check_flags(cfg)
    return upstream_generate_main(cfg)
