"""Calls of --optimizer rnndrop_asgd, which averages the parameters.

fairseq has no place for them: its trainer validates and saves the parameters that it trains, and passes the result of a
validation only to the learning-rate schedule.
"""

import functools

from fairseq.trainer import Trainer

from rnndrop_plugin.optim.asgd import AveragedSGD

upstream_begin_valid_epoch = Trainer.begin_valid_epoch
upstream_lr_step = Trainer.lr_step


@functools.wraps(upstream_begin_valid_epoch)
def begin_valid_epoch(trainer, epoch):
    """Validate the averages. The next training step puts the parameters of SGD back."""
    use_averages(trainer)
    return upstream_begin_valid_epoch(trainer, epoch)


@functools.wraps(upstream_lr_step)
def lr_step(trainer, epoch, val_loss=None):
    """Pass an epoch's validation to the optimizer, too."""
    end_validation(trainer, val_loss)
    return upstream_lr_step(trainer, epoch, val_loss)


def use_averages(trainer: Trainer) -> None:
    """Put the averaged parameters, if there are any, into the model."""
    if isinstance(trainer.optimizer, AveragedSGD):
        trainer.optimizer.use_averages(True)


def end_validation(trainer: Trainer, val_loss: float | None) -> None:
    """Pass the validation at an epoch's end to an averaging optimizer; ``val_loss`` is None if there was none."""
    if isinstance(trainer.optimizer, AveragedSGD) and val_loss is not None:
        trainer.optimizer.end_validation(val_loss)
