"""Trained models from Python."""

import copy
import math
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnndrop_plugin.data.tokenization import Tokenization
from rnndrop_plugin.models import RecurrentClassifier, RecurrentLanguageModel, RecurrentTagger
from rnndrop_plugin.tasks.pretrained import Score

SHARED = (
    "--user-dir rnndrop_plugin --cpu --seed 1 --decoder-embed-dim 8 --decoder-hidden-size 8 --update-dropout 0.25 "
    "--optimizer adam --lr 0.03 --no-epoch-checkpoints --max-epoch 2"
).split()


def train(command, data, folder, family, *flags):
    task = {"": "language_modeling", "_tagger": "tagging", "_classifier": "classification"}[family]
    criterion = {"": "cross_entropy", "_tagger": "tagging", "_classifier": "classification"}[family]
    ours = ["--task", f"rnndrop_{task}", "--arch", f"lstm_rnndrop{family}", "--criterion", f"rnndrop_{criterion}"]
    command("train", data, *SHARED, *ours, "--batch-size", 8, "--save-dir", folder, *flags)
    return folder


@pytest.fixture(scope="module")
def language_model(command, stream_data, tmp_path_factory):
    return train(command, stream_data, tmp_path_factory.mktemp("lm"), "", "--tokens-per-sample", 10)


@pytest.fixture(scope="module")
def tagger(command, tagging_data, tmp_path_factory):
    return train(command, tagging_data, tmp_path_factory.mktemp("tagger"), "_tagger", "--bidirectional", "--crf")


@pytest.fixture(scope="module")
def classifier(command, tagging_data, tmp_path_factory):
    return train(command, tagging_data, tmp_path_factory.mktemp("classifier"), "_classifier")


def sentences(folder, split):
    """Those of a split of words, as texts."""
    from fairseq.data import Dictionary, data_utils

    dictionary = Dictionary.load(str(folder / "dict.txt"))
    return [dictionary.string(line[:-1]) for line in data_utils.load_indexed_dataset(str(folder / split), dictionary)]


def test_a_list_of_tokens_is_normalised_as_a_text_is(language_model, tagger):
    for cls, folder in ((RecurrentLanguageModel, language_model), (RecurrentTagger, tagger)):
        words = cls.from_pretrained(folder).words
        assert words(["e\u0301te\u0301", "w1\u200b\ufeff"]) == words("e\u0301te\u0301 w1\u200b\ufeff") == ["été", "w1"]
        assert words(["w1", "\u200b"]) == ["w1", "\u200b"]  # as many words as are given


def test_scores_of_a_stream_are_those_of_eval_lm(command, language_model, stream_data):
    model = RecurrentLanguageModel.from_pretrained(language_model)
    scores = model.score(sentences(stream_data, "test"), carry_state=True)
    log_probs = torch.cat([score.log_probs for score in scores]).double()
    path = language_model / "checkpoint_best.pt"
    task = ["--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling", "--gen-subset", "test", "--cpu"]
    logged = command("eval_lm", stream_data, *task, "--path", path).text()
    perplexity = float(re.search(r"Perplexity: ([\d.]+)", logged)[1])
    assert math.exp(-log_probs.mean()) == pytest.approx(perplexity, abs=0.01)
    assert f"Evaluated {len(log_probs)} tokens" in logged


def test_scores_of_texts_do_not_depend_on_each_other(language_model):
    model = RecurrentLanguageModel.from_pretrained(language_model)
    first, second, again = model.score(["w1 w2 unheard", ["w3"], "w1 w2 unheard"])
    assert first.tokens == ["w1", "w2", "<unk>", "</s>"] and second.tokens == ["w3", "</s>"]
    assert torch.equal(first.log_probs, again.log_probs)
    assert first.perplexity == pytest.approx(math.exp(-first.log_probs.mean()))
    streamed = model.score(["w1 w2", "w1 w2"], carry_state=True)
    assert not torch.equal(streamed[0].log_probs, streamed[1].log_probs)
    again = model.score(["w1 w2", "w1 w2"], carry_state=True)  # a stream of its own
    assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(again, streamed, strict=True))


def test_samples(language_model):
    model = RecurrentLanguageModel.from_pretrained(language_model)
    sample = model.sample("w1 w2", max_tokens=30, seed=3)
    assert sample.startswith("w1 w2") and sample == model.sample(["w1", "w2"], max_tokens=30, seed=3)
    assert len({model.sample("w1", max_tokens=30, seed=seed) for seed in range(5)}) > 1
    assert model.sample("w1", max_tokens=2, seed=1).count(" ") <= 2
    # at a temperature near 0 each token is the most probable one, <unk> and the like left out
    tokens = model.sample("w1", max_tokens=4, temperature=1e-6).split()
    for i in range(1, len(tokens)):
        words = model.task.dictionary.symbols[4:]
        following = [score.log_probs[i] for score in model.score([[*tokens[:i], word] for word in words])]
        assert tokens[i] == words[int(torch.stack(following).argmax())]
    assert model.sample("w1", max_tokens=4, temperature=1e-320).split() == tokens
    model.sample("w1", max_tokens=4, temperature=math.inf)
    for temperature in (0, math.nan):
        with pytest.raises(ValueError, match=f"temperature must be above 0, got {temperature}"):
            model.sample("w1", temperature=temperature)
    with pytest.raises(ValueError, match="max_tokens must not be negative, got -1"):
        model.sample("w1", max_tokens=-1)


def test_samples_without_a_seed_differ(language_model):
    model = RecurrentLanguageModel.from_pretrained(language_model)
    assert len({model.sample(max_tokens=30) for _ in range(10)}) > 1


def test_the_temperature_divides_the_logits(language_model, monkeypatch):
    model = RecurrentLanguageModel.from_pretrained(language_model)
    dictionary = model.task.dictionary
    log_probs = torch.full((len(dictionary),), -math.inf)
    log_probs[[dictionary.index("w1"), dictionary.index("w2")]] = torch.tensor([0.9, 0.1]).log()
    monkeypatch.setattr(model, "_log_probs", lambda tokens, **state: log_probs.expand(len(tokens), -1))
    for temperature, share in ((0.5, 81 / 82), (1, 9 / 10), (2, 3 / 4)):
        words = model.sample(max_tokens=3000, temperature=temperature, seed=1).split()
        assert len(words) == 3000
        assert words.count("w1") / len(words) == pytest.approx(share, abs=0.03)


def test_a_sample_is_a_text_as_the_data_had_it_before_it_was_cut(language_model):
    model = RecurrentLanguageModel.from_pretrained(language_model)
    model.tokenization = Tokenization("moses")
    assert model.sample("No more, now.", max_tokens=0) == "No more, now."


def test_symbols_that_stand_for_no_word_are_never_drawn(language_model, monkeypatch):
    model = RecurrentLanguageModel.from_pretrained(language_model)
    dictionary = model.task.dictionary
    dictionary.add_symbol("madeupword0000", 0)
    word = dictionary.index("w1")
    log_probs = torch.zeros(len(dictionary))
    log_probs[[word, dictionary.eos()]] = torch.tensor([-20.0, -60.0])
    monkeypatch.setattr(model, "_log_probs", lambda tokens, **state: log_probs.expand(len(tokens), -1))
    others = [i for i in range(dictionary.nspecial, len(dictionary) - 1) if i != word]
    log_probs[others] = -60.0
    for temperature in (1, 1e-320):  # which the logits are divided by
        sample = model.sample("w2", max_tokens=20, temperature=temperature, seed=1)
        assert sample.split() == ["w2", *["w1"] * 20]


def test_a_single_text_is_refused(language_model):
    """Its characters would be read as texts. Taggers and classifiers read texts by the same method."""
    model = RecurrentLanguageModel.from_pretrained(language_model)
    with pytest.raises(TypeError, match="expected a list of texts, got a single one"):
        model.score("w1 w2")
    with pytest.raises(TypeError, match="must be a string or a list of tokens, got 3"):
        model.score(["w1", 3])
    with pytest.raises(TypeError, match="must be a string or a list of tokens, got .'w1', 3."):
        model.score([["w1", 3]])
    for prompt in (3, b"w1", ["w1", 3]):
        with pytest.raises(TypeError, match=f"must be a string or a list of tokens, got {re.escape(repr(prompt))}"):
            model.sample(prompt)


def test_texts_come_from_any_iterable(language_model, tagger, tmp_path):
    texts = ["w1 w2", "w3"]
    (tmp_path / "texts").write_text("w1 w2\nw3\n")
    model = RecurrentLanguageModel.from_pretrained(language_model)
    with open(tmp_path / "texts") as file:
        for given in (iter(texts), map(str.split, texts), file):
            assert [score.tokens for score in model.score(given)] == [["w1", "w2", "</s>"], ["w3", "</s>"]]
    model = RecurrentTagger.from_pretrained(tagger)
    assert [len(tags) for tags in model.predict(text for text in texts)] == [2, 1]


def test_the_perplexity_of_what_cannot_be_is_infinite():
    assert Score(["w1", "w2"], torch.tensor([-1.0, -3.0])).perplexity == pytest.approx(math.exp(2))
    for log_prob in (-2000.0, -math.inf):
        assert Score(["w1"], torch.tensor([log_prob])).perplexity == math.inf


def test_the_data_say_how_texts_are_cut(command, language_model, stream_data, tmp_path):
    data = shutil.copytree(stream_data, tmp_path / "data")
    Tokenization("moses", lower=True).save(data)
    model = RecurrentLanguageModel.from_pretrained(language_model, data=data)
    assert model.score(["W1, w2"])[0].tokens == ["w1", "<unk>", "w2", "</s>"]


def test_without_a_word_of_the_data_texts_are_cut_as_those_of_the_task_are(language_model, tagger, classifier):
    text = "@you it's"
    assert RecurrentLanguageModel.from_pretrained(language_model).words(text) == ["@you", "it's"]
    assert RecurrentTagger.from_pretrained(tagger).words(text) == ["@", "you", "it", "'s"]
    assert RecurrentClassifier.from_pretrained(classifier).words(text) == ["<user>", "it", "'s"]


def test_without_a_word_of_the_data_the_checkpoint_says_how_texts_are_cut(language_model, tmp_path):
    state = torch.load(language_model / "checkpoint_best.pt")
    state["task_state"]["tokenization"] = Tokenization("moses", lower=True).settings()
    torch.save(state, tmp_path / "checkpoint_best.pt")
    model = RecurrentLanguageModel.from_pretrained(tmp_path)
    assert model.score(["W1, w2"])[0].tokens == ["w1", "<unk>", "w2", "</s>"]


def test_data_that_were_given_by_a_relative_path_are_found_from_another_folder(
    command, stream_data, tmp_path, monkeypatch
):
    plugin = Path("rnndrop_plugin").absolute()
    monkeypatch.chdir(stream_data.parent)
    flags = ("--tokens-per-sample", 10, "--max-update", 1, "--user-dir", plugin)
    folder = train(command, stream_data.name, tmp_path / "model", "", *flags)
    monkeypatch.chdir(tmp_path)
    assert RecurrentLanguageModel.from_pretrained(folder).score(["w1"])


def test_where_the_dictionaries_are_found(language_model, stream_data, tmp_path):
    for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
        shutil.copy(language_model / name, tmp_path)
    state = torch.load(tmp_path / "checkpoint_best.pt")
    state["cfg"]["task"]["data"] = "a path from another folder"
    torch.save(state, tmp_path / "checkpoint_best.pt")
    assert RecurrentLanguageModel.from_pretrained(tmp_path).score(["w1"])
    state["cfg"]["task"]["data"] = state["task_state"]["data"] = str(tmp_path / "gone")
    torch.save(state, tmp_path / "checkpoint_best.pt")
    with pytest.raises(FileNotFoundError, match="gone: no such folder; .*checkpoint_best.pt was trained on it"):
        RecurrentLanguageModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: has neither dict.txt nor word/dict.txt"):
        RecurrentLanguageModel.from_pretrained(tmp_path, data=tmp_path)
    shutil.copy(stream_data / "dict.txt", tmp_path)
    moved = RecurrentLanguageModel.from_pretrained(tmp_path).score(["w1"])[0]
    assert torch.equal(
        moved.log_probs, RecurrentLanguageModel.from_pretrained(language_model).score(["w1"])[0].log_probs
    )
    assert RecurrentLanguageModel.from_pretrained(tmp_path, "checkpoint_last.pt").score(["w1"])
    assert RecurrentLanguageModel.from_pretrained(tmp_path / "checkpoint_last.pt", data=stream_data).score(["w1"])


def test_tags(tagger):
    model = RecurrentTagger.from_pretrained(tagger)
    texts = ["W1x w2y W3y W3y", "", "w0x " * 20]
    tags = model.predict(texts)
    assert [len(row) for row in tags] == [4, 0, 20] and {tag for row in tags for tag in row} <= set(model.task.classes)
    assert model.predict([text.split() for text in texts], batch_size=1) == tags


def test_spans_of_a_model_of_iobes_tags_are_given_in_iob2(command, tagging_data, tmp_path):
    """The tags that the model chooses, read as conlleval reads them."""
    data = shutil.copytree(tagging_data, tmp_path / "data")
    dictionary = data / "tag" / "dict.txt"
    dictionary.write_text(re.sub(r"^I-", "E-", dictionary.read_text(), flags=re.MULTILINE))  # two words at most
    model = RecurrentTagger.from_pretrained(train(command, data, tmp_path / "model", "_tagger"))
    assert {"B-PER", "E-PER"} < set(model.task.classes)
    texts = ["W1x W2x w3y W2y", "W1x w2x W1y W2y W3y"]
    for row in model.predict(texts):
        assert {tag[0] for tag in row} <= set("OBI")
    model.model.decode = lambda logits, lengths: torch.tensor([[model.task.classes.index(tag) for tag in chosen]])
    chosen = ["O", "E-PER", "E-PER", "B-PER", "E-PER", "E-LOC"]
    assert model.predict(["a b c d e f"]) == [["O", "B-PER", "B-PER", "B-PER", "I-PER", "B-LOC"]]


def test_probabilities_of_labels(classifier):
    model = RecurrentClassifier.from_pretrained(classifier)
    first, none = model.predict(["W1x w2y W3y W3y", ""])
    assert set(first) == set(model.task.classes) and sum(first.values()) == pytest.approx(1) and none == {}


def test_copies_and_pickles_say_the_same(language_model, tagger, classifier):
    texts = ["W1x w2y w3", "w1"]
    for cls, folder, ask in (
        (RecurrentLanguageModel, language_model, lambda model: [s.log_probs.tolist() for s in model.score(texts)]),
        (RecurrentTagger, tagger, lambda model: model.predict(texts)),
        (RecurrentClassifier, classifier, lambda model: model.predict(texts)),
    ):
        model = cls.from_pretrained(folder)
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert ask(clone) == ask(model) and clone.task is not model.task


def test_a_pickle_is_read_by_another_process(tagger, tmp_path):
    model = RecurrentTagger.from_pretrained(tagger)
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'model')!r}, 'rb')).predict(['W1x w2y']))"
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert read.stdout == f"{model.predict(['W1x w2y'])}\n"


def test_a_model_of_another_task_is_refused(tagger):
    with pytest.raises(ValueError, match="a checkpoint of the task rnndrop_tagging, expected rnndrop_classification"):
        RecurrentClassifier.from_pretrained(tagger)
