"""The language model through fairseq's own commands, on a tiny random text."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary, data_utils
from fairseq.trainer import Trainer
from fairseq_cli import eval_lm
from omegaconf import OmegaConf

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.language_model import RecurrentDecoder
from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingConfig, RnndropLanguageModelingTask

TASK = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling")
MODEL = ("--arch", "lstm_rnndrop", "--decoder-embed-dim", 8, "--decoder-hidden-size", 8, "--update-dropout", 0.25)
OPTIMIZATION = ("--optimizer", "sgd", "--lr", 5, "--clip-norm", 1, "--lr-scheduler", "rnndrop_plateau")
LOGGING = ("--log-format", "json", "--log-interval", 1)


def flags(data, save_dir, *others) -> list:
    rows = ("--batch-size", 4, "--tokens-per-sample", 7)
    return [data, *TASK, *MODEL, *rows, *OPTIMIZATION, *LOGGING, "--save-dir", save_dir, "--max-epoch", 3, *others]


@pytest.fixture
def train(command, stream_data, tmp_path):
    """Train a tiny model into the folder ``name``; returns what was logged."""

    def run(name: str, *others):
        return command("train", *flags(stream_data, tmp_path / name, *others))

    return run


@pytest.fixture(scope="module")
def trained(command, stream_data, tmp_path_factory) -> tuple[Path, list]:
    """A checkpoint after an epoch, with 3 rows in validation, for many tests to read; and what was logged."""
    folder = tmp_path_factory.mktemp("trained")
    logged = command("train", *flags(stream_data, folder, "--max-epoch", 1, "--batch-size-valid", 3))
    return folder / "checkpoint1.pt", logged


def load(path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same_parameters(first: Path, second: Path) -> None:
    first, second = load(first)["model"], load(second)["model"]
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# Interruption


@pytest.fixture
def interrupt(monkeypatch):
    """Stop the training of this process at its n-th update, between two updates, as a kill would."""

    def at(update: int) -> None:
        step, updates = Trainer.train_step, []

        def train_step(trainer, *args, **kwargs):
            updates.append(1)
            if len(updates) == update:
                monkeypatch.setattr(Trainer, "train_step", step)
                raise KeyboardInterrupt
            return step(trainer, *args, **kwargs)

        monkeypatch.setattr(Trainer, "train_step", train_step)

    return at


@pytest.mark.parametrize(("update_freq", "scheduler"), [(1, "rnndrop_plateau"), (3, "reduce_lr_on_plateau")])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(train, interrupt, tmp_path, update_freq, scheduler):
    """Killed in the middle of an epoch, and stopped exactly at the end of one whose validation shrinks the rate."""
    options = ("--update-freq", update_freq, "--lr-scheduler", scheduler, "--lr-shrink", 0.5, "--lr", 1)
    options += ("--save-interval-updates", 3)
    options += ("--maximize-best-checkpoint-metric",)  # so that a loss that falls is a reason to shrink the rate
    whole = train("whole", *options)
    rates = [float(rate) for rate in whole.metrics("lr", "train_inner")]
    per_epoch = len(rates) // 3
    assert rates[0] == rates[per_epoch - 1] > 0
    shrunk = next(epoch for epoch in (1, 2) if rates[epoch * per_epoch] < rates[epoch * per_epoch - 1])

    interrupt(at := per_epoch + per_epoch // 2 + 1)
    with pytest.raises(KeyboardInterrupt):
        train("killed", *options)
    killed = train("killed", *options)
    assert len(killed.metrics("loss", "train_inner")) > len(rates) - at  # it repeats what was not saved
    stopped = [train("stopped", *options, "--max-update", shrunk * per_epoch), train("stopped", *options)]
    assert len(stopped[0].metrics("loss", "train_inner")) == shrunk * per_epoch

    undisturbed = train("undisturbed", *options, "--save-interval-updates", 0)
    assert undisturbed.metrics("loss", "train") == whole.metrics("loss", "train")
    assert len(undisturbed.metrics("loss", "valid")) == 3 < len(whole.metrics("loss", "valid"))
    assert_same_parameters(tmp_path / "undisturbed" / "checkpoint3.pt", tmp_path / "whole" / "checkpoint3.pt")

    for name, resumed in (("killed", killed), ("stopped", stopped[1])):
        for metric, tag in (("loss", "train_inner"), ("lr", "train_inner"), ("loss", "train"), ("loss", "valid")):
            expected, logged = whole.metrics(metric, tag), resumed.metrics(metric, tag)
            assert logged == expected[-len(logged) :], (name, metric, tag)
        assert_same_parameters(tmp_path / name / "checkpoint_last.pt", tmp_path / "whole" / "checkpoint_last.pt")
        best = [load(tmp_path / run / "checkpoint_best.pt")["extra_state"]["best"] for run in (name, "whole")]
        assert best[0] == best[1]


def test_a_run_with_other_rows_goes_on_from_a_zero_state_and_says_so(
    train, interrupt, stream_data, tmp_path, monkeypatch
):
    interrupt(8)
    with pytest.raises(KeyboardInterrupt):
        train("run", "--save-interval-updates", 6)
    states = []
    extract_features = RecurrentDecoder.extract_features

    def spy(decoder, *args, **kwargs):
        states.append(decoder.carried[True])
        return extract_features(decoder, *args, **kwargs)

    monkeypatch.setattr(RecurrentDecoder, "extract_features", spy)
    resumed = train("run", "--batch-size", 3, "--max-update", 7)
    (warning,) = [record.getMessage() for record in resumed if record.levelname == "WARNING"]
    assert "the state starts from zero" in warning and "'rows': 4" in warning and "'rows': 3" in warning
    assert states[0] is None
    tokens = len(read_text(stream_data, "train"))
    before, now = (math.ceil(math.ceil(tokens / rows) / 7) for rows in (4, 3))
    position = load(tmp_path / "run" / "checkpoint_last.pt")["extra_state"]["train_iterator"]["iterations_in_epoch"]
    assert position == 6 * now // before + 1 != 7


def test_windows_of_another_seed_begin_from_a_zero_state(train, interrupt):
    flags = ("--variable-bptt", "--sentence-avg", "--lr", 0.1, "--save-interval-updates", 6)
    interrupt(8)
    with pytest.raises(KeyboardInterrupt):
        train("run", *flags, "--seed", 1)
    assert "the state starts from zero" in train("run", *flags, "--seed", 2, "--max-update", 7).text()


def test_without_warning_the_state_goes_on(train, interrupt, tmp_path, monkeypatch):
    interrupt(8)
    with pytest.raises(KeyboardInterrupt):
        train("run", "--save-interval-updates", 6)
    saved = load(tmp_path / "run" / "checkpoint_last.pt")["extra_state"]["RnndropLanguageModelingTask"]["carried"]
    states = []
    extract_features = RecurrentDecoder.extract_features

    def spy(decoder, *args, **kwargs):
        states.append(decoder.carried[True])
        return extract_features(decoder, *args, **kwargs)

    monkeypatch.setattr(RecurrentDecoder, "extract_features", spy)
    resumed = train("run", "--max-update", 7)
    assert not [record for record in resumed if record.levelname == "WARNING"]
    assert all(torch.equal(a, b) for a, b in zip(states[0], saved, strict=True))
    assert saved[0].shape == (1, 4, 8) and saved[0].any()


# Evaluation


@pytest.fixture
def evaluate(command, monkeypatch):
    """fairseq-eval-lm; returns what was logged and the unrounded perplexity."""
    from fairseq_cli import eval_lm

    results = []
    score = eval_lm.eval_lm
    monkeypatch.setattr(eval_lm, "eval_lm", lambda **kwargs: results.append(score(**kwargs)) or results[-1])

    def run(data, path, *others):
        logged = command("eval_lm", data, *TASK, "--path", path, *others)
        return logged, results[-1]["perplexity"]

    return run


def read_text(data, split: str) -> torch.Tensor:
    dictionary = Dictionary.load(str(data / "dict.txt"))
    sentences = data_utils.load_indexed_dataset(str(data / split), dictionary)
    return torch.cat([sentences[i] for i in range(len(sentences))])


def unrolled_perplexity(checkpoint: dict, text: torch.Tensor, eos: int = 2) -> float:
    """exp(mean NLL) of a text in one piece, by torch.nn.LSTM in double precision."""
    weights = {name.removeprefix("decoder."): value.double() for name, value in checkpoint["model"].items()}
    rnn = torch.nn.LSTM(8, 8).double()
    rnn.load_state_dict({name[4:]: value for name, value in weights.items() if name.startswith("rnn.")})
    history = torch.cat([torch.tensor([eos]), text[:-1]])
    features = rnn(weights["embed_tokens.weight"][history][:, None])[0][:, 0]
    logits = features @ weights["output_projection.weight"].T + weights["output_projection.bias"]
    return math.exp(torch.nn.functional.cross_entropy(logits, text).item())


def test_eval_lm_gives_the_perplexity_of_the_whole_text_unrolled(trained, evaluate, stream_data):
    path, _ = trained
    text = read_text(stream_data, "test")
    expected = unrolled_perplexity(load(path), text)
    for steps in (1, 7, 1000):
        logged, perplexity = evaluate(stream_data, path, "--tokens-per-sample", steps)
        assert perplexity == pytest.approx(expected, rel=1e-6)
        assert f"test: {len(text)} tokens in 1 row, each from a zero state" in logged.text()
        assert f"Evaluated {len(text)} tokens" in logged.text()
    logged, perplexity = evaluate(stream_data, path, "--batch-size", 3, "--softmax-batch", 10)
    assert f"{len(text)} tokens in 3 rows" in logged.text()
    assert perplexity != pytest.approx(expected, rel=1e-6)


def test_several_models_are_evaluated_by_the_mean_of_their_probabilities(
    train, trained, evaluate, refuse, stream_data, tmp_path, monkeypatch
):
    train("other", "--max-epoch", 1, "--arch", "gru_rnndrop", "--seed", 2, "--init-range", 1)
    paths = [trained[0], tmp_path / "other" / "checkpoint1.pt"]
    together = ":".join(map(str, paths))
    logged, perplexity = evaluate(stream_data, together)
    assert "Evaluation: static evaluation of the mean of 2 models" in logged.text()
    text, probs = read_text(stream_data, "test"), []
    for path in paths:
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])
        logits = model.eval()(torch.cat([torch.tensor([2]), text[:-1]]).unsqueeze(0))[0]
        probs.append(logits.softmax(2)[0].gather(1, text.unsqueeze(1)).double())
    expected = (sum(probs) / 2).log().mean().neg().exp().item()
    assert perplexity == pytest.approx(expected, rel=1e-5)
    assert abs(perplexity / evaluate(stream_data, paths[0])[1] - 1) > 0.01
    for flags, name in (
        (("--softmax-temperature", 1.1), "softmax temperature 1.1"),
        (("--softmax-temperature", "valid"), "softmax temperature chosen on the validation text"),
        (("--neural-cache-size", 5), "neural cache"),
    ):
        line = refuse("eval_lm", stream_data, *TASK, "--path", together, *flags)
        assert re.search(f"several models only have a static evaluation, not this one: .*{name}", line)
    assert "one.pt:: there is no file before or after a colon" in refuse(
        "eval_lm", stream_data, *TASK, "--path", "one.pt:"
    )
    own_name = shutil.copy(trained[0], tmp_path / "12:30.pt")  # one file
    assert evaluate(stream_data, own_name)[1] == evaluate(stream_data, paths[0])[1]
    other = torch.load(trained[0], weights_only=False)
    other["model"].popitem()
    torch.save(other, tmp_path / "other.pt")
    line = refuse("eval_lm", stream_data, *TASK, "--path", f"{trained[0]}:{tmp_path / 'other.pt'}")
    assert f"{tmp_path / 'other.pt'}: " in line
    monkeypatch.setattr(eval_lm, "checkpoint_utils", checkpoint_utils)
    assert "Model file not found" in refuse("eval_lm", stream_data, *TASK, "--path", together)  # fairseq without us


def test_the_shards_of_an_evaluation_are_its_rows(trained, evaluate, stream_data):
    path, _ = trained
    text = read_text(stream_data, "test")
    _, whole = evaluate(stream_data, path, "--batch-size", 4)
    tokens, nats = [], []
    for shard in (0, 1):
        logged, perplexity = evaluate(stream_data, path, "--batch-size", 2, "--num-shards", 2, "--shard-id", shard)
        tokens.append(int(re.search(r"Evaluated (\d+) tokens", logged.text())[1]))
        nats.append(tokens[-1] * math.log(perplexity))
    assert sum(tokens) == len(text) and min(tokens) > 0
    assert sum(nats) == pytest.approx(len(text) * math.log(whole), rel=1e-6)


def bits(perplexity: float) -> str:
    """The loss as fairseq logs it."""
    return str(round(math.log2(perplexity), 3))


def test_eval_lm_validation_and_validate_agree_on_the_same_rows(command, trained, evaluate, stream_data):
    path, logged = trained
    _, perplexity = evaluate(stream_data, path, "--gen-subset", "valid", "--batch-size", 3)
    assert logged.metrics("loss", "valid") == [bits(perplexity)]
    rows = f"valid: {len(read_text(stream_data, 'valid'))} tokens in 3 rows, each from a zero state"
    assert rows in logged.text()
    validated = command("validate", stream_data, *TASK, "--path", path, "--batch-size", 3, *LOGGING)
    assert validated.metrics("loss", "valid") == [bits(perplexity)]


def test_expected_scaling_and_the_other_cells_are_evaluated_as_they_are_validated(
    train, evaluate, stream_data, tmp_path
):
    for arch, options in (
        ("gru_rnndrop_ptb_word", ()),
        ("rnn_rnndrop", ("--update-dropout", 0, "--hidden-dropout", 0.3)),
    ):
        logged = train(arch, "--arch", arch, "--max-epoch", 1, *options)
        path = tmp_path / arch / "checkpoint_last.pt"
        _, perplexity = evaluate(stream_data, path, "--gen-subset", "valid", "--batch-size", 4)
        assert logged.metrics("loss", "valid") == [bits(perplexity)]


def test_adaptive_softmax_and_tied_embeddings_train_and_are_evaluated(train, evaluate, stream_data, tmp_path):
    adaptive = ("--criterion", "adaptive_loss", "--adaptive-softmax-cutoff", "8,16", "--ddp-backend", "legacy_ddp")
    adaptive += ("--decoder-hidden-size", 16)
    tied = ("--share-decoder-input-output-embed", "--decoder-hidden-size", 12)
    for name, options in (("adaptive", adaptive), ("tied", tied)):
        logged = train(name, "--max-epoch", 2, "--lr", 1, *options)
        losses = [float(loss) for loss in logged.metrics("loss", "train")]
        assert losses[1] < losses[0]
        path = tmp_path / name / "checkpoint_last.pt"
        _, perplexity = evaluate(stream_data, path, "--gen-subset", "valid", "--batch-size", 4)
        assert logged.metrics("loss", "valid")[-1] == bits(perplexity)


def test_windows_of_varying_length_need_the_scale_of_sentence_avg(train):
    warning = "--variable-bptt without --sentence-avg"
    assert warning in train("plain", "--variable-bptt", "--max-update", 1).text()
    assert warning not in train("scaled", "--variable-bptt", "--sentence-avg", "--max-update", 1).text()


def test_training_texts_in_parts_are_one_stream(command, stream_data, tmp_path):
    data = Path(shutil.copytree(stream_data, tmp_path / "data"))
    for ending in ("bin", "idx"):
        shutil.copy(data / f"test.{ending}", data / f"train1.{ending}")
    tokens = sum(len(read_text(data, split)) for split in ("train", "test"))
    logged = command("train", *flags(data, tmp_path / "run", "--max-update", 1))
    assert f"train: {tokens} tokens in 4 rows" in logged.text()


# Other evaluations


def evaluated_by(logged) -> str:
    """What stands in the line before the result."""
    lines = [record.getMessage() for record in logged]
    (result,) = [i for i, line in enumerate(lines) if line.startswith("Loss (base 2): ")]
    return lines[result - 1].removeprefix("Evaluation: ")


def test_an_evaluation_stands_before_its_result(trained, evaluate, stream_data):
    path, _ = trained
    logged, static = evaluate(stream_data, path)
    static = float(static)
    assert evaluated_by(logged) == "static evaluation"
    for flags, name in (
        (
            ("--softmax-temperature", "valid"),
            r"static evaluation, softmax temperature [01]\.\d+ chosen on the validation",
        ),
        (
            ("--dynamic-evaluation", "sgd", "--dynamic-evaluation-lr", 0.5),
            r"dynamic evaluation \(sgd, lr 0.5, decay 0\)",
        ),
        (
            ("--dynamic-evaluation", "rms", "--dynamic-evaluation-lr", 0.002),
            r"dynamic evaluation \(rms, lr 0.002, decay",
        ),
        (("--neural-cache-size", 100), r"static evaluation, neural cache \(size 100, theta 0.3, weight 0.1\)"),
    ):
        logged, perplexity = evaluate(stream_data, path, *flags)
        assert re.match(name, evaluated_by(logged)), evaluated_by(logged)
        assert perplexity != pytest.approx(static, rel=1e-6)
        assert perplexity == pytest.approx(static, rel=0.2)
    logged, perplexity = evaluate(stream_data, path)
    assert perplexity == static and evaluated_by(logged) == "static evaluation"


@pytest.mark.parametrize(
    ("unneeded", "flags"),
    [
        ("train", ("--softmax-temperature", "valid")),
        ("valid", ("--dynamic-evaluation", "rms", "--dynamic-evaluation-lr", 0.002)),
    ],
)
def test_an_evaluation_reads_no_other_text_than_it_says(trained, evaluate, stream_data, tmp_path, unneeded, flags):
    data = Path(shutil.copytree(stream_data, tmp_path / "data"))
    for path in data.glob(f"{unneeded}.*"):
        path.unlink()
    assert evaluate(data, trained[0], *flags)[1] == evaluate(stream_data, trained[0], *flags)[1]


def test_the_flags_of_an_evaluation_are_refused_in_training(train, capsys):
    with pytest.raises(SystemExit) as end:
        train("run", "--softmax-temperature", 2)
    assert end.value.code == 2
    assert "are for fairseq-eval-lm: static evaluation, softmax temperature 2" in capsys.readouterr().err


def test_flags_of_an_evaluation_that_would_have_no_effect(trained, refuse, stream_data, tmp_path):
    path, _ = trained
    prompt = tmp_path / "prompt"
    prompt.write_text("w3\n")
    plain = (stream_data, *TASK, "--path", path)
    line = refuse("eval_lm", *plain, "--dynamic-evaluation-lr", 0.1)
    assert "--dynamic-evaluation-lr, -decay and -epsilon need --dynamic-evaluation" in line
    line = refuse("eval_lm", *plain, "--neural-cache-weight", 0.2)
    assert "--neural-cache-theta and --neural-cache-weight need a --neural-cache-size" in line
    for flags in (("--softmax-temperature", 2), ("--neural-cache-size", 10)):
        assert "are for fairseq-eval-lm" in refuse("interactive", *plain, "--input", prompt, *flags)


def test_an_adaptive_softmax_has_a_static_evaluation_only(train, evaluate, stream_data, tmp_path, capsys):
    flags = ("--criterion", "adaptive_loss", "--adaptive-softmax-cutoff", "8,16", "--ddp-backend", "legacy_ddp")
    train("adaptive", *flags, "--decoder-hidden-size", 16, "--max-update", 1)
    with pytest.raises(SystemExit) as end:
        evaluate(stream_data, tmp_path / "adaptive" / "checkpoint_last.pt", "--neural-cache-size", 10)
    assert end.value.code == 2 and "the model has an adaptive softmax" in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["sgd", "rms"])
def test_a_dynamic_evaluation_learns_in_single_precision(train, evaluate, stream_data, tmp_path, capsys, rule):
    train("run", "--max-update", 1)
    with pytest.raises(SystemExit) as end:
        flags = ("--fp16", "--dynamic-evaluation", rule, "--dynamic-evaluation-lr", 0.002)
        evaluate(stream_data, tmp_path / "run" / "checkpoint_last.pt", *flags)
    assert end.value.code == 2 and "needs parameters of float32" in capsys.readouterr().err


def test_a_cache_reads_whole_windows(train, evaluate, stream_data, tmp_path, capsys):
    train("run", "--max-update", 1)
    with pytest.raises(SystemExit) as end:
        flags = ("--neural-cache-size", 10, "--softmax-batch", 3)
        evaluate(stream_data, tmp_path / "run" / "checkpoint_last.pt", *flags)
    assert end.value.code == 2 and "it does not go with --softmax-batch" in capsys.readouterr().err


# Hydra


def test_the_yaml_file_trains(stream_data, evaluate, tmp_path):
    command = Path(sys.executable).with_name("fairseq-hydra-train")
    flags = ("--config-dir", "examples/hydra", "--config-name", "ptb_word", f"checkpoint.save_dir={tmp_path}")
    overrides = ("dataset.batch_size=4", "optimization.max_epoch=1", "+model.decoder_hidden_size=8")
    root = Path(__file__).parents[2]
    ended = subprocess.run([command, *flags, f"task.data={stream_data}", *overrides], cwd=root, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
    saved = load(tmp_path / "checkpoint_best.pt")
    expected = {"_name": "lstm_rnndrop_ptb_word", "decoder_embed_dim": 256, "update_dropout": 0.25, "init_range": 0.05}
    expected |= {"decoder_hidden_size": 8, "recurrent_dropout_scaling": "expected"}
    assert {name: saved["cfg"]["model"][name] for name in expected} == expected
    _, perplexity = evaluate(stream_data, tmp_path / "checkpoint_best.pt", "--gen-subset", "valid", "--batch-size", 4)
    assert saved["extra_state"]["val_loss"] == round(math.log2(perplexity), 3)


# Generation


def test_interactive_continues_a_prompt(command, trained, stream_data, tmp_path, capsys):
    path, _ = trained
    (tmp_path / "prompts").write_text("w3 w1\n\nw5 w0 w2 unknown\n")
    arguments = ("--path", path, "--input", tmp_path / "prompts", "--buffer-size", 3, "--batch-size", 3)
    capsys.readouterr()
    command("interactive", stream_data, *TASK, *arguments, "--beam", 3, "--nbest", 3, "--max-len-b", 10)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    hypotheses = [(line[0], line[2]) for line in lines if line[0].startswith("H-")]
    scores = [line[1] for line in lines if line[0].startswith("P-")]
    assert [name for name, _ in hypotheses] == ["H-0"] * 3 + ["H-1"] * 3 + ["H-2"] * 3
    dictionary = Dictionary.load(str(stream_data / "dict.txt"))
    for (name, words), positional in zip(hypotheses, scores, strict=True):
        assert words.startswith({"H-0": "w3 w1", "H-1": "", "H-2": "w5 w0 w2 <unk>"}[name])
        text = torch.tensor([*map(dictionary.index, words.split()), dictionary.eos()])
        expected = -math.log2(unrolled_perplexity(load(path), text)) * len(text)
        assert sum(map(float, positional.split())) == pytest.approx(expected, abs=1e-3)
    assert len({words for name, words in hypotheses if name == "H-0"}) == 3


def test_a_prompt_that_leaves_no_room_is_warned_of(command, trained, stream_data, tmp_path):
    path, _ = trained
    (tmp_path / "prompts").write_text("w3 w1 w2\n")
    arguments = ("--path", path, "--input", tmp_path / "prompts", "--max-len-b")
    warning = "a prompt of 3 tokens is not continued: --max-len-b, {}, counts them, too"
    assert warning.format(3) in command("interactive", stream_data, *TASK, *arguments, 3).text()
    assert "is not continued" not in command("interactive", stream_data, *TASK, *arguments, 4).text()


# Bad input


@pytest.fixture
def own_data(stream_data, tmp_path) -> Path:
    """A copy of the data to damage."""
    return Path(shutil.copytree(stream_data, tmp_path / "damaged"))


def damage(data: Path, how: str) -> None:
    if how == "no folder":
        shutil.rmtree(data)
    elif how == "no dictionary":
        (data / "dict.txt").unlink()
    elif how == "a malformed dictionary":
        (data / "dict.txt").write_text("w0 many\n")
    elif how == "a mis-encoded dictionary":
        (data / "dict.txt").write_bytes(b"caf\xe9 1\n")
    elif how == "a word twice in the dictionary":
        (data / "dict.txt").write_text("w0 1\nw0 1\n")
    elif how == "a smaller dictionary":
        (data / "dict.txt").write_text("w0 1\n")
    elif how == "a dictionary without its last word":
        *words, _ = (data / "dict.txt").read_text().splitlines()
        (data / "dict.txt").write_text("\n".join([*words, ""]))
    elif how == "no valid":
        (data / "valid.idx").unlink()
    elif how == "an empty valid":
        (data / "valid.bin").write_bytes(b"")
    elif how == "a truncated train":
        (data / "train.bin").write_bytes((data / "train.bin").read_bytes()[:50])
    elif how == "a truncated index":
        (data / "train.idx").write_bytes((data / "train.idx").read_bytes()[:20])
    elif how == "padding in the text":
        text = (data / "train.bin").read_bytes()
        (data / "train.bin").write_bytes(b"\1\0" + text[2:])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", "damaged/dict.txt: no such file"),
        ("no dictionary", "damaged/dict.txt: no such file"),
        ("a malformed dictionary", "damaged/dict.txt: not a dictionary"),
        ("a mis-encoded dictionary", "damaged/dict.txt: not a dictionary"),
        ("a word twice in the dictionary", "damaged/dict.txt: not a dictionary"),
        ("a smaller dictionary", "is beyond the 5 types of dict.txt"),
        ("a dictionary without its last word", "token 23 is beyond the 23 types of dict.txt"),
        ("no valid", "damaged/valid.bin, .idx: no such files"),
        ("an empty valid", "damaged/valid.bin: there is no text in it"),
        ("a truncated train", "damaged/train.bin, .idx: damaged: "),
        ("a truncated index", "damaged/train.bin, .idx: damaged: "),
        ("padding in the text", "damaged/train.bin: <pad> is in the text"),
    ],
)
def test_damaged_data_are_refused(own_data, how, message):
    damage(own_data, how)
    cfg = RnndropLanguageModelingConfig(data=str(own_data), dataset_impl=None, train_subset="train")
    with pytest.raises(InputError) as error:
        task = RnndropLanguageModelingTask.setup_task(OmegaConf.structured(cfg))
        task.load_dataset("train", combine=True)
        task.load_dataset("valid")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_data_beyond_the_memory_are_not_called_damaged(stream_data, monkeypatch):
    cfg = RnndropLanguageModelingConfig(data=str(stream_data), dataset_impl=None, train_subset="train")
    task = RnndropLanguageModelingTask.setup_task(OmegaConf.structured(cfg))
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")):
        monkeypatch.setattr(torch, "cat", Mock(side_effect=error))
        with pytest.raises(InputError, match="train.bin, .idx: there is not enough memory$"):
            task.load_dataset("train")


def test_the_task_is_called_as_those_of_fairseq_are(stream_data):
    cfg = RnndropLanguageModelingConfig(data=str(stream_data), dataset_impl=None, train_subset="train", seed=1)
    task = RnndropLanguageModelingTask.setup_task(OmegaConf.structured(cfg))
    task.load_dataset("test")
    text = task.dataset("test")
    assert sum(batch["ntokens"] for batch in task.eval_lm_dataloader(text)) == len(text)
    with pytest.raises(TypeError, match="positional"):
        task.get_batch_iterator(text, 100)  # --max-tokens to fairseq's own tasks


def test_damaged_data_end_the_command_in_one_line(refuse, own_data, tmp_path):
    damage(own_data, "a truncated index")  # where fairseq's dataset fails a second time when it is deleted
    assert "damaged/train.bin, .idx: damaged" in refuse("train", *flags(own_data, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--update-dropout", 1), "--update-dropout must be in [0, 1), got 1.0"),
        (("--arch", "rnn_rnndrop"), "--update-dropout"),
        (("--batch-size", 1000), "train: 1000 rows are more than"),
        (("--batch-size-valid", 1000), "valid: 1000 rows are more than"),
        (("--batch-size", 0), "train: --batch-size and --batch-size-valid must be at least 1, got 0"),
        (("--batch-size-valid", -2), "must be at least 1, got -2"),
        (("--adaptive-softmax-cutoff", "5"), "the model has an adaptive softmax: use --criterion adaptive_loss"),
        (("--valid-subset", "absent"), "absent.bin, .idx: no such files"),
        (("--train-subset", "absent"), "absent.bin, .idx: no such files"),
        (("--decoder-embed-path", "absent.txt"), "--decoder-embed-path absent.txt: No such file"),
        (("--decoder-embed-path", ""), "--decoder-embed-path : No such file"),
        (("--valid-subset", "valid,"), "the name of a split is empty: is there a comma too many?"),
        (("--tokens-per-sample", 0), "--tokens-per-sample"),
        (("--lr", "1,0.5"), "takes one learning rate, got 2"),
        (("--restore-file", "absent.pt"), "--restore-file absent.pt: no such file"),
        (("--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp"), "needs --adaptive-softmax-cutoff"),
        (("--criterion", "masked_lm"), "--criterion masked_lm does not fit this task: use rnndrop_cross_entropy or"),
        (("--criterion", "ctc", "--zero-infinity"), "--criterion ctc does not fit this task"),
        (("--arch", "lstm_lm"), "rnndrop_language_modeling, which needs a language model that carries its state"),
        (("--task", "language_modeling"), "pass --task rnndrop_language_modeling"),
    ],
)
def test_flags_that_cannot_be_are_refused(refuse, stream_data, tmp_path, options, message):
    arguments = flags(stream_data, tmp_path / "run")
    if options[1] == "lstm_lm":
        at = arguments.index("--update-dropout")
        del arguments[at : at + 2]
    assert message in refuse("train", *arguments, *options)
    assert not list((tmp_path / "run").glob("*"))


def test_rows_must_be_given(refuse, stream_data, tmp_path):
    arguments = flags(stream_data, tmp_path / "run")
    at = arguments.index("--batch-size")
    del arguments[at : at + 2]
    assert "--batch-size" in refuse("train", *arguments)
    assert "give the rows of the stream by --batch-size" in refuse("train", *arguments, "--max-tokens", 100)


class Foreign:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_foreign_object_in_a_checkpoint_is_refused_and_not_run(trained, refuse, stream_data, tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "checkpoint_last.pt"
    torch.save({**load(trained[0]), "more": Foreign(tmp_path / "written")}, path)
    torch.load(path, weights_only=False)
    (tmp_path / "written").unlink()  # so much for what the object can do
    (tmp_path / "prompts").write_text("w3\n")
    for command in (
        ("train", *flags(stream_data, tmp_path / "run")),
        ("eval_lm", stream_data, *TASK, "--path", path),
        ("validate", stream_data, *TASK, "--path", path, "--batch-size", 1),
        ("interactive", stream_data, *TASK, "--path", path, "--input", tmp_path / "prompts"),
    ):
        assert f"{path}: cannot load this checkpoint: it holds objects other than tensors" in refuse(*command)
        assert not (tmp_path / "written").exists()


def test_checkpoints_that_do_not_fit_are_refused(trained, refuse, own_data, stream_data, tmp_path):
    (tmp_path / "run").mkdir()
    path = Path(shutil.copy(trained[0], tmp_path / "run" / "checkpoint_last.pt"))
    resume = flags(stream_data, tmp_path / "run")
    before = path.read_bytes()
    for options in (("--arch", "gru_rnndrop"), ("--decoder-hidden-size", 9)):
        line = refuse("train", *resume, *options)
        assert str(path) in line and "decoder.rnn.weight_ih_l0 is (32, 8), expected" in line
    assert "reset the optimizer" in refuse("train", *resume, "--optimizer", "adam")

    (own_data / "dict.txt").write_text((own_data / "dict.txt").read_text() + "more 1\n")
    assert "dict.txt has 24 types" in refuse("eval_lm", own_data, *TASK, "--path", path)
    assert "25 types in the dictionary" in refuse("train", *flags(own_data, tmp_path / "run"))
    swapped = (stream_data / "dict.txt").read_text().replace("w3 ", "other ")
    (own_data / "dict.txt").write_text(swapped)
    for command in (("eval_lm", own_data, *TASK, "--path", path), ("train", *flags(own_data, tmp_path / "run"))):
        assert "the checkpoint's dict.txt has 24 types and is not the one of" in refuse(*command)

    path.write_bytes(before[: len(before) // 2])
    for command in (("train", *resume), ("eval_lm", stream_data, *TASK, "--path", path)):
        assert f"{path}: cannot load this checkpoint: it is damaged" in refuse(*command)
    torch.save({"model": {}}, path)
    assert f"{path}: cannot load this checkpoint: the file is whole, but not one of" in refuse("train", *resume)


def test_evaluation_that_would_lose_the_state_is_refused(trained, refuse, stream_data, tmp_path):
    path, _ = trained
    plain = (stream_data, "--user-dir", "rnndrop_plugin", "--path", path)
    prompt = tmp_path / "prompt"
    prompt.write_text("w3\tw1\n")
    assert "pass --task rnndrop_language_modeling" in refuse("eval_lm", *plain)
    assert "pass --task rnndrop_language_modeling" in refuse("eval_lm", *plain, "--task", "language_modeling")
    assert "--context-window is not used" in refuse("eval_lm", *plain, *TASK, "--context-window", 3)
    assert "--context-window" in refuse("eval_lm", *plain, *TASK, "--context-window", 50)
    assert "use fairseq-interactive" in refuse("generate", *plain, *TASK)
    assert "Use fairseq-interactive" in refuse("generate", *plain, *TASK, "--batch-size", 1)
    for flag in ("--score-reference", "--print-alignment"):
        assert f"{flag} does not go with" in refuse("interactive", *plain, *TASK, flag, "--input", prompt)
    assert "--constraints is not supported" in refuse("interactive", *plain, *TASK, "--constraints", "--input", prompt)
    assert "absent.pt" in refuse("eval_lm", stream_data, *TASK, "--path", tmp_path / "absent.pt")
    assert "test5.bin, .idx: no such files" in refuse("eval_lm", *plain, *TASK, "--gen-subset", "test5")
    assert "rows are more than" in refuse("eval_lm", *plain, *TASK, "--batch-size", 1000)
    assert "must be at least 1, got 0" in refuse("eval_lm", *plain, *TASK, "--batch-size", 0)
    shards = ("--num-shards", 2, "--shard-id", 2)
    assert "--shard-id must be in [0, 2), the number of shards, got 2" in refuse("eval_lm", *plain, *TASK, *shards)
    assert "must be at least 1, got 0" in refuse("validate", *plain, *TASK, "--batch-size", 0)
    prompt.write_bytes(b"caf\xe9\n")
    assert "a text is not utf-8 (byte 0xe9)" in refuse("interactive", *plain, *TASK, "--input", prompt)
