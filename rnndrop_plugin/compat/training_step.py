"""What happens around an update of fairseq's trainer: its settings are read faster, and its loss is watched."""

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
    """A configuration that is only read: a dictionary whose items are attributes, too."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def settings(cfg):
    """``cfg`` with Settings for omegaconf's configurations, which take microseconds for each value that is read."""
    if not isinstance(cfg, DictConfig):
        return OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else cfg
    return Settings({name: settings(cfg[name]) for name in cfg if not OmegaConf.is_missing(cfg, name)})


@functools.wraps(upstream_begin_epoch)
def begin_epoch(trainer, epoch):
    """Take the settings as they are now for the epoch's updates."""
    trainer.settings_copy = None
    return upstream_begin_epoch(trainer, epoch)


@functools.wraps(upstream_train_step)
def train_step(trainer, samples, *args, **kwargs):
    """fairseq/trainer.py, Trainer.train_step, faster and with an eye on the loss."""
    with _fewer_reads(trainer):
        logged = upstream_train_step(trainer, samples, *args, **kwargs)
        divergence.watch(trainer, logged)  # it reads settings, too
    return logged


@contextlib.contextmanager
def _fewer_reads(trainer: Trainer) -> Iterator[None]:
    """An update reads some 45 values of the configuration, a fifth of the host's time of a small model: from the second
    update of an epoch on (the first may build an optimizer of it) they are read from a copy. And it has torch collect
    its statistics of the GPU's memory: once in --log-interval updates is enough, and the peak is that of the interval
    then."""
    cfg, environment = trainer.cfg, trainer.cuda_env
    copy = getattr(trainer, "settings_copy", None)
    if copy is not None and cfg is not copy:  # it is the copy where fairseq tries an update again (--amp)
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
    """Save the averages of an averaging optimizer as the model's parameters, whether there has been a validation or
    not, and within an update (fairseq's crash.pt) the configuration itself instead of its copy."""
    averaging.use_averages(trainer)
    cfg, trainer.cfg = trainer.cfg, getattr(trainer, "whole_cfg", trainer.cfg)
    try:
        return upstream_state_dict(trainer)
    finally:
        trainer.cfg = cfg
