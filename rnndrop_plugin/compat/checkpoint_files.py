"""Checkpoint files: read without running what they contain, written whole or not at all."""

import argparse
import collections
import errno
import functools
import logging
import os
import pickle
import typing
import zipfile
from pathlib import Path

import numpy as np
import omegaconf
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager

from rnndrop_plugin.errors import InputError, lacks_memory
from rnndrop_plugin.files import atomic_write
from rnndrop_plugin.ops.recurrence.dispatch import ONLY_ON

logger = logging.getLogger(__name__)

CHECKPOINT_CLASSES = (
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
    distributed_utils._TensorPlaceholder,
)
upstream_load = checkpoint_utils.load_checkpoint_to_cpu
upstream_load_average = checkpoint_utils.load_ema_from_checkpoint
upstream_save = checkpoint_utils.torch_persistent_save
upstream_copy = PathManager.copy


class DamagedCheckpoint(InputError):
    """A checkpoint file that is cut short, has changed bits, or never was one."""


def allow_checkpoint_classes() -> None:
    """Let torch.load's weights_only path, on which all loading stays, read what fairseq saves.

    fairseq/trainer.py saves its configuration beside the tensors: an argparse.Namespace, and
    omegaconf's containers for several processes. Anything else in a checkpoint is refused unread.
    """
    torch.serialization.add_safe_globals(list(CHECKPOINT_CLASSES))
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        logger.warning("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: loading a checkpoint may run code that it contains")


@functools.wraps(upstream_load)
def load_checkpoint_to_cpu(path, arg_overrides=None, *args, **kwargs):
    """checkpoint_utils.load_checkpoint_to_cpu, which lets torch's many-lined errors through; torch does not notice
    bits that have changed. A backend for one kind of device belongs to the machine and not to the model: such a
    checkpoint is loaded with the backend ``auto``, unless ``arg_overrides`` says otherwise.

    Raises:
        DamagedCheckpoint: the file is damaged.
        InputError: it cannot be loaded for another reason: one that may be gone at the next try, or a whole file that
            fairseq cannot use.
    """
    whole = False
    try:
        with open(PathManager.get_local_path(path), "rb") as file:
            if zipfile.is_zipfile(file):
                whole = zipfile.ZipFile(file).testzip() is None
                if not whole:
                    raise zipfile.BadZipFile
        state = upstream_load(path, arg_overrides, *args, **kwargs)
    except Exception as error:
        kind, reason = _reason(error)
        if whole and kind is DamagedCheckpoint:  # no older one is to take its place
            kind, reason = InputError, f"the file is whole, but not one of fairseq's ({error!r})"
        raise kind(f"{path}: cannot load this checkpoint: {reason}") from error
    settings, overrides = state.get("cfg") or {}, arg_overrides or {}
    if unknown := _unknown(overrides, settings):
        logger.warning(f"{path}: has no setting {', '.join(unknown)} to override (--model-overrides)")
    model = settings.get("model")  # a Namespace, where fairseq's architecture has no dataclass
    if getattr(model, "recurrent_backend", None) in ONLY_ON and "recurrent_backend" not in overrides:
        model.recurrent_backend = "auto"
    return state


@functools.wraps(upstream_load_average)
def load_average(path):
    """checkpoint_utils.load_ema_from_checkpoint, which ends with a KeyError where there is no average.

    Raises:
        InputError: the checkpoint has none, or cannot be loaded.
    """
    if "ema" not in load_checkpoint_to_cpu(path)["extra_state"]:
        raise InputError(f"--ema-seed-model {path}: the checkpoint has no average of parameters (--store-ema)")
    return upstream_load_average(path)


def _reason(error: Exception) -> tuple[type[InputError], str]:
    """What the failure to load a checkpoint is raised as, and its reason in words."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a seek beyond a file's end
        return InputError, error.strerror
    if lacks_memory(error):
        return InputError, "there is not enough memory"
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return InputError, "it holds objects other than tensors and fairseq's settings, which are never loaded"
    return DamagedCheckpoint, "it is damaged, or not one of fairseq's"


def _unknown(overrides: dict, settings: dict) -> list[str]:
    """The overrides of no setting. Settings without a dataclass, such as SGD's, take any name: a wrong one for these
    does not show. fairseq's from_pretrained overrides a tokenizer and a bpe, which are groups of settings."""
    groups = [vars(x) if isinstance(x, argparse.Namespace) else x for x in settings.values() if x]
    known = {name for group in groups if not isinstance(group, str) for name in group} - {"_name"} | settings.keys()
    return [str(name) for name in overrides if groups and name not in known]


@functools.wraps(upstream_save)
def save_atomically(obj, filename, async_write=False):
    """checkpoint_utils.torch_persistent_save, which tries a write that fails thrice, in the same file, and leaves half
    of it behind with an error that does not name it. What was logged may hold numpy's arrays and numbers (BLEU's of
    fairseq/tasks/translation.py do), which torch.load refuses to read."""
    if isinstance(obj, dict) and "extra_state" in obj:
        obj = {**obj, "extra_state": _without_numpy(obj["extra_state"])}
    if async_write or not PathManager.supports_rename(filename):
        return upstream_save(obj, filename, async_write)
    with _replacing(filename) as unfinished, unfinished.open("wb") as file:
        torch.save(obj, file)


def _without_numpy(value):
    """The same containers with tensors for arrays and Python's numbers for numpy's."""
    if isinstance(value, dict):
        return {name: _without_numpy(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_numpy(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_without_numpy(item) for item in value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return value.item() if isinstance(value, np.generic) else value


@functools.wraps(upstream_copy)
def copy_atomically(src_path, dst_path, overwrite=False):
    """fairseq/file_io.py, PathManager.copy, by which checkpoint_last.pt and checkpoint_best.pt come about: a kill in
    the middle would leave half a file."""
    if not PathManager.supports_rename(dst_path):
        return upstream_copy(src_path, dst_path, overwrite)
    with _replacing(dst_path) as unfinished:
        upstream_copy(src_path, str(unfinished), overwrite=True)
    return True


def _replacing(path: str):
    """:func:`~rnndrop_plugin.files.atomic_write` of a large file, of which repeated kills leave one half behind."""
    return atomic_write(Path(path), Path(f"{path}.tmp"))
