"""Checks of flags for which fairseq ends with a traceback, or which it finds to be wrong too late."""

import argparse
import ast
import dataclasses
import functools
import importlib.util
import logging
import math
import re
import sys

import torch
from fairseq import options, utils
from fairseq.dataclass import initialize
from fairseq.logging import metrics
from fairseq.models import (
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
    MODEL_REGISTRY,
)
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
from omegaconf import ListConfig
from omegaconf.errors import OmegaConfBaseException

from rnndrop_plugin.compat import help, versions
from rnndrop_plugin.compat.errors import end
from rnndrop_plugin.errors import InputError, flag_of

logger = logging.getLogger(__name__)

NEED_VALIDATIONS = (
    ("lr_scheduler", "rnndrop_plateau"),
    ("lr_scheduler", "reduce_lr_on_plateau"),
    ("optimizer", "rnndrop_asgd"),
)
HIGHER_IS_BETTER = re.compile("accuracy|precision|recall|bleu|f1(_.*)?")
upstream_parse = options.parse_args_and_arch
upstream_add_defaults = initialize.add_defaults


@functools.wraps(upstream_parse)
def parse_args_and_arch(parser, input_args=None, *args, **kwargs):
    """fairseq/options.py, parse_args_and_arch: the default task of every command but fairseq-validate is not one of the
    plugin's. Without a task, an architecture, an optimizer or a checkpoint, a command ends with a traceback. --help
    leaves out the flags of all these. With --bf16 fairseq sets --tpu, even on a machine without one."""
    versions.restore_log_level()
    arguments = sys.argv[1:] if input_args is None else input_args
    given, _ = parser.parse_known_args([argument for argument in arguments if argument not in help.FLAGS])
    if not set(help.FLAGS).isdisjoint(arguments):
        if getattr(given, "arch", None) is not None:
            given.task = find_task(given.arch) or given.task
        help.print_help(parser, given)
        parser.exit()
    if getattr(given, "profile", False) and not torch.cuda.is_available():
        end("--profile needs a GPU, and there is none")
    if "path" not in given:  # fairseq-train; the others evaluate a checkpoint
        if given.arch is None:
            end("give the architecture by --arch, such as --arch lstm_rnndrop")
        if given.optimizer is None:
            end("give the optimizer by --optimizer, such as --optimizer adam --lr 0.001")
        task = find_task(given.arch)
        if task is not None:
            parser.set_defaults(task=task)
        task = parser.parse_known_args(input_args)[0].task
        if missing := find_missing_setting(given.arch, task):
            end(f"--arch {given.arch} does not fit --task {task}, which has no {flag_of(missing)}")
    elif given.task is None:
        end("give the task that the model was trained for by --task")
    elif given.path is None:
        end("give the checkpoint by --path")
    parsed = upstream_parse(parser, input_args, *args, **kwargs)
    options_parsed = parsed[0] if isinstance(parsed, tuple) else parsed
    if getattr(options_parsed, "total_num_update", 0) is None:
        end("--lr-scheduler polynomial_decay needs --total-num-update")
    if utils.xm is None and "tpu" in options_parsed:
        options_parsed.tpu = given.tpu
    return parsed


def find_task(architecture: str) -> str | None:
    """The task whose ``model_class`` is the architecture's class or its nearest ancestor; None if there is none."""
    ancestors = ARCH_MODEL_REGISTRY[architecture].__mro__
    classes = {name: getattr(task, "model_class", None) for name, task in TASK_REGISTRY.items()}
    found = [name for name, cls in classes.items() if cls in ancestors]
    return min(found, key=lambda name: ancestors.index(classes[name]), default=None)


def find_missing_setting(architecture: str, task: str) -> str | None:
    """A setting that the architecture reads from the task but the task lacks, which would be an error of omegaconf."""
    model = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(architecture))
    own = TASK_DATACLASS_REGISTRY.get(task)
    if model is None or own is None:
        return None
    defaults = [str(field.default) for field in dataclasses.fields(model)]
    read = [match[1] for text in defaults if (match := re.fullmatch(r"\$\{task\.(\w+)\}", text))]
    return next((name for name in read if name not in own.__dataclass_fields__), None)


def check_flags(cfg) -> None:
    """Check values with which fairseq ends with a traceback: fairseq_cli/train.py passes the seed to numpy and the rate
    to torch, and divides by intervals; iterators.py divides by --update-freq; eval_lm.py and validate.py pass
    --model-overrides to Python's eval. With a rate that is not finite, train.py trains until the parameters are not
    finite either. It silently trains nothing if a limit is below 0, or if iopath, which writes checkpoints
    asynchronously, is missing.

    Raises:
        InputError: the value of one of these flags cannot be used.
    """
    for flag, text in (
        ("--model-overrides", cfg.common_eval.model_overrides),
        ("--optimizer-overrides", cfg.checkpoint.optimizer_overrides),
    ):
        try:
            overrides = ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # all that literal_eval raises
            overrides = None
        if not isinstance(overrides, dict):
            raise InputError(f"{flag} must be a dictionary such as {{'name': 1}}, got {text}")
    if not 0 <= cfg.common.seed < 2**32:
        raise InputError(f"--seed must be in [0, 2**32), got {cfg.common.seed}")
    for flag, values, least, hint in (
        ("--update-freq", cfg.optimization.update_freq, 1, ""),
        ("--lr", cfg.optimization.lr, 0, ""),
        ("--log-interval", [cfg.common.log_interval], 1, ""),
        ("--validate-interval", [cfg.dataset.validate_interval], 1, " (--disable-validation leaves validations out)"),
        ("--save-interval", [cfg.checkpoint.save_interval], 1, " (--no-save leaves checkpoints out)"),
        ("--max-valid-steps", [cfg.dataset.max_valid_steps or 0], 0, ""),
        ("--max-epoch", [cfg.optimization.max_epoch], 0, " (0: no limit)"),
        ("--max-update", [cfg.optimization.max_update], 0, " (0: no limit)"),
        ("--beam", [cfg.generation.beam], 1, ""),
        ("--max-tokens", [1 if cfg.dataset.max_tokens is None else cfg.dataset.max_tokens], 1, ""),
        ("--ema-update-freq", [cfg.ema.ema_update_freq], 1, ""),
    ):
        if not values:
            raise InputError(f"{flag} is empty")
        if min(values) < least:
            raise InputError(f"{flag} must be at least {least}, got {min(values)}{hint}")
    if not 0 <= cfg.ema.ema_decay <= 1:
        raise InputError(f"--ema-decay must be in [0, 1], got {cfg.ema.ema_decay}")
    for group in filter(None, (cfg.optimization, cfg.optimizer, cfg.lr_scheduler)):
        if isinstance(group, argparse.Namespace):  # an optimizer without a dataclass: all flags of the command
            group = {name: getattr(group, name, None) for name in ("momentum", "weight_decay")}
        for name, value in group.items():
            for number in value if isinstance(value, (list, ListConfig)) else [value]:
                infinite = isinstance(number, float) and not math.isfinite(number)
                if infinite and (name, number) != ("clip_norm", math.inf):
                    raise InputError(f"{flag_of(name)} must be finite, got {number}")
    if cfg.checkpoint.write_checkpoints_asynchronously and importlib.util.find_spec("iopath") is None:
        raise InputError("--write-checkpoints-asynchronously needs the package iopath: pip install iopath")


@functools.wraps(upstream_add_defaults)
def add_defaults(cfg):
    """fairseq/dataclass/initialize.py, add_defaults: the first job of fairseq-hydra-train imports the plugin only after
    call_main, and then calls this function, so the flags are checked here.

    Raises:
        InputError: a value of the wrong type, a name that is not registered, or see :func:`check_flags`.
    """
    registered = {"task": TASK_REGISTRY, "model": ARCH_MODEL_REGISTRY | MODEL_REGISTRY}
    registered |= {kind: REGISTRIES[kind]["registry"] for kind in ("criterion", "optimizer", "lr_scheduler")}
    for kind, known in registered.items():
        name = getattr(cfg.get(kind), "_name", None)
        if name is not None and name not in known:
            raise InputError(f"{kind}._name={name} is not known")
    try:
        upstream_add_defaults(cfg)
    except OmegaConfBaseException as error:
        raise InputError(" ".join(str(error).split())) from None  # hydra would also print a cause
    check_flags(cfg)


def warn_of_idle_flags(cfg) -> None:
    """Warn of flags that have no effect because --disable-validation leaves nothing to compare."""
    if not cfg.dataset.disable_validation:
        return
    idle = [f"{flag_of(kind)} {name}" for kind, name in NEED_VALIDATIONS if cfg[kind]._name == name]
    idle += ["--patience"] * (cfg.checkpoint.patience > 0)
    if idle:
        logger.warning(f"{', '.join(idle)} has no effect: --disable-validation leaves nothing to compare")


def check_best_metric(trainer) -> None:
    """fairseq_cli/train.py, validate, ends with a KeyError after an epoch if a validation does not log the
    --best-checkpoint-metric. Here the first batch of a validation shows which metrics are logged.

    Raises:
        InputError: there is no such metric, or the lowest F1 would be the best one.
    """
    dataset, metric = trainer.cfg.dataset, trainer.cfg.checkpoint.best_checkpoint_metric
    if dataset.disable_validation or metric == "loss":  # the loss is always logged
        return
    subset = dataset.valid_subset.split(",")[0]
    batch = trainer.get_valid_iterator(subset).first_batch  # this does not start the data loader
    if batch == "DUMMY":
        return
    with metrics.aggregate(new_root=True) as validation:
        trainer.valid_step(batch)
    names = list(validation.get_smoothed_values())
    if getattr(trainer.cfg.task, "eval_bleu", False):
        names.append("bleu")  # not logged as long as all translations are empty
    if metric not in names:
        raise InputError(f"--best-checkpoint-metric {metric} is not logged; the metrics are {', '.join(names)}")
    if HIGHER_IS_BETTER.fullmatch(metric) and not trainer.cfg.checkpoint.maximize_best_checkpoint_metric:
        raise InputError(f"the best {metric} is the highest one: add --maximize-best-checkpoint-metric")
