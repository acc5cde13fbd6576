"""Starting, resuming and ending a run: checkpoint_utils.load_checkpoint and save_checkpoint.

A run is what is trained into one --save-dir. The best score and the counts of --patience and --lr-patience belong to
the run. They go on when it is resumed, and start anew in another run.
"""

import functools
import logging
import sys

from fairseq import checkpoint_utils
from fairseq.logging import metrics
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
from fairseq.tasks.translation import TranslationTask
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from rnndrop_plugin.compat import averaging, flags
from rnndrop_plugin.compat.source import Source, find_source, load_newest_undamaged, warn_of_other_checkpoints
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models import seq2seq
from rnndrop_plugin.optim.asgd import AveragedSGD
from rnndrop_plugin.optim.plateau import OTHER_SCHEDULER, Plateau
from rnndrop_plugin.tasks.rnndrop_task import RnndropTask

logger = logging.getLogger(__name__)

OTHER_TRAINED = "the checkpoint's optimizer was for other trained parameters: --reset-optimizer begins it anew"
upstream_load = checkpoint_utils.load_checkpoint
upstream_save = checkpoint_utils.save_checkpoint


@functools.wraps(upstream_load)
def load_checkpoint(cfg, trainer, **kwargs):
    """Let fairseq load the checkpoint and its training iterator, and restore what fairseq does not.

    Raises:
        InputError: the checkpoint that a flag names is missing, cannot be loaded, is of another scheduler or optimizer,
            or leaves nothing to train.
    """
    forget_scores()
    source = find_source(cfg, trainer.checkpoint_suffix)
    extra_state, epoch_itr = load_newest_undamaged(_load, cfg, trainer, source, **kwargs)
    if extra_state is None:
        warn_of_other_checkpoints(source)
    else:
        _check_dictionaries(trainer.task, extra_state)
    if extra_state is not None and source.flag != "--finetune-from-model":
        if not cfg.reset_optimizer:
            _check_trained(trainer, extra_state)
        if source.own:
            _compare_settings(cfg, trainer, extra_state)
            _restore_progress(cfg, trainer, extra_state, epoch_itr)
            _skip_finished_run(cfg, trainer, epoch_itr)
        else:
            _begin_anew(trainer, source, epoch_itr)
    flags.warn_of_idle_flags(trainer.cfg)
    flags.check_best_metric(trainer)
    return extra_state, epoch_itr


@functools.wraps(upstream_save)
def save_checkpoint(cfg, trainer, epoch_itr, val_loss):
    """Complete the task's state before it is saved.

    fairseq asks only the first process for this state. A task whose state is spread over the processes gathers it in a
    method ``gather_state(group)``, which each of them calls. A task with an attribute ``progress``, such as
    RnndropTask, saves in it what fairseq counts but does not save. fairseq's own tasks save nothing, so they get a
    method that does.
    """
    task = trainer.task
    if trainer.data_parallel_world_size > 1 and hasattr(task, "gather_state"):
        task.gather_state(trainer.data_parallel_process_group)
    progress = {"early_stopping": dict(_early_stopping()), "metric": _metric(cfg)}
    progress |= {"trained": _trained(trainer), "model": _model(trainer)}
    if isinstance(trainer.lr_scheduler, ReduceLROnPlateauLRSchedule):
        progress["bad_epochs"] = trainer.lr_scheduler.lr_scheduler.num_bad_epochs
    if hasattr(task, "progress"):
        task.progress = progress
    elif not hasattr(type(task), "get_checkpoint_dict"):
        kept = {"progress": progress, "dictionaries": task.state.state_dict.get("dictionaries")}
        task.get_checkpoint_dict = lambda: {type(task).__name__: kept}
    return upstream_save(cfg, trainer, epoch_itr, val_loss)


def forget_scores() -> None:
    """Delete the scores that an earlier run in this process has left in attributes of fairseq's functions."""
    for scores in (vars(checkpoint_utils.save_checkpoint), _early_stopping()):
        for name in ("best", "num_runs"):
            scores.pop(name, None)


def _load(cfg, trainer, **kwargs):
    """fairseq/trainer.py, load_checkpoint, ends with a KeyError if --store-ema is new, because it has already deleted
    the parameters that the average should start from. So --store-ema is off while it loads. ``trainer.ema`` is made
    afterwards, at its first use, from the model's parameters; its count of updates for --ema-update-freq would start
    at 0. A scheduler or an optimizer other than the checkpoint's ends with a traceback.

    Raises:
        InputError: the scheduler is a different one, different parameters are trained, or the checkpoint of
            --ema-seed-model has no average.
    """
    ema = trainer.cfg.ema
    if ema.store_ema and ema.ema_seed_model is not None:  # it is read when the average is first asked for
        checkpoint_utils.load_ema_from_checkpoint(ema.ema_seed_model)
    wanted, ema.store_ema = ema.store_ema, False
    try:
        extra_state, epoch_itr = upstream_load(cfg, trainer, **kwargs)
    except KeyError as error:
        if error.args != ("best",):  # fairseq_lr_scheduler.py, load_state_dict
            raise
        raise InputError(OTHER_SCHEDULER) from error
    except ValueError as error:
        if "parameter group" not in str(error):  # torch/optim/optimizer.py, load_state_dict
            raise
        raise InputError(OTHER_TRAINED) from error
    finally:
        ema.store_ema = wanted
    if wanted and extra_state is not None:
        average = trainer.ema
        average.update_freq_counter = trainer.get_num_updates() % ema.ema_update_freq
        if "ema" in extra_state:
            average.restore(extra_state["ema"])
            if ema.ema_fp32:
                average.build_fp32_params(extra_state.get("ema_fp32_params"))
        else:
            logger.warning("the checkpoint has no average of parameters: --store-ema starts from its parameters")
    elif "ema" in (extra_state or {}):
        logger.warning("the checkpoint has an average of parameters, which is lost: it goes on with --store-ema alone")
    return extra_state, epoch_itr


def _check_dictionaries(task, extra_state: dict) -> None:
    """checkpoint_utils.load_checkpoint accepts any checkpoint whose parameters have the right sizes. It does not show
    the task the checkpoint's state with --finetune-from-model, and never shows it to one of fairseq's own tasks, so
    other dictionaries would go unnoticed."""
    saved = extra_state.get(type(task).__name__, {})
    if saved.get("dictionaries") is None:
        return
    if isinstance(task, RnndropTask):
        task.load_state_dict(saved)
    elif isinstance(task, TranslationTask):
        seq2seq.check_dictionaries(task, saved["dictionaries"])


def _check_trained(trainer, extra_state: dict) -> None:
    """An optimizer identifies parameters only by their position, so it would accept the state of other parameters.

    Raises:
        InputError: the checkpoint's trained parameters are different ones.
    """
    trained = _progress(trainer.task, extra_state).get("trained")
    if trained is not None and trained != _trained(trainer):
        names = ", ".join(sorted(set(trained) ^ set(_trained(trainer)))[:3])
        raise InputError(f"{OTHER_TRAINED} (such as {names})")


def _compare_settings(cfg, trainer, extra_state: dict) -> None:
    """Warn of settings of the model that differ from those of the run that is resumed.

    Raises:
        InputError: this is a job of a fairseq-hydra-train sweep, which would resume another job's run.
    """
    own, saved = _model(trainer), _progress(trainer.task, extra_state).get("model", {})
    others = [f"{name} is {own[name]}, was {saved[name]}" for name in own if own[name] != saved.get(name, own[name])]
    if not others:
        return
    line = f"{cfg.save_dir} has the checkpoint of a run with other settings: {', '.join(others)}"
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise InputError(f"{line}: give each job a folder of its own (checkpoint.save_dir)")
    logger.warning(line)


def _model(trainer) -> dict:
    """The settings of the model; empty for fairseq's older models, whose settings are all flags of the command."""
    cfg = trainer.cfg.model
    values = OmegaConf.to_container(cfg, enum_to_str=True) if OmegaConf.is_config(cfg) else {}
    return {
        name: value for name, value in values.items() if value is None or isinstance(value, (bool, int, float, str))
    }


def _trained(trainer) -> list[str]:
    return [name for name, parameter in trainer.get_model().named_parameters() if parameter.requires_grad]


def _progress(task, extra_state: dict) -> dict:
    return extra_state.get(type(task).__name__, {}).get("progress", extra_state)  # older checkpoints: directly in it


def _restore_progress(cfg, trainer, extra_state: dict, epoch_itr) -> None:
    """After a resume fairseq_cli/train.py counts --patience from zero, and reduce_lr_on_plateau.py --lr-patience. At an
    epoch's beginning the running means of --log-interval are dropped, too. An epoch's checkpoint is written before the
    scheduler and an averaging optimizer get its validation. A resume would skip that step, so it is done here."""
    if trainer.get_num_updates() == 0:  # --reset-optimizer
        return
    progress = _progress(trainer.task, extra_state)
    measured = progress.get("metric", _metric(cfg))
    comparable = measured == _metric(cfg)
    if not comparable:
        logger.warning(f"the validations so far looked for {measured} and do not count: now the aim is {_metric(cfg)}")
        _forget_validations(trainer)
    if not cfg.reset_meters:
        if comparable:
            _early_stopping().update(progress.get("early_stopping", {}))
        if "train_inner" in extra_state["metrics"]:
            metrics.load_state_dict({"train_inner": extra_state["metrics"]["train_inner"]})
    schedule = trainer.lr_scheduler
    on_plateau = isinstance(schedule, (Plateau, ReduceLROnPlateauLRSchedule)) and not cfg.reset_lr_scheduler
    if on_plateau and comparable and isinstance(schedule, ReduceLROnPlateauLRSchedule):
        older = trainer._optim_history[-1]["lr_scheduler_state"].get("num_bad_epochs", 0)
        schedule.lr_scheduler.num_bad_epochs = progress.get("bad_epochs", older)
    if comparable and epoch_itr.epoch > 1 and extra_state["train_iterator"]["iterations_in_epoch"] == 0:
        if on_plateau:
            trainer.lr_step(epoch_itr.epoch - 1, extra_state["val_loss"])
        else:
            averaging.end_validation(trainer, extra_state["val_loss"])


def _skip_finished_run(cfg, trainer, epoch_itr) -> None:
    """fairseq_cli/train.py would train another update or epoch before it notices that the run has ended."""
    limits = trainer.cfg.optimization
    for flag, limit, count in (
        ("--max-update", limits.max_update, trainer.get_num_updates()),
        ("--max-epoch", limits.max_epoch, epoch_itr.next_epoch_idx - 1),
        ("--patience", cfg.patience, _early_stopping().get("num_runs", 0)),
    ):
        if 0 < limit <= count:
            logger.info(f"this run has already ended, after {trainer.get_num_updates()} updates: {flag} is {limit}")
            limits.max_epoch = -1  # train.py stops when the epoch exceeds this; 0 would mean no limit
            return


def _begin_anew(trainer, source: Source, epoch_itr) -> None:
    """Start a new run from the checkpoint of another one. The other run's scores do not count, but its parameters, its
    optimizer and its place in the data are used, except for those that a --reset-... flag resets.

    Raises:
        InputError: a limit of the run is reached before it begins.
    """
    _forget_validations(trainer)
    limits = trainer.cfg.optimization
    for flag, limit, count, reset in (
        ("--max-update", limits.max_update, trainer.get_num_updates(), "--reset-optimizer"),
        ("--max-epoch", limits.max_epoch, epoch_itr.next_epoch_idx - 1, "--reset-dataloader"),
    ):
        if 0 < limit <= count:
            raise InputError(
                f"nothing is left to train: {source.flag} {source.path} counts {count}, {flag} is {limit} "
                f"({reset} counts from 0)"
            )


def _forget_validations(trainer) -> None:
    """Count the next validation as the best one so far."""
    forget_scores()
    schedule = trainer.lr_scheduler
    if isinstance(schedule, Plateau):
        schedule.forget_best()
    elif isinstance(schedule, ReduceLROnPlateauLRSchedule):
        schedule.lr_scheduler.best = schedule.lr_scheduler.mode_worse
    if isinstance(trainer.optimizer, AveragedSGD):
        trainer.optimizer.validations.clear()


def _metric(cfg) -> str:
    """A description of what the best checkpoint has, such as "the lowest loss"."""
    return f"{'the highest' if cfg.maximize_best_checkpoint_metric else 'the lowest'} {cfg.best_checkpoint_metric}"


def _early_stopping() -> dict:
    """Where fairseq_cli/train.py, should_stop_early, keeps the best validation and the number of those after it."""
    for name in ("fairseq_cli.train", "__main__"):  # the second for python -m fairseq_cli.train
        function = getattr(sys.modules.get(name), "should_stop_early", None)
        if function is not None:
            return vars(function)
    return {}
