"""What fairseq 0.12 needs on today's torch and numpy, and where it breaks a promise of ours.

Each patch names the place upstream that it mends.
"""

import argparse
import ast
import collections
import copy
import functools
import logging
import os
import pickle
import sys
import types
import typing
import warnings
import zipfile
from pathlib import Path

import numpy as np
import omegaconf
import torch
from fairseq import checkpoint_utils, options, utils
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.logging import metrics
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
from fairseq.trainer import Trainer
from fairseq_cli import generate

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.optim.plateau import Plateau

logger = logging.getLogger(__name__)

SILENCED_WARNINGS = (
    "'pin_memory' argument is set as true but no accelerator",
    r"`torch\.cuda\.amp\.autocast\(args",
    r"hydra\.experimental\.",
    r"\nThe version_base parameter is not specified",
    r"In '.*': Usage of deprecated keyword in package header",
    r"\n'config' is validated against ConfigStore schema",
    r"\nThe strict flag in the compose API is deprecated",
)
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


def apply() -> None:
    """Apply every patch, once a process."""
    if getattr(checkpoint_utils, "rnndrop_applied", False):
        return
    checkpoint_utils.rnndrop_applied = True
    silence_warnings()
    restore_numpy_compat()
    quiet_damaged_datasets()
    allow_checkpoint_classes()
    utils.set_torch_seed = SeedOneGenerator
    Trainer._set_seed = seed_each_process
    checkpoint_utils.save_checkpoint = gather_task_state(checkpoint_utils.save_checkpoint)
    checkpoint_utils.load_checkpoint_to_cpu = say_what_is_wrong(checkpoint_utils.load_checkpoint_to_cpu)
    for patch in (
        replay_scheduler_step,
        restore_progress,
        check_pretrained_model,
        use_newest_that_loads,
        check_restore_file,
        check_best_metric,
    ):
        checkpoint_utils.load_checkpoint = patch(checkpoint_utils.load_checkpoint)
    Trainer.__init__ = check_precision(Trainer.__init__)
    Trainer.save_checkpoint = save_progress(Trainer.save_checkpoint)
    PathManager.copy = staticmethod(copy_whole(PathManager.copy))
    save_bad_epochs()
    options.parse_args_and_arch = ask_for_task(options.parse_args_and_arch)
    distributed_utils.call_main = report_input_errors(distributed_utils.call_main)
    generate.main = functools.partial(_run, generate.main)  # the one command that does without call_main


def silence_warnings() -> None:
    """fairseq's use of torch and hydra warns of what no user of it can change.

    The places are iterators.py and fairseq_task.py, and dataclass/utils.py with the YAML files in config/.
    """
    for message in SILENCED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def restore_numpy_compat() -> None:
    """numpy 2 has no ``np.compat.long``, which fairseq/data/token_block_dataset.py uses (fairseq-interactive)."""
    if not hasattr(np, "compat"):
        np.compat = types.SimpleNamespace(long=int)


def quiet_damaged_datasets() -> None:
    """fairseq/data/indexed_dataset.py: where files are damaged, __del__ fails after __init__ has, on stderr."""
    for cls in (MMapIndexedDataset, MMapIndexedDataset.Index):

        def close(dataset, _close=cls.__del__):
            if hasattr(dataset, "_bin_buffer_mmap"):
                _close(dataset)

        cls.__del__ = close


def allow_checkpoint_classes() -> None:
    """Let torch.load's weights_only path, on which all loading stays, read what fairseq saves.

    fairseq/trainer.py saves its configuration beside the tensors: an argparse.Namespace, and
    omegaconf's containers for several processes. Anything else in a checkpoint is refused unread.
    """
    torch.serialization.add_safe_globals(list(CHECKPOINT_CLASSES))
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0").lower() in ("1", "y", "yes", "true"):
        logger.warning("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: loading a checkpoint may run code that it contains")


class SeedOneGenerator(utils.set_torch_seed):
    """fairseq/utils.py, set_torch_seed: fairseq seeds at every update, and torch.manual_seed writes down the whole
    call stack for each kind of accelerator that is not there (_lazy_call in torch/cuda, xpu and mtia). That is a
    third of what an update costs beside its arithmetic, so without an accelerator only the CPU is seeded.
    """

    def __init__(self, seed: int):
        if torch.accelerator.is_available():
            super().__init__(seed)
        else:
            self.rng_state = utils.get_rng_state()
            torch.default_generator.manual_seed(seed)


def seed_each_process(trainer: Trainer) -> None:
    """fairseq/trainer.py, Trainer._set_seed, seeds the processes alike at every update: all would drop the same
    units, each in its own rows. The first process keeps fairseq's seed. (A CPU's generator reads a seed modulo
    2**32, and multiples of 2**32 over the golden ratio stay as far apart there as can be.)
    """
    seed = trainer.cfg.common.seed + trainer.get_num_updates()
    utils.set_torch_seed(seed + trainer.data_parallel_rank * 0x9E3779B9)


def gather_task_state(save_checkpoint):
    """checkpoint_utils.save_checkpoint asks the first process alone for the task's state: a task whose state is
    spread over the processes gathers it before, in a method ``gather_state(group)`` that each of them calls."""

    @functools.wraps(save_checkpoint)
    def save(cfg, trainer, *args, **kwargs):
        if trainer.data_parallel_world_size > 1 and hasattr(trainer.task, "gather_state"):
            trainer.task.gather_state(trainer.data_parallel_process_group)
        return save_checkpoint(cfg, trainer, *args, **kwargs)

    return save


def say_what_is_wrong(load_checkpoint_to_cpu):
    """checkpoint_utils.load_checkpoint_to_cpu lets torch's many-lined errors through; torch does not notice bits that
    have changed."""

    @functools.wraps(load_checkpoint_to_cpu)
    def load(path, *args, **kwargs):
        try:
            if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip() is not None:
                raise zipfile.BadZipFile
            return load_checkpoint_to_cpu(path, *args, **kwargs)
        except Exception as error:
            if isinstance(error, OSError) and error.filename:
                reason = error.strerror
            elif isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
                reason = "it holds objects other than tensors and fairseq's settings, which are never loaded"
            else:
                reason = "it is damaged, or not one of fairseq's"
            raise InputError(f"{path}: cannot load this checkpoint: {reason}") from error

    return load


def check_restore_file(load_checkpoint):
    """checkpoint_utils.load_checkpoint starts afresh where the --restore-file that is asked for is missing."""

    @functools.wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        check_processes(trainer.cfg)  # for fairseq-hydra-train, where call_main is not yet ours
        asked_for = cfg.restore_file != CheckpointConfig.__dataclass_fields__["restore_file"].default
        if asked_for and not trainer.checkpoint_suffix and not PathManager.isfile(cfg.restore_file):
            raise InputError(f"--restore-file {cfg.restore_file}: no such file")
        return load_checkpoint(cfg, trainer, **kwargs)

    return load


def check_best_metric(load_checkpoint):
    """fairseq_cli/train.py, validate, ends with a KeyError, after an epoch, where --best-checkpoint-metric is none of
    what a validation logs: the first batch of one tells what that is."""

    @functools.wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        loaded = load_checkpoint(cfg, trainer, **kwargs)
        dataset, metric = trainer.cfg.dataset, cfg.best_checkpoint_metric
        if not dataset.disable_validation and metric != "loss":  # which is always logged
            subset = "valid" if dataset.combine_valid_subsets else dataset.valid_subset.split(",")[0]
            batches = trainer.get_valid_iterator(subset).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
            with metrics.aggregate(new_root=True) as validation:
                trainer.valid_step(next(batches))
            names = validation.get_smoothed_values()
            if metric not in names:
                raise InputError(f"--best-checkpoint-metric {metric} is none of what is logged: {', '.join(names)}")
        return loaded

    return load


def check_precision(init):
    """fairseq/trainer.py, Trainer.__init__: --bf16 implies --tpu, which ends in an AttributeError without torch_xla;
    --fp16 fails within torch without a GPU."""

    @functools.wraps(init)
    def check(trainer, cfg, *args, **kwargs):
        if cfg.common.tpu and utils.xm is None:
            raise InputError(
                f"{'--bf16' if cfg.common.bf16 else '--tpu'} asks fairseq for a TPU, and torch_xla is not installed: "
                "to train in bfloat16 without one, use fairseq-hydra-train with common.bf16=true"
            )
        if cfg.common.fp16 and (cfg.common.cpu or not torch.cuda.is_available()):
            raise InputError("--fp16 needs a GPU, and there is none (or --cpu is given)")
        init(trainer, cfg, *args, **kwargs)

    return check


def ask_for_task(parse_args_and_arch):
    """fairseq/options.py, parse_args_and_arch: fairseq-validate, the one command without a task of its own, ends with
    KeyError: None where none is given."""

    @functools.wraps(parse_args_and_arch)
    def parse(*args, **kwargs):
        try:
            return parse_args_and_arch(*args, **kwargs)
        except KeyError as error:
            if error.args != (None,):
                raise
            _end("give the task that the model was trained for by --task")

    return parse


def check_pretrained_model(load_checkpoint):
    """checkpoint_utils.load_checkpoint takes any --finetune-from-model whose parameters have the right sizes: it does
    not show the task what the checkpoint holds of one, such as other dictionaries."""

    @functools.wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        path = cfg.finetune_from_model
        resumes = PathManager.exists(os.path.join(cfg.save_dir, f"checkpoint_last{trainer.checkpoint_suffix}.pt"))
        if path is not None and not resumes:
            if not PathManager.isfile(path):
                raise InputError(f"--finetune-from-model {path}: no such file")
            trainer.task.load_state_dict(checkpoint_utils.load_checkpoint_to_cpu(path).get("task_state", {}))
        return load_checkpoint(cfg, trainer, **kwargs)

    return load


def replay_scheduler_step(load_checkpoint):
    """fairseq_cli/train.py writes an epoch's checkpoint before it steps the scheduler with the epoch's
    validation: a resume at an epoch's end would lose that step."""

    @functools.wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        extra_state, epoch_itr = load_checkpoint(cfg, trainer, **kwargs)
        resumed = extra_state is not None and epoch_itr.epoch > 1
        if resumed and extra_state["train_iterator"]["iterations_in_epoch"] == 0:
            reset = cfg.reset_optimizer or cfg.reset_lr_scheduler
            if isinstance(trainer.lr_scheduler, (Plateau, ReduceLROnPlateauLRSchedule)) and not reset:
                trainer.lr_step(epoch_itr.epoch - 1, extra_state["val_loss"])
        return extra_state, epoch_itr

    return load


def check_processes(cfg) -> None:
    """fairseq/distributed/utils.py, infer_init_method, asks for GPUs: without them torchrun's processes train a model
    each, in the same folder, and other spellings fail or train nothing.

    Raises:
        InputError: the processes would not train together.
    """
    cfg = cfg.distributed_training
    launched = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    processes = max(launched, cfg.distributed_world_size)
    if processes == 1 or cfg.distributed_no_spawn and cfg.distributed_world_size > 1:
        return
    if not torch.cuda.is_available():
        raise InputError(
            f"{processes} processes do not train together here, where there is no GPU: "
            f"use python scripts/train_cpu.py --processes {processes}"
        )
    if cfg.distributed_world_size == 1:  # torchrun with several GPUs sets it, with one on each machine not
        raise InputError(f"each of {processes} processes would train alone: add --distributed-world-size {processes}")


def check_flags(cfg) -> None:
    """What fairseq ends with a traceback for: fairseq_cli/train.py gives the seed to numpy and the rate to torch,
    iterators.py divides by --update-freq, and --model-overrides goes to Python's eval in eval_lm.py and validate.py.

    Raises:
        InputError: one of these flags cannot be used.
    """
    for flag, text in (
        ("--model-overrides", cfg.common_eval.model_overrides),
        ("--optimizer-overrides", cfg.checkpoint.optimizer_overrides),
    ):
        try:
            overrides = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            overrides = None
        if not isinstance(overrides, dict):
            raise InputError(f"{flag} must be a dictionary such as {{'name': 1}}, got {text}")
    if not 0 <= cfg.common.seed < 2**32:
        raise InputError(f"--seed must be in [0, 2**32), got {cfg.common.seed}")
    if min(cfg.optimization.update_freq) < 1:
        raise InputError(f"--update-freq must be at least 1, got {min(cfg.optimization.update_freq)}")
    if min(cfg.optimization.lr) < 0:
        raise InputError(f"--lr must not be negative, got {min(cfg.optimization.lr)}")


def use_newest_that_loads(load_checkpoint):
    """checkpoint_utils.load_checkpoint knows checkpoint_last.pt alone: a damaged one ends the run.

    Raises:
        InputError: no checkpoint in the folder can be loaded.
    """

    @functools.wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        last = Path(cfg.save_dir, "checkpoint_last.pt")
        if cfg.restore_file == last.name and not trainer.checkpoint_suffix and last.exists():
            path = _newest_that_loads(last)
            if path != last:
                cfg = copy.copy(cfg)
                cfg.restore_file, cfg.finetune_from_model = str(path), None
        return load_checkpoint(cfg, trainer, **kwargs)

    return load


def _newest_that_loads(last: Path) -> Path:
    others = sorted(last.parent.glob("checkpoint*.pt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    damage = None
    for path in (last, *(path for path in others if path != last)):
        try:
            checkpoint_utils.load_checkpoint_to_cpu(str(path))
        except InputError as error:
            damage = damage or error
            continue
        if damage is not None:
            logger.warning(f"{damage}; going on from {path}, the newest one that can be loaded")
        return path
    raise damage


def save_progress(save_checkpoint):
    """fairseq/trainer.py, Trainer.save_checkpoint: what --patience has counted is not saved."""

    @functools.wraps(save_checkpoint)
    def save(trainer, filename, extra_state):
        return save_checkpoint(trainer, filename, {**extra_state, "early_stopping": dict(_early_stopping())})

    return save


def restore_progress(load_checkpoint):
    """fairseq_cli/train.py begins anew what --patience counts and, at an epoch's beginning, the means of
    --log-interval updates; and where a run has ended, it trains another update or epoch before it sees so."""

    @functools.wraps(load_checkpoint)
    def load(cfg, trainer, **kwargs):
        extra_state, epoch_itr = load_checkpoint(cfg, trainer, **kwargs)
        updates = trainer.get_num_updates()
        if extra_state is None or updates == 0:  # --reset-optimizer, --finetune-from-model
            return extra_state, epoch_itr
        if not cfg.reset_meters:
            _early_stopping().update(extra_state.get("early_stopping", {}))
            means = {name: meters for name, meters in extra_state["metrics"].items() if name == "train_inner"}
            metrics.load_state_dict(means)
        patience, max_update = cfg.patience, trainer.cfg.optimization.max_update
        for flag, limit, count in (
            ("--max-update", max_update, updates),
            ("--patience", patience, _early_stopping().get("num_runs", 0)),
        ):
            if 0 < limit <= count:
                logger.info(f"this run has ended before, after {updates} updates: {flag} is {limit}")
                sys.exit(0)
        return extra_state, epoch_itr

    return load


def _early_stopping() -> dict:
    """Where fairseq_cli/train.py, should_stop_early, keeps the best validation and the number of those after it."""
    for name in ("fairseq_cli.train", "__main__"):  # the second is that of python -m fairseq_cli.train
        function = getattr(sys.modules.get(name), "should_stop_early", None)
        if function is not None:
            return vars(function)
    return {}


def copy_whole(copy_file):
    """fairseq/file_io.py, PathManager.copy, by which checkpoint_last.pt and checkpoint_best.pt come about: a kill in
    the middle would leave half a file."""

    @functools.wraps(copy_file)
    def copy_to(src_path, dst_path, overwrite=False):
        if not PathManager.supports_rename(dst_path):
            return copy_file(src_path, dst_path, overwrite)
        copy_file(src_path, f"{dst_path}.tmp", overwrite=True)
        PathManager.rename(f"{dst_path}.tmp", dst_path)
        return True

    return copy_to


def save_bad_epochs() -> None:
    """fairseq/optim/lr_scheduler/reduce_lr_on_plateau.py: what --lr-patience has counted is not saved."""
    cls = ReduceLROnPlateauLRSchedule
    state_dict, load_state_dict = cls.state_dict, cls.load_state_dict

    def save(schedule):
        return {**state_dict(schedule), "num_bad_epochs": schedule.lr_scheduler.num_bad_epochs}

    def load(schedule, state):
        load_state_dict(schedule, state)
        schedule.lr_scheduler.num_bad_epochs = state.get("num_bad_epochs", 0)

    cls.state_dict, cls.load_state_dict = save, load


def report_input_errors(call_main):
    """fairseq's commands end with a traceback, whatever the reason."""

    @functools.wraps(call_main)
    def call(cfg, main, **kwargs):
        _run(check_flags, cfg)
        _run(check_processes, cfg)
        # A partial of a module's function can be sent to the processes that fairseq starts for several GPUs.
        return call_main(cfg, functools.partial(_run, main), **kwargs)

    return call


def _run(main, cfg, **kwargs):
    try:
        return main(cfg, **kwargs)
    except Exception as error:
        line = _input_error_line(error)
        if line is None:
            raise
        logger.debug("the error below was raised here", exc_info=error)
        _end(line)


def _end(line: str) -> typing.NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def _input_error_line(error: Exception) -> str | None:
    """What ``error`` says about the user's input in one line; None for any other error."""
    reasons: list[str] = []
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        reasons.append(str(cause).rstrip("."))
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        reasons.append(str(cause))
    elif isinstance(error, OSError) and error.filename:
        reasons = [f"{error.filename}: {error.strerror}"]
    elif isinstance(error, UnicodeDecodeError):  # fairseq-interactive names no file
        reasons = [f"a text is not {error.encoding} (byte 0x{error.object[error.start]:02x})"]
    elif isinstance(error, OSError) or type(error) in (AssertionError, Exception) and str(error):
        reasons = [str(error)]  # fairseq's own words for flags and files that it cannot use
    else:
        return None
    return " ".join(": ".join(reasons).split())
