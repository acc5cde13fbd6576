"""--teachers: what is drawn from them, what a model learns of it, and which teachers are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch.nn.functional import one_hot

from rnndrop_plugin.data.stream import ContiguousWindows
from rnndrop_plugin.models.language_model import RecurrentDecoder, RecurrentLanguageModel
from rnndrop_plugin.tasks import teachers

FLAGS = (
    "--user-dir rnndrop_plugin --task rnndrop_language_modeling --cpu --batch-size 4 --tokens-per-sample 6 "
    "--optimizer sgd --lr 1 --criterion rnndrop_cross_entropy --decoder-embed-dim 8 --decoder-hidden-size 8 "
    "--max-epoch 2"
).split()


@pytest.fixture(scope="module")
def trained(command, stream_data, tmp_path_factory) -> list[str]:
    """Checkpoints of two teachers of different kinds; parameters far from each other's and from 0."""
    folder = tmp_path_factory.mktemp("teachers")
    adaptive = ("--adaptive-softmax-cutoff", 10, "--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp")
    kinds = (("lstm_rnndrop", 1, ()), ("gru_rnndrop", 2, adaptive))
    for arch, seed, others in kinds:
        flags = (*FLAGS, "--arch", arch, "--seed", seed, "--init-range", 2, "--max-update", 1, *others)
        command("train", stream_data, *flags, "--save-dir", folder / arch)
    return [str(folder / arch / "checkpoint_last.pt") for arch, _, _ in kinds]


@pytest.fixture
def train(command, stream_data, trained, tmp_path):
    """Train a student into the folder ``name``."""

    def run(name, *others, taught_by=None):
        flags = (*FLAGS, "--arch", "lstm_rnndrop", "--teachers", taught_by or ":".join(trained), "--seed", 3)
        return command("train", stream_data, *flags, "--save-dir", tmp_path / name, *others)

    return run


def build(data, *flags):
    """A task, a model, its criterion and the training's batches."""
    arguments = [str(data), *FLAGS, "--arch", "lstm_rnndrop", "--init-range", "1", *map(str, flags)]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    task = tasks.setup_task(cfg.task)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.datasets["train"], max_sentences=5, update_epoch_batch_itr=False)
    return task, model, criterion, batches


def test_the_words_are_drawn_from_the_mean_of_the_teachers_at_each_token(stream_data, trained, monkeypatch):
    monkeypatch.setattr(teachers, "WORDS", 20_000)
    task, *_ = build(stream_data)
    models = teachers.load(":".join(trained), str(stream_data), type(task), torch.device("cpu"))
    tokens = task.datasets["train"].tokens[:50]
    windows = ContiguousWindows(tokens, task.dictionary, rows=4, steps=5)
    drawn = teachers.draw_words(models, windows, seed=1)
    assert drawn.shape == (4, 13, 20_000)
    probs = 0
    for model in models:
        model.decoder.carried[False] = None
        probs = probs + model.get_normalized_probs(model(windows.source), log_probs=False) / 2  # each row as a whole
    counts = one_hot(drawn.long(), len(task.dictionary)).sum(2)
    torch.testing.assert_close(counts / 20_000, probs, rtol=0, atol=0.02)
    assert probs.std(1).max() > 0.1  # they differ from token to token by more than that
    again = teachers.draw_words(models, windows, seed=1)
    assert torch.equal(drawn, again) and not torch.equal(drawn, teachers.draw_words(models, windows, seed=2))
    shard = ContiguousWindows(tokens, task.dictionary, rows=4, steps=5, num_shards=2, shard=1)
    counts = one_hot(teachers.draw_words(models, shard, seed=1).long(), len(task.dictionary)).sum(2)
    torch.testing.assert_close(counts / 20_000, probs[2:], rtol=0, atol=0.02)


def test_each_window_has_its_words(stream_data, trained):
    task, _, _, batches = build(stream_data, "--teachers", trained[0], "--variable-bptt")
    assert task.teacher_words.shape[:2] == batches.dataset.target.shape
    for _ in (1, 2):
        words = [batch["teacher_words"] for batch in batches.next_epoch_itr()]
        assert torch.equal(torch.cat(words, 1), task.teacher_words)
    validation = task.get_batch_iterator(task.datasets["train"], max_sentences=4)
    assert "teacher_words" not in validation.first_batch


class Own(RecurrentDecoder):
    """One whose output layer is not computed together with the loss."""

    def output_layer(self, features, **kwargs):
        return 3 * super().output_layer(features)


@pytest.mark.parametrize("decoder", [RecurrentDecoder, Own])
@pytest.mark.parametrize("flags", [(), ("--share-decoder-input-output-embed",), ("--label-smoothing", "0.1")])
def test_the_loss_is_the_cross_entropy_with_the_words_and_the_target(stream_data, trained, monkeypatch, decoder, flags):
    monkeypatch.setattr(RecurrentLanguageModel, "decoder_class", decoder)
    flags = ("--teachers", trained[0], "--teacher-weight", 0.7, *flags)
    _, model, criterion, batches = build(stream_data, *flags)
    assert model.decoder.is_linear == (decoder is RecurrentDecoder)
    *_, batch = batches.next_epoch_itr()
    target = batch["target"]
    assert (target == 1).any()  # padding at the end of the text
    batch["net_input"]["starts_stream"] = True
    loss, nll = criterion.compute_loss(model, batch)
    logs = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True).double()
    types = logs.size(2)
    true, drawn = one_hot(target, types).double(), one_hot(batch["teacher_words"].long(), types).double().mean(2)
    smoothing = criterion.label_smoothing
    wanted = (0.3 - smoothing) * true + 0.7 * drawn + smoothing * (1 - true) / (types - 1)
    scored = (target != 1).unsqueeze(2)
    expected = -(wanted * logs * scored).sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(nll.double(), -(true * logs * scored).sum(), rtol=1e-5, atol=1e-4)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), rtol=1e-4, atol=1e-4
    )
    model.eval()
    loss, nll = criterion.compute_loss(model, batch)
    assert loss == nll or smoothing  # what a validation reports is of the text alone


def test_a_run_that_is_killed_ends_like_an_uninterrupted_one(train, tmp_path):
    train("whole")
    train("killed", "--max-update", 7)
    train("killed")
    whole, killed = (
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert whole["optimizer_history"][-1]["num_updates"] == killed["optimizer_history"][-1]["num_updates"] > 7
    for name, value in whole["model"].items():
        assert torch.equal(value, killed["model"][name]), name


def test_the_teachers_are_not_needed_any_more(command, train, trained, stream_data, tmp_path):
    path = tmp_path / "teacher.pt"
    shutil.copy(trained[0], path)
    train("student", "--max-update", 2, taught_by=str(path))
    path.unlink()
    flags = FLAGS[:5]
    checkpoint = tmp_path / "student" / "checkpoint_last.pt"
    logged = command("eval_lm", stream_data, *flags, "--path", checkpoint)
    assert any("Perplexity" in record.getMessage() for record in logged)


def test_a_teacher_of_another_dictionary_or_task_is_refused(
    command, refuse, stream_data, tagging_data, trained, tmp_path
):
    flags = ("--arch", "lstm_rnndrop", "--teachers", trained[0], "--save-dir", tmp_path / "student")
    other = Path(shutil.copytree(stream_data, tmp_path / "data"))
    (other / "dict.txt").write_text((other / "dict.txt").read_text().replace("w3 ", "other "))
    assert "--teachers: the checkpoint's dict.txt has 24 types and is not" in refuse("train", other, *FLAGS, *flags)
    tagger = (
        "--user-dir rnndrop_plugin --arch lstm_rnndrop_tagger --criterion rnndrop_tagging --cpu --batch-size 4 "
        "--optimizer sgd --lr 1 --max-update 1 --decoder-embed-dim 8 --decoder-hidden-size 8"
    ).split()
    command("train", tagging_data, *tagger, "--save-dir", tmp_path / "tagger")
    flags = (*flags, "--teachers", tmp_path / "tagger" / "checkpoint_last.pt")
    assert "expected rnndrop_language_modeling" in refuse("train", stream_data, *FLAGS, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--teacher-weight", 1.5), "--teacher-weight must be in [0, 1], got 1.5"),
        (("--teacher-weight", "nan"), "--teacher-weight must be in [0, 1], got nan"),
        (("--teacher-weight", 0.8, "--label-smoothing", 0.3), "are more than 1 together"),
        (("--criterion", "cross_entropy"), "--teachers needs --criterion rnndrop_cross_entropy"),
        (("--teachers", "missing.pt"), "--teachers: missing.pt"),
        (("--teachers", ""), "--teachers: "),
    ],
)
def test_what_cannot_teach_is_refused(refuse, stream_data, trained, tmp_path, flags, words):
    line = refuse(
        "train", stream_data, *FLAGS, "--arch", "lstm_rnndrop", "--teachers", trained[0], *flags, "--save-dir", tmp_path
    )
    assert words in line
    assert not list(tmp_path.iterdir())
