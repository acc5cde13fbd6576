"""Where fairseq's commands begin."""

import functools

from fairseq.distributed import utils as distributed_utils
from fairseq_cli import generate

from rnndrop_plugin.compat import flags, processes, resume
from rnndrop_plugin.compat.errors import run

upstream_call_main = distributed_utils.call_main


@functools.wraps(upstream_call_main)
def call_main(cfg, main, **kwargs):
    """fairseq/distributed/utils.py, call_main: check what can be checked, and say an error of the input in one line."""
    resume.close_logs()
    run(flags.check_flags, cfg)
    processes.use_one_process_on_a_cpu(cfg)
    run(processes.check_processes, cfg)
    # A partial of a module's function can be sent to the processes that fairseq starts for several GPUs.
    return upstream_call_main(cfg, functools.partial(run, main), **kwargs)


generate_main = functools.partial(run, generate.main)  # the one command that does without call_main
