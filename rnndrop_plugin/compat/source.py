"""Which checkpoint a run starts from."""

import copy
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fairseq.dataclass.configs import CheckpointConfig
from fairseq.file_io import PathManager

from rnndrop_plugin.compat.checkpoint_files import DamagedCheckpoint
from rnndrop_plugin.errors import InputError, flag_of

logger = logging.getLogger(__name__)

RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
LAST = CheckpointConfig.__dataclass_fields__["restore_file"].default


class Source(NamedTuple):
    """The checkpoint that a run starts from.

    Attributes:
        flag: the flag that names it; None if no flag does and the run resumes from its own last checkpoint.
        own: whether it is one of the run's own, in the same folder.
    """

    flag: str | None
    path: str
    own: bool


def find_source(cfg, suffix: str) -> Source:
    """The checkpoint that checkpoint_utils.load_checkpoint is going to load. fairseq itself would start afresh if a
    requested checkpoint is missing, and end with a traceback if flags exclude each other.

    Raises:
        InputError: a requested checkpoint is missing, or flags exclude each other.
    """
    if cfg.finetune_from_model is not None:
        others = [flag_of(name) for name in RESETS if cfg[name]]
        others += ["--restore-file"] * (cfg.restore_file != LAST)
        others += ["--continue-once"] * (cfg.continue_once is not None)
        if others:
            raise InputError(f"--finetune-from-model begins anew by itself: leave out {', '.join(others)}")
    last = os.path.join(cfg.save_dir, f"checkpoint_last{suffix}.pt")
    if cfg.restore_file != LAST:
        flag, path = "--restore-file", cfg.restore_file.replace(".pt", f"{suffix}.pt")
    elif PathManager.exists(last):
        return Source(None, last, own=True)
    elif cfg.continue_once is not None:
        flag, path = "--continue-once", cfg.continue_once
    elif cfg.finetune_from_model is not None:
        flag, path = "--finetune-from-model", cfg.finetune_from_model
    else:
        return Source(None, last, own=True)
    if not PathManager.isfile(path):
        raise InputError(f"{flag} {path}: no such file")
    return Source(flag, path, own=os.path.realpath(os.path.dirname(path)) == os.path.realpath(cfg.save_dir))


def warn_of_other_checkpoints(source: Source) -> None:
    """If checkpoint_last.pt is missing, fairseq begins anew and replaces the other checkpoints of the folder."""
    path = Path(source.path)
    others = [other.name for other in path.parent.glob("checkpoint*.pt")]
    if others:
        logger.warning(
            f"{path.parent} has {min(others)}, but no {path.name}: the run begins anew and replaces such checkpoints; "
            "to go on from one, give it by --restore-file"
        )


def load_newest_undamaged(load: Callable, cfg, trainer, source: Source, **kwargs):
    """checkpoint_utils.load_checkpoint, passed as ``load``, only tries checkpoint_last.pt, so a damaged one would end
    the run. Here the other checkpoints of the folder are tried, too, the newest first.

    Raises:
        DamagedCheckpoint: no checkpoint in the folder can be loaded.
    """
    paths = [Path(source.path)]
    if source.flag is None and not trainer.checkpoint_suffix:
        others = set(paths[0].parent.glob("checkpoint*.pt")).difference(paths)
        paths += sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    damage = None
    for path in paths:
        if path is not paths[0]:
            cfg = copy.copy(cfg)
            cfg.restore_file, cfg.finetune_from_model = str(path), None
        try:
            loaded = load(cfg, trainer, **kwargs)
        except DamagedCheckpoint as error:
            damage = damage or error
            continue
        if damage is not None:
            logger.warning(f"{damage}; going on from {path}, the newest one that can be loaded")
        return loaded
    raise damage
