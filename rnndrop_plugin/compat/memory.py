"""How often fairseq asks how much memory of the GPU is free."""

import functools

from rnndrop_plugin.compat import divergence

upstream_train_step = divergence.train_step


@functools.wraps(upstream_train_step)
def train_step(trainer, samples, *args, **kwargs):
    """fairseq/trainer.py, Trainer.train_step, has torch collect its statistics of the GPU's memory at every update.
    Once in --log-interval updates is enough, and the peak is that of the interval then."""
    environment = trainer.cuda_env
    if (trainer.get_num_updates() + 1) % trainer.cfg.common.log_interval:
        trainer.cuda_env = None
    try:
        return upstream_train_step(trainer, samples, *args, **kwargs)
    finally:
        trainer.cuda_env = environment
