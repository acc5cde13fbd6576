import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

import rnndrop_plugin
from rnndrop_plugin.errors import InputError

rnndrop_plugin.register()

SMALL = {"decoder_embed_dim": 6, "decoder_hidden_size": 8, "init_range": 0.5}
CELLS = ("lstm", "gru", "rnn")
TARGETS = {"tagger": "tag", "classifier": "label"}


class Task:
    """What a model asks of its task."""

    def __init__(self, data, target: str, features=("capitalisation", "characters"), padding_factor: int = 1):
        names = ["word", target, *features]
        self.dictionaries = {name: Dictionary.load(str(data / name / "dict.txt")) for name in names}
        for dictionary in self.dictionaries.values():
            dictionary.pad_to_multiple_(padding_factor)
        self.target_dictionary = self.dictionaries[target]
        self.classes = self.target_dictionary.symbols[self.target_dictionary.nspecial :]


def build(kind: str, data, cell: str = "lstm", features=("capitalisation", "characters"), padding_factor=1, **changes):
    arch = f"{cell}_rnndrop_{kind}"
    cfg = OmegaConf.merge(OmegaConf.structured(MODEL_DATACLASS_REGISTRY[arch]), SMALL, changes)
    task = Task(data, TARGETS[kind], features, padding_factor)
    return ARCH_MODEL_REGISTRY[arch].build_model(cfg, task).eval()


def batch(lengths, words: int = 9, longest: int | None = None):
    """Random words and features, padded to ``longest``; words of up to five characters, padded to seven."""
    longest = longest or max(lengths)
    src_tokens = torch.randint(4, words, (len(lengths), longest))
    capitalisation = torch.randint(4, 6, (len(lengths), longest))
    characters = torch.randint(4, 12, (len(lengths), longest, 7))
    characters[torch.arange(7) >= torch.randint(1, 6, (len(lengths), longest, 1))] = 1
    for i, length in enumerate(lengths):
        src_tokens[i, length:] = capitalisation[i, length:] = characters[i, length:] = 1
    return {
        "src_tokens": src_tokens,
        "src_lengths": torch.tensor(lengths),
        "capitalisation": capitalisation,
        "characters": characters,
    }


def test_a_classifier_drops_no_more_than_it_uses(tagging_data, monkeypatch):
    model = build("classifier", tagging_data, decoder_dropout_out=0.5).train()
    dropout, dropped = torch.nn.functional.dropout, []

    def watched(x, rate, *rest):
        if rate > 0:
            dropped.append(tuple(x.shape))
        return dropout(x, rate, *rest)

    monkeypatch.setattr(torch.nn.functional, "dropout", watched)
    model(**batch([4, 2]))
    assert dropped == [(2, 8)]  # the last state of each sequence


def test_the_state_dict_is_all_that_a_model_has(tagging_data):
    """So a model that was made on the meta device is whole once it is loaded."""
    options = {"context": "conv", "character_filters": 5, "crf": True, "bidirectional": True}
    model, other = (build("tagger", tagging_data, **options) for _ in range(2))
    other = other.to("meta").to_empty(device="cpu")
    for tensor in (*other.parameters(), *other.buffers()):
        tensor.data.fill_(1)
    other.load_state_dict(model.state_dict())
    sample = batch([4, 2])
    assert torch.equal(other(**sample), model(**sample))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", ["tagger", "classifier"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_sequence_is_read_the_same_in_any_batch(tagging_data, kind, cell, nonlinearity):
    """Padding must not leak: neither into the last step's state nor into the context of the last words."""
    tagger = {"context": "conv", "character_filters": 5, "bidirectional": True}
    changes = tagger if kind == "tagger" else {"decoder_layers": 2}
    model = build(kind, tagging_data, cell, recurrent_nonlinearity=nonlinearity, **changes)
    with torch.no_grad():
        model.features.embed_tokens.weight[1] = 3.0  # the vector of padding in an older checkpoint
    lengths = [7, 1, 12, 3]
    inputs = batch(lengths, longest=14)
    together = model(**inputs)
    for i, length in enumerate(lengths):
        alone = {
            "src_tokens": inputs["src_tokens"][i : i + 1, :length],
            "src_lengths": torch.tensor([length]),
            "capitalisation": inputs["capitalisation"][i : i + 1, :length],
            "characters": inputs["characters"][i : i + 1, :length, :5],
        }
        expected = model(**alone)[0]
        torch.testing.assert_close(together[i, :length] if kind == "tagger" else together[i], expected)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_the_label_is_read_from_the_last_step(tagging_data, cell, layers):
    model = build("classifier", tagging_data, cell, decoder_layers=layers)
    inputs = batch([5, 2])
    logits = model(**inputs)
    for i, length in enumerate([5, 2]):
        x = model.features(inputs["src_tokens"][i : i + 1, :length], inputs["capitalisation"][i : i + 1, :length])
        output, _ = model.rnn(x.transpose(0, 1))
        torch.testing.assert_close(logits[i], model.output_projection(output[-1, 0]))


@pytest.mark.parametrize("context", ["none", "conv", "concat"])
def test_an_extract_sees_its_neighbours_in_the_sentence(tagging_data, context):
    """An extract's logits are those of its words alone, given the context that the whole sentence makes."""
    model = build("tagger", tagging_data, context=context)
    inputs = batch([12, 9])
    starts, lengths = torch.tensor([4, 0]), torch.tensor([5, 3])
    logits = model(**{**inputs, "src_lengths": lengths}, starts=starts)
    assert logits.shape == (2, 5, len(Task(tagging_data, "tag").classes))
    for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        x = model.features(inputs["src_tokens"][i : i + 1], inputs["capitalisation"][i : i + 1])
        x = x if model.context is None else model.context(x)
        output, _ = model.rnn(x[:, start : start + length].transpose(0, 1))
        torch.testing.assert_close(logits[i, :length], model.output_projection(output[:, 0]))


def test_features_are_the_embedding_and_one_number_a_class(tagging_data):
    model = build("tagger", tagging_data)
    features = model.features(torch.tensor([[5, 1]]), torch.tensor([[5, 1]]))
    assert torch.equal(features[0, 0], torch.cat([model.features.embed_tokens.weight[5], torch.tensor([0.0, 1.0])]))
    assert torch.equal(features[0, 1], torch.zeros(8))
    assert build("tagger", tagging_data, features=()).features.output_size == 6


def test_characters_stand_between_the_embedding_and_the_capitalisation(tagging_data):
    model = build("tagger", tagging_data, character_filters=5)
    inputs = batch([3])
    features = model.features(inputs["src_tokens"], inputs["capitalisation"], inputs["characters"])
    assert features.size(2) == model.features.output_size == 6 + 5 + 2
    assert torch.equal(features[..., 6:11], model.features.characters(inputs["characters"]))
    plain = build("tagger", tagging_data)  # without filters the characters are not read
    assert torch.equal(plain(**inputs), plain(**{**inputs, "characters": inputs["characters"].flip(2)}))


def test_filters_need_characters(tagging_data):
    with pytest.raises(InputError, match="--character-filters needs data with the words' characters, got 5"):
        build("tagger", tagging_data, features=("capitalisation",), character_filters=5)


def test_static_embeddings_are_read_and_not_trained(tagging_data, tmp_path):
    word = Task(tagging_data, "tag").dictionaries["word"][7]
    path = tmp_path / "vectors.txt"
    path.write_text(f"<pad> 3 3 3 3 3 3\n</s> 6 5 4 3 2 1\n{word} 1 2 3 4 5 6\n")
    model = build("tagger", tagging_data, decoder_embed_path=str(path), decoder_freeze_embed=True)
    weight = model.features.embed_tokens.weight
    assert weight[7].tolist() == [1, 2, 3, 4, 5, 6] and not weight.requires_grad
    assert not weight[1].any()  # padding, whatever the file has for it
    assert weight[2].tolist() == [6, 5, 4, 3, 2, 1]
    with pytest.raises(InputError, match="--decoder-embed-path .*vectors.txt, line 1.* 5"):
        build("tagger", tagging_data, decoder_embed_path=str(path), decoder_embed_dim=5)


def test_dropout_in_and_out_are_of_the_recurrence(tagging_data):
    """The input connections are what the recurrence reads (after the context), the output ones what it gives."""
    model = build("tagger", tagging_data, context="conv", decoder_dropout_in=0.5, decoder_dropout_out=0.5).train()
    seen = {}
    model.rnn.register_forward_hook(lambda _, inputs, outputs: seen.update(x=inputs[0].data, y=outputs[0].data))
    model.output_projection.register_forward_hook(lambda _, inputs, __: seen.update(z=inputs[0]))
    model(**batch([30] * 20))
    assert seen["x"].size(1) == 256
    assert 0.45 < (seen["x"] != 0).float().mean() < 0.55
    assert 0.45 < (seen["z"] != 0).float().mean() < 0.55 and (seen["y"] != 0).all()


def test_a_crf_adds_its_parameters_and_decodes_paths(tagging_data):
    model = build("tagger", tagging_data, crf=True)
    inputs = batch([6, 4])
    logits = model(**inputs)
    target = torch.randint(5, (2, 6))
    lengths = inputs["src_lengths"]
    assert torch.equal(model.loss(logits, target, lengths), model.crf(logits, target, lengths).sum())
    assert torch.equal(model.decode(logits, lengths), model.crf.decode(logits, lengths))
    assert {"crf.transitions", "crf.start", "crf.end"} <= set(model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": "conv", "context_width": 4}, "--context-width must be odd.* got 4"),
        ({"context": "concat", "context_width": 0}, "--context-width must be odd.* got 0"),
        ({"context_filters": 0}, "--context-filters must be at least 1, got 0"),
        ({"character_filters": -1}, "--character-filters must be at least 0, got -1"),
        ({"decoder_embed_dim": 0}, "--decoder-embed-dim must be at least 1"),
        ({"decoder_dropout_in": 1.0}, "--decoder-dropout-in must be in"),
        ({"update_dropout": -0.1}, "--update-dropout must be in"),
        ({"init_range": -1.0}, "--init-range must be a number of at least 0"),
    ],
)
def test_flags_that_cannot_be(tagging_data, changes, message):
    with pytest.raises(InputError, match=message):
        build("tagger", tagging_data, **changes)


def older(name: str, value: torch.Tensor, model, capitalisation: int, classes: int) -> torch.Tensor:
    """A parameter as it was when symbols that fairseq made up were classes: with that many more rows and columns."""

    def widen(value, dim):
        shape = list(value.shape)
        shape[dim] = classes
        return torch.cat([value, torch.full(shape, 0.1)], dim)

    if name.startswith(("output_projection.", "crf.")):
        for dim in range(2 if name == "crf.transitions" else 1):
            value = widen(value, dim)
    elif name == "context.convolution.weight" or name.startswith("rnn.weight_ih_l0") and model.context is None:
        value = torch.cat([value, torch.randn(len(value), capitalisation, *value.shape[2:])], 1)
    elif name.startswith("rnn.weight_ih_l0") and type(model.context).__name__ == "ConcatContext":
        words = value.unflatten(1, (5, -1))
        value = torch.cat([words, torch.randn(len(words), 5, capitalisation)], 2).flatten(1)
    return value


@pytest.mark.parametrize("context", ["none", "conv", "concat"])
def test_a_checkpoint_with_made_up_classes_loads_without_them(tagging_data, context):
    """fairseq-preprocess makes a dictionary's size a multiple of 8: 2 symbols of capitalisation, 7 of tags."""
    options = {"context": context, "crf": True, "bidirectional": True}
    plain = build("tagger", tagging_data, **options)
    padded = build("tagger", tagging_data, padding_factor=8, **options)
    sizes = {"capitalisation": 2, "classes": 7}
    state = {name: older(name, value, plain, **sizes) for name, value in plain.state_dict().items()}
    state["features.embed_tokens.weight"] = padded.state_dict()["features.embed_tokens.weight"].clone()
    words = len(plain.features.embed_tokens.weight)
    state["features.embed_tokens.weight"][:words] = plain.features.embed_tokens.weight
    assert not padded.was_narrowed
    padded.load_state_dict(state)
    assert padded.was_narrowed and padded.output_projection.out_features == 5
    inputs = batch([6, 3])
    torch.testing.assert_close(padded(**inputs), plain(**inputs))
    assert not plain.was_narrowed


def test_parameters_of_another_model_are_refused(tagging_data):
    one, other = build("tagger", tagging_data), build("tagger", tagging_data, context="concat")
    with pytest.raises(InputError, match=r"do not fit this model \(LSTM, .* types in the dictionary, 5 classes\): rnn"):
        one.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="crf.transitions is missing"):
        build("tagger", tagging_data, crf=True).load_state_dict(one.state_dict())
    loaded = build("tagger", tagging_data, crf=True).load_state_dict(one.state_dict(), strict=False)
    assert sorted(loaded.missing_keys) == ["crf.end", "crf.start", "crf.transitions"] and not loaded.unexpected_keys


PRESETS = {
    "tagger_conll2003": {"context": "conv", "decoder_hidden_size": 1024, "recurrent_nonlinearity": "relu"},
    "tagger_conll2003_concat": {"context": "concat", "decoder_hidden_size": 1024, "recurrent_nonlinearity": "relu"},
    "classifier_temporal_order": {
        "decoder_hidden_size": 256,
        "decoder_embed_dim": 4,
        "decoder_freeze_embed": True,
        "init_range": 0.2,
    },
    "classifier_semeval": {
        "decoder_hidden_size": 500,
        "decoder_dropout_in": 0.2,
        "decoder_dropout_out": 0.5,
        "recurrent_nonlinearity": "relu",
        "init_range": 0.05,
    },
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("cell", CELLS)
def test_presets_are_those_of_the_paper(tagging_data, preset, cell):
    cls = ARCH_MODEL_REGISTRY[f"{cell}_rnndrop_{preset}"]
    cfg = OmegaConf.structured(getattr(cls, "__dataclass"))
    values = {"recurrent_dropout_scaling": "expected", "recurrent_biases": 1, **PRESETS[preset]}
    assert {name: str(cfg[name]) for name in values} == {name: str(value) for name, value in values.items()}
    assert cfg.update_dropout == cfg.hidden_dropout == cfg.cell_dropout == 0
    target = "tag" if "tagger" in preset else "label"
    model = cls.build_model(cfg, Task(tagging_data, target))
    assert type(model.rnn).__name__ == cell.upper() and model.rnn.hidden_size == cfg.decoder_hidden_size
    assert model.rnn.scaling == "expected" and model.rnn.nonlinearity == str(cfg.recurrent_nonlinearity)
    inputs = batch([3, 2])
    assert model(**inputs).isfinite().all()
