from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils, options, trainer
from fairseq.dataclass import initialize
from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from fairseq_cli import train
from omegaconf import OmegaConf

from rnndrop_plugin.compat import flags as flags_
from rnndrop_plugin.errors import InputError

ROOT = Path(__file__).parents[2]


def test_fairseq_finds_an_unknown_metric_after_an_epoch(command, training, tmp_path, monkeypatch, refuse, unpatch):
    steps = []
    train_step = trainer.Trainer.train_step
    monkeypatch.setattr(trainer.Trainer, "train_step", lambda *args: steps.append(1) or train_step(*args))
    arguments = (*training, "--max-epoch", 1, "--save-dir", tmp_path, "--best-checkpoint-metric")
    line = refuse(*arguments, "accuracy")
    assert "--best-checkpoint-metric accuracy is not logged; the metrics are loss, ppl, " in line
    assert not steps and not list(tmp_path.iterdir())
    unpatch(checkpoint_utils, "load_checkpoint")
    with pytest.raises(KeyError, match="accuracy"):
        command(*arguments, "accuracy")
    assert steps


def test_the_loader_of_a_validation_is_not_begun(monkeypatch):
    """fairseq keeps an iterator with its worker, which goes on reading for whoever has left it."""
    batches, seen = SimpleNamespace(first_batch={"id": 3}), []
    cfg = {"dataset": {"disable_validation": False, "combine_valid_subsets": None, "valid_subset": "valid,other"}}
    cfg = OmegaConf.create({**cfg, "checkpoint": {"best_checkpoint_metric": "f1"}, "task": {}})
    stub = SimpleNamespace(cfg=cfg, get_valid_iterator=lambda subset: batches, valid_step=seen.append)
    with pytest.raises(InputError, match="--best-checkpoint-metric f1 is not logged"):
        flags_.check_best_metric(stub)
    assert seen == [{"id": 3}]
    batches.first_batch = "DUMMY"  # of no batches
    flags_.check_best_metric(stub)


@pytest.mark.parametrize("task", ["tagging", "classification"])
def test_metrics_of_the_other_tasks(command, tagging_data, tmp_path, task, refuse):
    model = {"tagging": "tagger", "classification": "classifier"}[task]
    flags = ("--user-dir", "rnndrop_plugin", "--task", f"rnndrop_{task}", "--criterion", f"rnndrop_{task}")
    flags += ("--arch", f"lstm_rnndrop_{model}", "--decoder-embed-dim", 4, "--decoder-hidden-size", 4)
    flags += ("--optimizer", "sgd", "--lr", 0.1, "--batch-size", 8, "--max-epoch", 1, "--best-checkpoint-metric")
    other = {"tagging": "f1_people", "classification": "f1_PER"}[task]
    line = refuse("train", tagging_data, *flags, other, "--save-dir", tmp_path)
    assert f"--best-checkpoint-metric {other} is not logged; the metrics are loss, accuracy" in line
    own = {"tagging": "f1_PER", "classification": "f1_people"}[task]
    line = refuse("train", tagging_data, *flags, own, "--save-dir", tmp_path)
    assert line == f"error: the best {own} is the highest one: add --maximize-best-checkpoint-metric"
    command("train", tagging_data, *flags, own, "--maximize-best-checkpoint-metric", "--save-dir", tmp_path)
    assert (tmp_path / "checkpoint_best.pt").exists()


def test_of_several_validation_texts_the_first_has_the_metric(command, training, tmp_path):
    more = ("--valid-subset", "valid,test", "--best-checkpoint-metric", "ppl", "--save-dir", tmp_path)
    log = command(*training, *more, "--max-update", 1)
    best = torch.load(tmp_path / "checkpoint_best.pt")["extra_state"]["best"]
    assert [str(best)] == log.metrics("ppl", "valid") != log.metrics("ppl", "test")


def test_looking_for_the_metric_changes_no_number(command, training, tmp_path):
    dropout = ("--lr", 1, "--update-dropout", 0.25, "--decoder-dropout-in", 0.2)
    arguments = (*training, *dropout, "--max-epoch", 1, "--best-checkpoint-metric")
    models = []
    for metric in ("loss", "ppl"):  # for the first there is nothing to look for
        command(*arguments, metric, "--save-dir", tmp_path / metric)
        models.append(torch.load(tmp_path / metric / "checkpoint_last.pt")["model"])
    torch.testing.assert_close(*models, rtol=0, atol=0)


def test_fairseq_validate_needs_a_task(command, stream_data, tmp_path, refuse, unpatch):
    arguments = ("validate", stream_data, "--user-dir", "rnndrop_plugin", "--path", tmp_path / "absent.pt")
    assert "give the task that the model was trained for by --task" in refuse(*arguments)
    assert refuse(*arguments[:4], "--task", "translation") == "error: give the checkpoint by --path"
    unpatch(options, "parse_args_and_arch")
    with pytest.raises(KeyError, match="None"):
        command(*arguments)


@pytest.mark.parametrize("name", ["generate", "interactive"])
def test_commands_whose_task_is_translation_name_the_flag(stream_data, tmp_path, refuse, name):
    arguments = (name, stream_data, "--user-dir", "rnndrop_plugin", "--path", tmp_path / "absent.pt")
    assert "give the model's task by --task" in refuse(*arguments)


def test_the_task_follows_from_the_architecture(command, stream_data, tagging_data, training, tmp_path, unpatch):
    def without(flag: str) -> tuple:
        i = training.index(flag)
        return (*training[:i], *training[i + 2 :], "--max-update", 1, "--save-dir", tmp_path)

    logged = command(*without("--task"))
    assert "task: RnndropLanguageModelingTask" in logged.text()
    unpatch(options, "parse_args_and_arch")
    with pytest.raises(SystemExit):
        command(*without("--task"))
    expected = {"tagger": "tagging", "classifier": "classification"}
    for cell in ("lstm", "gru", "rnn"):
        assert flags_.find_task(f"{cell}_rnndrop_ptb_word") == "rnndrop_language_modeling"
        for model, task in expected.items():
            assert flags_.find_task(f"{cell}_rnndrop_{model}") == f"rnndrop_{task}"
    assert flags_.find_task("lstm_lm") is None


def test_the_nearest_of_several_tasks(monkeypatch):
    """Whichever was registered first, and whatever a foreign task calls its model_class."""

    class Nearer(ARCH_MODEL_REGISTRY["lstm_rnndrop_classifier"]):
        pass

    classes = {"foreign": "lstm", "nearer": Nearer, "none": ()}
    monkeypatch.setattr(
        flags_,
        "TASK_REGISTRY",
        {name: SimpleNamespace(model_class=cls) for name, cls in classes.items()} | TASK_REGISTRY,
    )
    monkeypatch.setitem(ARCH_MODEL_REGISTRY, "own", Nearer)
    assert flags_.find_task("own") == "nearer"
    assert flags_.find_task("lstm_rnndrop_classifier") == "rnndrop_classification"
    assert flags_.find_task("lstm_lm") is None


def test_settings_that_an_architecture_reads_of_its_task(command, tagging_data, tmp_path, refuse):
    """fairseq/models/transformer_lm.py reads task.tokens_per_sample."""
    flags = (tagging_data, "--task", "rnndrop_tagging", "--arch", "transformer_lm", "--optimizer", "sgd", "--lr", 1)
    line = refuse("train", *flags, "--save-dir", tmp_path / "run")
    assert "--arch transformer_lm does not fit --task rnndrop_tagging, which has no --" in line
    for task, arch in (
        ("language_modeling", "lstm_rnndrop"),
        ("translation", "lstm_rnndrop_seq2seq"),
        ("rnndrop_tagging", "lstm_rnndrop_tagger"),
        ("rnndrop_language_modeling", "lstm_rnndrop_ptb_word"),
    ):
        assert flags_.find_missing_setting(arch, task) is None


@pytest.mark.parametrize(
    ("flag", "line"),
    [("--optimizer", "give the optimizer by --optimizer"), ("--arch", "give the architecture by --arch")],
)
def test_fairseq_ends_with_a_traceback_for_a_missing_choice(command, training, tmp_path, refuse, unpatch, flag, line):
    i = training.index(flag)
    arguments = (*training[:i], *training[i + 2 :], "--max-update", 1, "--save-dir", tmp_path / "run")
    if flag == "--arch":  # whose flags are not known without it
        arguments = tuple(arguments[:6]) + arguments[-4:]
    assert line in refuse(*arguments)
    assert not (tmp_path / "run").exists()
    unpatch(options, "parse_args_and_arch")
    unpatch(distributed_utils, "call_main")
    with pytest.raises((RuntimeError, ValueError)):
        command(*arguments)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--arch", "absent"), "argument --arch/-a: invalid choice: 'absent'"),
        (("--task", "absent"), "argument --task: invalid choice: 'absent'"),
        (("--optimizer", "absent"), "argument --optimizer: invalid choice: 'absent'"),
        (("--recurrent-dropout-sampling", "absent"), "invalid choice: 'absent' (choose from 'step', 'sequence')"),
        (("--absent", 1), "unrecognized arguments: --absent 1"),
        (("--update-dropout", "x"), "argument --update-dropout: invalid float value: 'x'"),
        (("--tokens-per-sample", "1.5"), "argument --tokens-per-sample: invalid int value: '1.5'"),
    ],
)
def test_flags_that_are_not_known(command, training, tmp_path, capsys, flags, line):
    with pytest.raises(SystemExit) as end:
        command(*training, *flags, "--save-dir", tmp_path / "run")
    assert end.value.code == 2 and line in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "line", "upstream"),
    [
        (("--seed", -1), "--seed must be in [0, 2**32), got -1", ValueError),
        (("--seed", 2**32), "--seed must be in [0, 2**32), got 4294967296", ValueError),
        (("--update-freq", "2,0"), "--update-freq must be at least 1, got 0", None),
        (("--update-freq", 0), "--update-freq must be at least 1, got 0", ZeroDivisionError),
        (("--lr", -1), "--lr must be at least 0, got -1.0", ValueError),
        (("--lr", ""), "--lr is empty", None),
        (("--update-freq", ""), "--update-freq is empty", None),
        (("--log-interval", 0), "--log-interval must be at least 1, got 0", ZeroDivisionError),
        (("--validate-interval", 0), "got 0 (--disable-validation leaves validations out)", None),
        (("--save-interval", 0), "got 0 (--no-save leaves checkpoints out)", None),
        (("--max-valid-steps", -1), "--max-valid-steps must be at least 0, got -1", KeyError),
        (("--max-epoch", -1), "--max-epoch must be at least 0, got -1 (0: no limit)", None),
        (("--max-update", -1), "--max-update must be at least 0, got -1 (0: no limit)", None),
        (("--max-tokens", 0), "--max-tokens must be at least 1, got 0", None),
        (("--ema-update-freq", 0), "--ema-update-freq must be at least 1, got 0", None),
        (("--ema-decay", 2), "--ema-decay must be in [0, 1], got 2.0", None),
        (("--ema-decay", "nan"), "--ema-decay must be in [0, 1], got nan", None),
        (("--lr", "1e400"), "--lr must be finite, got inf", None),
        (("--weight-decay", "nan"), "--weight-decay must be finite, got nan", None),
        (("--optimizer", "adam", "--adam-eps", "nan"), "--adam-eps must be finite, got nan", None),
        (("--clip-norm", "nan"), "--clip-norm must be finite, got nan", None),
        (("--profile",), "--profile needs a GPU, and there is none", None),
        (("--write-checkpoints-asynchronously",), "needs the package iopath: pip install iopath", None),
        (("--optimizer-overrides", "{lr"), "--optimizer-overrides must be a dictionary such as", None),
    ],
)
def test_fairseq_has_no_words_for_flags(command, training, tmp_path, monkeypatch, flags, line, upstream, refuse):
    arguments = (*training, "--max-update", 1, "--save-dir", tmp_path / "run", *flags)
    assert line in refuse(*arguments)
    assert not (tmp_path / "run").exists()
    if upstream:
        monkeypatch.setattr(flags_, "check_flags", lambda cfg: None)
        with pytest.raises(upstream):
            command(*arguments)


def test_a_polynomial_schedule_needs_its_length(stream_data, training, tmp_path, refuse):
    flags = ("--lr-scheduler", "polynomial_decay", "--optimizer", "adam", "--save-dir", tmp_path / "run")
    line = refuse("train", stream_data, *training[2:12], *flags)
    assert line == "error: --lr-scheduler polynomial_decay needs --total-num-update"
    assert not (tmp_path / "run").exists()


def test_no_clipping_may_be_clipping_at_infinity(command, training, tmp_path):
    command(*training, "--max-update", 1, "--save-dir", tmp_path, "--clip-norm", "inf")
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_a_search_needs_a_beam(stream_data, training, refuse):
    line = refuse("generate", stream_data, *training[2:6], "--path", "model.pt", "--batch-size", 1, "--beam", 0)
    assert "--beam must be at least 1, got 0" in line


def test_flags_that_need_validations(command, training, tmp_path):
    flags = ("--max-update", 1, "--save-dir", tmp_path, "--disable-validation", "--patience", 1)
    log = command(*training, *flags, "--lr-scheduler", "rnndrop_plateau", "--optimizer", "rnndrop_asgd")
    idle = "--lr-scheduler rnndrop_plateau, --optimizer rnndrop_asgd, --patience has no effect"
    assert idle in log.text()


@pytest.mark.parametrize("name", ["eval_lm", "validate"])
def test_fairseq_evaluates_overrides(command, stream_data, training, tmp_path, monkeypatch, name, refuse):
    command(*training, "--max-update", 1, "--save-dir", tmp_path)
    flags = ("--batch-size", 2, *training[2:6], "--path", tmp_path / "checkpoint_last.pt", "--model-overrides")
    code = f"{{'arch': open('{tmp_path}/written', 'w').name}}"
    for text in (code, "3", "{x", "{[1]: 2}"):
        line = refuse(name, stream_data, *flags, text)
        assert f"--model-overrides must be a dictionary such as {{'name': 1}}, got {text}" in line
    assert "--model-overrides must be a dictionary" in refuse("generate", stream_data, *flags, code)
    assert not (tmp_path / "written").exists()
    monkeypatch.setattr(flags_, "check_flags", lambda cfg: None)
    command(name, stream_data, *flags, code)
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("group", "values", "line"),
    [
        ("model", {"_name": "lstm_nothing"}, "model._name=lstm_nothing is not known"),
        ("criterion", {"_name": "nothing"}, "criterion._name=nothing is not known"),
        ("model", {"_name": "lstm_rnndrop", "update_dropout": "abc"}, "Value 'abc' .* could not be converted to Float"),
        ("model", {"_name": "lstm_rnndrop", "updat_dropout": 0.2}, "updat_dropout"),
        ("optimization", {"update_freq": [0]}, "--update-freq must be at least 1, got 0"),
    ],
)
def test_the_first_job_of_hydra_is_checked_where_its_plugin_is_loaded(group, values, line):
    cfg = OmegaConf.structured(FairseqConfig)
    OmegaConf.set_struct(cfg, False)
    cfg[group] = OmegaConf.create(values) if "_name" in values else OmegaConf.merge(cfg[group], values)
    assert initialize.add_defaults is flags_.add_defaults and train.add_defaults is flags_.add_defaults
    with pytest.raises(InputError, match=line) as error:
        train.add_defaults(cfg)
    assert "\n" not in str(error.value)
