"""--teachers: what is drawn from them, what a model learns of it, and which teachers are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch.nn.functional import one_hot

from rnndrop_plugin.data import indexed
from rnndrop_plugin.models.language_model import RecurrentDecoder, RecurrentLanguageModel
from rnndrop_plugin.tasks import teachers
from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingTask
from rnndrop_plugin.tasks.teachers import Teachers

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
    arguments = [str(data), *FLAGS, "--arch", "lstm_rnndrop", "--init-range", "1", "--no-save", *map(str, flags)]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    task = tasks.setup_task(cfg.task)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.datasets["train"], max_sentences=5, update_epoch_batch_itr=False)
    return task, model, criterion, batches


@pytest.fixture
def make_teachers(stream_data, trained):
    def make(seed=1):
        return Teachers(
            ":".join(trained), str(stream_data), RnndropLanguageModelingTask, torch.device("cpu"), seed=seed
        )

    return make


def mean_probs(models, tokens):
    """The mean of the models' probabilities after each of ``tokens``, each row read at once, from a zero state."""
    outputs = [model.get_normalized_probs(model(tokens), log_probs=False) for model in models]
    return sum(outputs).detach() / len(models)


def shares(words, types=24):
    return one_hot(words.long(), types).double().mean(-2)


def test_a_text_is_read_with_the_mean_of_the_teachers(make_teachers, monkeypatch):
    monkeypatch.setattr(teachers, "WORDS", 20_000)
    monkeypatch.setattr(teachers, "ROWS", 4)
    monkeypatch.setattr(teachers, "STEPS", 5)
    own = make_teachers()
    text = torch.randint(4, 24, (50,), generator=torch.Generator().manual_seed(1))
    words = own.read(text)
    assert words.shape == (50, 20_000)
    before = torch.cat([torch.tensor([2]), text[:-1], torch.tensor([1, 1])]).view(4, 13)
    expected = mean_probs(own.models, before).flatten(0, 1)[:50]
    torch.testing.assert_close(shares(words), expected.double(), rtol=0, atol=0.02)
    assert expected.std(0).max() > 0.1  # they differ from token to token by more than that
    assert own.read(text[:3]).shape == (3, 20_000)  # fewer tokens than rows
    assert torch.equal(words, make_teachers().read(text))
    assert not torch.equal(words, make_teachers(seed=2).read(text))


def test_a_teacher_that_is_named_twice_counts_twice(stream_data, trained):
    paths = f"{trained[0]}:{trained[0]}:{trained[1]}"
    own = Teachers(paths, str(stream_data), RnndropLanguageModelingTask, torch.device("cpu"), seed=1)
    tokens = torch.tensor([[2]])
    words = own._draw(tokens, True, 100_000)
    torch.testing.assert_close(shares(words[0]), mean_probs(own.models, tokens)[0].double(), rtol=0, atol=0.01)
    assert len(own.models) == 3


def test_a_text_is_written_by_the_mean_of_the_teachers(make_teachers, monkeypatch):
    monkeypatch.setattr(teachers, "ROWS", 3000)
    own = make_teachers()
    text, words = own.write(6000)  # two tokens in each row
    assert text.shape == (6000,) and words.shape == (6000, 50)
    rows, words = text.view(3000, 2), words.view(3000, 2, 50)
    assert not set(text.tolist()) & {0, 1}  # neither <s> nor padding
    allowed = torch.ones(24).index_fill(0, torch.tensor([0, 1]), 0)
    first = mean_probs(own.models, torch.tensor([[2]]))[0, 0] * allowed
    first = (first / first.sum()).double()
    torch.testing.assert_close(shares(rows[:, 0]), first, rtol=0, atol=0.04)
    torch.testing.assert_close(shares(words[:, 0]).mean(0), first, rtol=0, atol=0.01)
    likeliest = int(first.argmax())
    chosen = rows[:, 0] == likeliest
    assert chosen.sum() > 200
    second = mean_probs(own.models, torch.tensor([[2, likeliest]]))[0, 1] * allowed
    second = (second / second.sum()).double()
    torch.testing.assert_close(shares(rows[chosen, 1]), second, rtol=0, atol=0.1)
    torch.testing.assert_close(shares(words[chosen, 1]).mean(0), second, rtol=0, atol=0.02)
    agree = (text == words.flatten(0, 1)[:, 0]).float().mean()  # a token is none of its own words but by chance
    assert 0.05 < agree < 0.5
    assert torch.equal(text, make_teachers().write(6000)[0])
    monkeypatch.setattr(indexed, "count_made_up", lambda dictionary: 3)  # such as fill its end
    text, _ = own.write(6001)
    assert len(text) == 6001 and int(text.max()) == 20


def test_what_is_written_follows_what_is_read(make_teachers):
    text, own = torch.arange(4, 24), make_teachers()
    parts = list(zip((text, own.read(text)), own.write(7), strict=True))
    for joined, part in zip(make_teachers().teach(text, 7), parts, strict=True):
        assert torch.equal(joined, torch.cat(part))


def test_each_window_has_the_words_of_its_tokens(stream_data, trained):
    task, _, _, batches = build(stream_data, "--teachers", trained[0], "--variable-bptt", "--teacher-text", 31)
    assert task.lesson is None  # before an epoch begins
    read = list(batches.next_epoch_itr())
    text, words = task.lesson
    tokens = task.datasets["train"].tokens
    reader = Teachers(trained[0], str(stream_data), type(task), torch.device("cpu"), seed=1)
    assert torch.equal(words[: len(tokens)], reader.read(tokens)) and task.train_layout["tokens"] == len(text)
    task_of_another_seed, *_, others = build(stream_data, "--teachers", trained[0], "--teacher-text", 31, "--seed", 2)
    others.next_epoch_itr()
    assert not torch.equal(words, task_of_another_seed.lesson[1])
    assert len(text) == len(words) == len(tokens) + 31 and torch.equal(text[: len(tokens)], tokens)
    for _ in (1, 2):
        for name, expected in (("target", text), ("teacher_words", words)):
            stream = torch.cat([batch[name] for batch in read], 1).flatten(0, 1)
            assert torch.equal(stream[: len(text)], expected)
        read = list(batches.next_epoch_itr())
    shards = [
        task.get_batch_iterator(
            task.datasets["train"], max_sentences=2, num_shards=2, shard_id=shard, update_epoch_batch_itr=False
        ).next_epoch_itr()
        for shard in (0, 1)
    ]
    rows = [torch.cat([batch["teacher_words"] for batch in batches], 1) for batches in shards]
    assert torch.equal(torch.cat(rows).flatten(0, 1)[: len(text)], words)
    assert task.lesson[0] is text  # read and written once
    validation = task.get_batch_iterator(task.datasets["train"], max_sentences=4)
    assert "teacher_words" not in validation.first_batch and validation.dataset.target.numel() < len(text)


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


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_is_killed_ends_like_an_uninterrupted_one(train, tmp_path, kept, monkeypatch):
    flags = ("--teacher-text", 100, "--max-epoch", 2)
    train("whole", *flags)
    train("killed", *flags, "--max-update", 7)
    if kept:
        monkeypatch.setattr(Teachers, "read", lambda *_: pytest.fail("reads again what has been kept"))
    else:
        (tmp_path / "killed" / "teachers.pt").unlink()
    train("killed", *flags)
    whole, killed = (
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert whole["optimizer_history"][-1]["num_updates"] == killed["optimizer_history"][-1]["num_updates"] > 7
    for name, value in whole["model"].items():
        assert torch.equal(value, killed["model"][name]), name


def test_a_lesson_is_kept_for_the_same_teachers_and_text(tmp_path, caplog):
    text, words = torch.arange(7), torch.arange(35, dtype=torch.int32).view(7, 5)
    path = tmp_path / "new" / "teachers.pt"
    assert teachers.load("a", text[:4], 3, path) is None
    teachers.save((text, words), "a", path)
    assert all(map(torch.equal, teachers.load("a", text[:4], 3, path), (text, words)))
    for others in (("b", text[:4], 3), ("a", text[:4], 2), ("a", text[:5], 3), ("a", text[:4] + 1, 3)):
        assert teachers.load(*others, path) is None
    assert not caplog.records
    whole = path.read_bytes()
    content = words.numpy().tobytes()
    assert content in whole
    changed = whole.replace(content, content[::-1])
    for content in (b"", whole[:-9], changed):
        path.write_bytes(content)
        caplog.clear()
        assert teachers.load("a", text[:4], 3, path) is None
        assert f"{path}: is damaged, the teachers begin anew" in caplog.text
    torch.save([text], path)
    assert teachers.load("a", text[:4], 3, path) is None


def test_what_tells_the_words_of_teachers_from_those_of_others(tmp_path):
    paths = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for path in paths:
        path.write_bytes(b"parameters")
    named = ":".join(map(str, paths))
    digests = [teachers.digest(named, seed) for seed in (1, 2)]
    assert digests[0] == teachers.digest(named, 1)
    paths[1].write_bytes(b"trained anew")
    digests.append(teachers.digest(named, 1))
    paths[1].unlink()
    digests.append(teachers.digest(named, 1))
    assert len(set(digests)) == 4


def test_the_first_process_keeps_what_is_drawn(stream_data, trained, tmp_path):
    for shard in (1, 0):
        task, *_ = build(stream_data, "--teachers", trained[0])
        task.cfg.no_save, task.cfg.save_dir = False, str(tmp_path)
        share = {"max_sentences": 2, "num_shards": 2, "shard_id": shard, "update_epoch_batch_itr": False}
        task.get_batch_iterator(task.datasets["train"], **share).next_epoch_itr()
        assert len(list(tmp_path.iterdir())) == (shard == 0)


def test_nothing_is_kept_with_no_save(train, tmp_path):
    train("student", "--max-update", 1, "--no-save")
    assert not list((tmp_path / "student").iterdir())


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
    line = refuse("train", other, *FLAGS, *flags)
    assert f"--teachers: {trained[0]}: the checkpoint's dict.txt has 24 types and is not" in line
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
        (("--teachers", ""), "--teachers: an empty path: there is no file"),
        (("--teachers", "one.pt:"), "--teachers: one.pt:: there is no file before or after a colon"),
        (("--teacher-text", -1), "--teacher-text must not be negative, got -1"),
    ],
)
def test_what_cannot_teach_is_refused(refuse, stream_data, trained, tmp_path, flags, words):
    line = refuse(
        "train", stream_data, *FLAGS, "--arch", "lstm_rnndrop", "--teachers", trained[0], *flags, "--save-dir", tmp_path
    )
    assert words in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [("--teacher-text", 100), ("--teacher-weight", 0.3)])
def test_what_needs_teachers(refuse, stream_data, tmp_path, flags):
    line = refuse("train", stream_data, *FLAGS, "--arch", "lstm_rnndrop", *flags, "--save-dir", tmp_path)
    assert "needs --teachers" in line


def test_a_teacher_that_has_diverged_is_refused(refuse, stream_data, trained, tmp_path):
    path = tmp_path / "diverged.pt"
    checkpoint = torch.load(trained[0], weights_only=False)
    for parameter in checkpoint["model"].values():
        parameter *= float("nan")
    torch.save(checkpoint, path)
    flags = ("--arch", "lstm_rnndrop", "--teachers", f"{trained[1]}:{path}", "--save-dir", tmp_path / "student")
    assert f"--teachers: {path}: its probabilities are not finite" in refuse("train", stream_data, *FLAGS, *flags)


def test_a_teacher_that_would_be_overwritten_is_refused(refuse, stream_data, trained):
    flags = ("--arch", "lstm_rnndrop", "--teachers", ":".join(trained), "--save-dir", Path(trained[1]).parent)
    assert f"--teachers: {trained[1]}: is in --save-dir" in refuse("train", stream_data, *FLAGS, *flags)


def test_the_teachers_begin_when_the_training_does(refuse, train, trained, stream_data, tmp_path, monkeypatch):
    """Not before the other flags have been checked, and not for a run that has ended."""
    path = tmp_path / "a:b.pt"  # one file
    shutil.copy(trained[0], path)
    train("student", "--max-epoch", 1, taught_by=str(path))
    path.unlink()
    assert "has already ended" in train("student", "--max-epoch", 1, taught_by=str(path)).text()
    monkeypatch.setattr(Teachers, "read", lambda *_: pytest.fail("too early"))
    flags = ("--arch", "lstm_rnndrop", "--teachers", trained[0], "--save-dir", tmp_path / "other")
    line = refuse("train", stream_data, *FLAGS, *flags, "--best-checkpoint-metric", "foo")
    assert "foo" in line


def test_a_state_does_not_go_on_in_the_text_of_other_teachers(train, trained, tmp_path):
    flags = ("--teacher-text", 100)
    train("student", *flags, "--max-update", 3, taught_by=trained[0])
    assert "the state starts from zero" not in train("student", *flags, "--max-update", 5, taught_by=trained[0]).text()
    assert "the state starts from zero" in train("student", *flags, "--max-update", 7, taught_by=trained[1]).text()
