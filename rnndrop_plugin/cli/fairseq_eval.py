"""Evaluating a checkpoint by fairseq's command for its task, with this plugin."""

import argparse
import re
import sys

import rnndrop_plugin
from rnndrop_plugin.cli.command import fail, fail_for_package
from rnndrop_plugin.cli.fairseq_train import add_plugin_arguments, complete, hand_over, names_of
from rnndrop_plugin.cli.trained_model import import_user_dir
from rnndrop_plugin.files import split_paths

SPLIT_FLAGS = ("--gen-subset", "--valid-subset")
BATCH_SIZE = "64"  # the default for fairseq-validate, which needs one; the results of our tasks do not depend on it


def evaluation_of(name: str) -> tuple[str, str]:
    """fairseq's command that evaluates models of a task, and the command's flag for the split."""
    from fairseq.tasks import TASK_REGISTRY
    from fairseq.tasks.language_modeling import LanguageModelingTask
    from fairseq.tasks.multilingual_language_modeling import MultilingualLanguageModelingTask
    from fairseq.tasks.translation import TranslationTask

    from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingTask

    task = TASK_REGISTRY[name]
    if issubclass(task, (RnndropLanguageModelingTask, LanguageModelingTask, MultilingualLanguageModelingTask)):
        return "eval_lm", "--gen-subset"
    return ("generate", "--gen-subset") if issubclass(task, TranslationTask) else ("validate", "--valid-subset")


def task_of(path: str, name: str | None, user_dir: str | None) -> str:
    """The name of the task. Ends the command if the task is not known or the checkpoint cannot be read.

    Args:
        name: the value of --task; None for the task of the checkpoint.
        user_dir: the folder of a task of the user's own.
    """
    try:
        from fairseq import checkpoint_utils, tasks  # takes seconds, which --help need not wait for
    except ModuleNotFoundError as error:
        fail_for_package(error)
    rnndrop_plugin.register()
    given = name is not None
    try:
        import_user_dir(user_dir)
        if not given:
            name = checkpoint_utils.load_checkpoint_to_cpu(path)["cfg"].task._name
    except (OSError, ValueError) as error:
        fail(error)
    if name not in tasks.TASK_REGISTRY:
        what = f"--task {name}, a task" if given else f"{path}: a checkpoint of the task {name},"
        fail(f"{what} which is not known here (--user-dir names it)")
    return name


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Evaluate a checkpoint with this plugin, on the test split unless --gen-subset or "
        "--valid-subset names another. A language model is evaluated by "
        "fairseq-eval-lm, a translation model by fairseq-generate, others by fairseq-validate. --user-dir and the "
        f"checkpoint's --task are filled in. fairseq-validate gets --batch-size {BATCH_SIZE}; it and fairseq-generate "
        "get --required-batch-size-multiple 1, so that no sequence is left out.",
        usage="%(prog)s DATA --path CHECKPOINT ...",
        epilog="All other arguments are those of fairseq's command: --path CHECKPOINT --help lists them, those of the "
        "task last. docs/language_modelling.md explains those of the plugin.",
        allow_abbrev=False,
        add_help="--path" not in names_of(sys.argv[1:]),
    )
    parser.add_argument("--path", required=True, metavar="CHECKPOINT", help="the model, trained by fairseq-train")
    add_plugin_arguments(parser, "checkpoint")
    args, _ = parser.parse_known_args()

    try:
        first, *_ = split_paths(args.path)  # an ensemble's checkpoints are of one task
    except ValueError as error:
        fail(error)
    task = task_of(first, args.task, args.user_dir)
    command, split_flag = evaluation_of(task)
    arguments = complete(sys.argv[1:], task)
    flags = names_of(arguments)
    given = [flag for flag in SPLIT_FLAGS if flag in flags]
    if len(given) > 1:
        fail(f"{' and '.join(given)} both name the split: give one of them")
    if given:  # fairseq's commands accept both flags but read only one of them
        arguments = [re.sub(f"^{given[0]}(?==|$)", split_flag, argument) for argument in arguments]
    else:
        arguments += [split_flag, "test"]
    if command == "validate" and flags.isdisjoint(("--batch-size", "--max-sentences", "--max-tokens")):
        arguments += ["--batch-size", BATCH_SIZE]
    if command != "eval_lm" and "--required-batch-size-multiple" not in flags:
        arguments += ["--required-batch-size-multiple", "1"]  # with fairseq's default of 8 the last batch may get lost
    hand_over(command, arguments)
