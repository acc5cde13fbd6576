"""What fairseq 0.12 needs on today's torch and numpy, and where it breaks a promise of ours.

Each patch names the place upstream that it mends.
"""

import argparse
import collections
import functools
import logging
import os
import sys
import types
import typing
import warnings

import numpy as np
import omegaconf
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.optim.plateau import Plateau

logger = logging.getLogger(__name__)


def apply() -> None:
    """Apply every patch, once a process."""
    if getattr(checkpoint_utils, "rnndrop_applied", False):
        return
    checkpoint_utils.rnndrop_applied = True
    silence_warnings()
    restore_numpy_compat()
    allow_checkpoint_classes()
    checkpoint_utils.load_checkpoint_to_cpu = say_what_is_wrong(checkpoint_utils.load_checkpoint_to_cpu)
    checkpoint_utils.load_checkpoint = replay_scheduler_step(checkpoint_utils.load_checkpoint)
    distributed_utils.call_main = report_input_errors(distributed_utils.call_main)


def silence_warnings() -> None:
    """fairseq's use of torch warns of what no user of it can change (iterators.py, fairseq_task.py)."""
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator")
    warnings.filterwarnings("ignore", message=r"`torch\.cuda\.amp\.autocast\(args")


def restore_numpy_compat() -> None:
    """numpy 2 has no ``np.compat.long``, which fairseq/data/token_block_dataset.py uses (fairseq-interactive)."""
    if not hasattr(np, "compat"):
        np.compat = types.SimpleNamespace(long=int)


def allow_checkpoint_classes() -> None:
    """Let torch.load's weights_only path, on which all loading stays, read what fairseq saves.

    fairseq/trainer.py saves its configuration beside the tensors: an argparse.Namespace, and
    omegaconf's containers for several processes. Anything else in a checkpoint is refused unread.
    """
    from fairseq.distributed.utils import _TensorPlaceholder

    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            omegaconf.DictConfig,
            omegaconf.ListConfig,
            omegaconf.nodes.AnyNode,
            omegaconf.base.Metadata,
            omegaconf.base.ContainerMetadata,
            collections.defaultdict,
            typing.Any,
            dict,
            list,
            int,
            _TensorPlaceholder,
        ]
    )
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        logger.warning("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: loading a checkpoint may run code that it contains")


def say_what_is_wrong(load_checkpoint_to_cpu):
    """checkpoint_utils.load_checkpoint_to_cpu lets torch's many-lined errors through."""

    @functools.wraps(load_checkpoint_to_cpu)
    def load(path, *args, **kwargs):
        try:
            return load_checkpoint_to_cpu(path, *args, **kwargs)
        except Exception as error:
            reason = str(error).split("\n")[0]
            if "Weights only load failed" in reason:
                unsafe = [line.strip() for line in str(error).split("\n") if "GLOBAL" in line]
                reason = "it holds objects other than tensors and fairseq's settings, which are never loaded"
                reason += f" ({unsafe[0]})" if unsafe else ""
            raise InputError(f"{path}: cannot load this checkpoint: {reason or type(error).__name__}") from error

    return load


def replay_scheduler_step(load_checkpoint):
    """fairseq_cli/train.py writes an epoch's checkpoint before it steps the scheduler with the epoch's
    validation: a resume at an epoch's end would lose that step."""

    @functools.wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        extra_state, epoch_itr = load_checkpoint(cfg, trainer, **kwargs)
        at_epoch_end = extra_state is not None and epoch_itr.epoch > 1 and epoch_itr.iterations_in_epoch == 0
        if at_epoch_end and not (cfg.reset_optimizer or cfg.reset_lr_scheduler):
            if isinstance(trainer.lr_scheduler, (Plateau, ReduceLROnPlateauLRSchedule)):
                trainer.lr_step(epoch_itr.epoch - 1, extra_state["val_loss"])
        return extra_state, epoch_itr

    return load


def report_input_errors(call_main):
    """fairseq's commands end with a traceback, whatever the reason."""

    @functools.wraps(call_main)
    def call(cfg, main, **kwargs):
        # A partial of a module's function can be sent to the processes that fairseq starts for several GPUs.
        return call_main(cfg, functools.partial(_run, main), **kwargs)

    return call


def _run(main, cfg, **kwargs):
    try:
        return main(cfg, **kwargs)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr)
        sys.exit(2)
