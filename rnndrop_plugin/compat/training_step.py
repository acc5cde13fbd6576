"""A wrapper around an update of fairseq's trainer, which reads the settings faster and watches the loss."""

import contextlib
import functools
from collections.abc import Iterator

from fairseq.trainer import Trainer
from omegaconf import DictConfig, OmegaConf

from rnndrop_plugin.compat import averaging, divergence

upstream_begin_epoch = Trainer.begin_epoch
upstream_train_step = Trainer.train_step
upstream_state_dict = Trainer.state_dict


class Settings(dict):
    """A read-only configuration: a dictionary whose items are also attributes."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def settings(cfg):
    """``cfg`` with omegaconf's configurations turned into Settings; omegaconf takes microseconds to read a value."""
    if not isinstance(cfg, DictConfig):
        return OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else cfg
    return Settings({name: settings(cfg[name]) for name in cfg if not OmegaConf.is_missing(cfg, name)})


@functools.wraps(upstream_begin_epoch)
def begin_epoch(trainer, epoch):
    """Drop the copy of the settings, so that the epoch's updates use the current ones."""
    trainer.settings_copy = None
    return upstream_begin_epoch(trainer, epoch)


@functools.wraps(upstream_train_step)
def train_step(trainer, samples, *args, **kwargs):
    """fairseq/trainer.py, Trainer.train_step, but faster, and with a check of the loss."""
    with _fewer_reads(trainer):
        logged = upstream_train_step(trainer, samples, *args, **kwargs)
        divergence.watch(trainer, logged)  # inside the block, as it reads settings, too
    return logged


@contextlib.contextmanager
def _fewer_reads(trainer: Trainer) -> Iterator[None]:
    """An update reads some 45 values of the configuration, which takes a fifth of the host's time for a small model.
    From the second update of an epoch on they are read from a copy (the first may build an optimizer from them). An
    update also collects torch's statistics of the GPU's memory. Here this is done once in --log-interval updates, so
    the peak is that of the interval."""
    cfg, environment = trainer.cfg, trainer.cuda_env
    copy = getattr(trainer, "settings_copy", None)
    if copy is not None and cfg is not copy:  # cfg already is the copy if fairseq tries an update again (--amp)
        trainer.whole_cfg, trainer.cfg = cfg, copy
    if (trainer.get_num_updates() + 1) % trainer.cfg.common.log_interval:
        trainer.cuda_env = None
    try:
        yield
    finally:
        trainer.cfg, trainer.cuda_env = cfg, environment
        trainer.settings_copy = copy or settings(cfg)


@functools.wraps(upstream_state_dict)
def state_dict(trainer):
    """Save the averages of an averaging optimizer as the model's parameters, even without a validation before. In the
    middle of an update (fairseq's crash.pt) save the configuration itself instead of its copy."""
    averaging.use_averages(trainer)
    cfg, trainer.cfg = trainer.cfg, getattr(trainer, "whole_cfg", trainer.cfg)
    try:
        return upstream_state_dict(trainer)
    finally:
        trainer.cfg = cfg
