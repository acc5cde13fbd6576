import argparse
import copy

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.language_model import RecurrentLanguageModel
from rnndrop_plugin.ops import availability
from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingConfig, RnndropLanguageModelingTask

ARCHITECTURES = ("lstm_rnndrop", "gru_rnndrop", "rnn_rnndrop")
TORCH = {"lstm_rnndrop": torch.nn.LSTM, "rnn_rnndrop": torch.nn.RNN}


def build(arch="lstm_rnndrop", types=20, from_checkpoint=False, **options) -> RecurrentLanguageModel:
    """A tiny model of a dictionary of w0, w1, ..., as the task builds it."""
    dictionary = Dictionary()
    for i in range(types):
        dictionary.add_symbol(f"w{i}")
    flags = RnndropLanguageModelingConfig(data="", dataset_impl=None, train_subset="train")
    task = RnndropLanguageModelingTask(OmegaConf.structured(flags), {"": dictionary})
    cfg = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[arch])
    sizes = {"decoder_embed_dim": 6, "decoder_hidden_size": 6}
    cfg = OmegaConf.merge(cfg, {"_name": arch, **sizes, **options})
    return task.build_model(cfg, from_checkpoint)


def tokens(model, rows: int = 3, steps: int = 8) -> torch.Tensor:
    dictionary = model.decoder.dictionary
    return torch.randint(dictionary.nspecial, len(dictionary), (rows, steps))


def logits(model, source, **options) -> torch.Tensor:
    return model(source, **options)[0]


# The state


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("training", [False, True])
def test_two_half_windows_equal_one_whole_window(arch, training):
    model = build(arch, decoder_layers=2).train(training)
    source = tokens(model)
    whole = logits(model, source, starts_stream=True)
    first = logits(model, source[:, :5], starts_stream=True)
    second = logits(model, source[:, 5:], starts_stream=False)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=1e-6)


def test_two_half_windows_equal_one_whole_window_under_the_same_masks():
    # Masks of one layer are drawn step by step from one generator, in words of 8 bytes; where a step fills such
    # words (4 rows of 6 units), two windows draw what one does.
    model = build(update_dropout=0.5, hidden_dropout=0.0).train()
    source = tokens(model, rows=4)
    torch.manual_seed(7)
    whole = logits(model, source, starts_stream=True)
    torch.manual_seed(7)
    first = logits(model, source[:, :5], starts_stream=True)
    second = logits(model, source[:, 5:], starts_stream=False)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=1e-6)
    assert not torch.allclose(logits(model, source, starts_stream=True), whole, atol=1e-3)  # the masks do count


def test_gradients_stop_at_the_window():
    model = build().train()
    source = tokens(model)
    logits(model, source, starts_stream=True)
    assert all(not state.requires_grad for state in model.decoder.carried[True])
    logits(model, source, starts_stream=False).sum().backward()  # not through the freed graph of the first window


def test_a_stream_that_starts_forgets_the_last_one():
    model = build().eval()
    source = tokens(model)
    fresh = logits(model, source, starts_stream=True)
    continued = logits(model, source, starts_stream=False)
    assert not torch.allclose(continued, fresh, atol=1e-4)
    assert torch.equal(logits(model, source, starts_stream=True), fresh)


def test_training_and_evaluation_do_not_disturb_each_other():
    model = build()
    first, second, other = tokens(model), tokens(model), tokens(model, rows=2)
    undisturbed = copy.deepcopy(model).train()
    logits(undisturbed, first, starts_stream=True)
    expected = logits(undisturbed, second, starts_stream=False)

    logits(model.train(), first, starts_stream=True)
    logits(model.eval(), other, starts_stream=True)
    logits(model.eval(), other, starts_stream=False)
    assert torch.equal(logits(model.train(), second, starts_stream=False), expected)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_independent_sequences_neither_read_nor_leave_a_state(arch):
    model = build(arch).eval()
    source = tokens(model)
    fresh = logits(model, source, starts_stream=True)
    carried = [state.clone() for state in model.decoder.carried[False]]
    assert torch.equal(logits(model, source), fresh)
    logits(model, source.flip(1))
    assert all(torch.equal(a, b) for a, b in zip(model.decoder.carried[False], carried, strict=True))


# Generation


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_step_by_step_equals_the_whole_prefix(arch):
    model = build(arch, decoder_layers=2).eval()
    source = tokens(model)
    cache = {}
    steps = [logits(model, source[:, : i + 1], incremental_state=cache) for i in range(source.size(1))]
    assert [step.size(1) for step in steps] == [1] * source.size(1)
    torch.testing.assert_close(torch.cat(steps, dim=1), logits(model, source), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_beam_search_scores_each_hypothesis_as_the_whole_sequence(arch):
    model = build(arch, init_range=1.0).eval()
    dictionary = model.decoder.dictionary
    prompts = tokens(model, rows=2, steps=2)
    source = torch.cat([torch.full((2, 1), dictionary.eos()), prompts], dim=1)
    sample = {"net_input": {"src_tokens": source, "src_lengths": torch.full((2,), 3)}}
    generator = SequenceGenerator([model], dictionary, beam_size=4, max_len_b=6, min_len=4)
    results = generator.generate([model], sample, prefix_tokens=prompts, bos_token=dictionary.eos())
    for prompt, hypotheses in zip(prompts, results, strict=True):
        assert len(hypotheses) == 4
        for hypothesis in hypotheses:
            words = hypothesis["tokens"]
            assert torch.equal(words[:2], prompt)
            history = torch.cat([torch.tensor([dictionary.eos()]), words[:-1]])
            scores = logits(model, history[None]).log_softmax(-1)[0].gather(1, words[:, None])[:, 0]
            torch.testing.assert_close(hypothesis["positional_scores"], scores, rtol=0, atol=1e-5)
    parents = {tuple(hypothesis["tokens"][:3].tolist()) for hypothesis in results[0]}
    assert len(parents) > 1  # otherwise the cache has hardly been reordered


# Architectures


@pytest.mark.parametrize("arch", TORCH)
def test_in_evaluation_the_model_is_embeddings_torchs_layers_and_a_product(arch):
    options = {"update_dropout": 0.25} if arch == "lstm_rnndrop" else {"hidden_dropout": 0.25}
    model = build(arch, decoder_layers=2, decoder_dropout_in=0.5, decoder_dropout_out=0.5, **options).eval()
    rnn = TORCH[arch](6, 6, 2)
    rnn.load_state_dict(model.decoder.rnn.state_dict())
    source = tokens(model)
    features = rnn(model.decoder.embed_tokens(source).transpose(0, 1))[0].transpose(0, 1)
    torch.testing.assert_close(logits(model, source), model.decoder.output_projection(features), rtol=0, atol=1e-6)


def test_forward_dropout_is_where_it_is_said_to_be():
    model = build(decoder_embed_dim=400, decoder_hidden_size=400, decoder_dropout_in=0.75, decoder_dropout_out=0.25)
    source = tokens(model, rows=4, steps=10)
    kept = []
    model.decoder.rnn.register_forward_pre_hook(lambda module, inputs: kept.append((inputs[0] != 0).float().mean()))
    features, _ = model.train().decoder.extract_features(source)
    assert kept[0] == pytest.approx(0.25, abs=0.02)
    assert (features != 0).float().mean() == pytest.approx(0.75, abs=0.02)


def test_forward_dropout_of_a_sequence_is_the_same_at_all_steps():
    sizes = {"decoder_embed_dim": 40, "decoder_hidden_size": 40, "decoder_out_embed_dim": 30}
    rates = {"decoder_dropout_in": 0.5, "decoder_dropout_out": 0.5}
    model = build(decoder_dropout_sampling="sequence", decoder_layers=2, **sizes, **rates).train()
    inputs = []
    model.decoder.rnn.register_forward_pre_hook(lambda module, args: inputs.append(args[0].transpose(0, 1)))
    features, extra = model.decoder.extract_features(tokens(model, rows=4, steps=10))
    for x in (inputs[0], extra["dropped_outputs"], features):
        dropped = x == 0
        assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
        assert dropped.float().mean() == pytest.approx(0.5, abs=0.2)
    assert model.decoder.rnn.dropout_sampling == "sequence"


@pytest.mark.parametrize("layers", [1, 2])
def test_forward_dropout_of_the_outputs_is_between_the_layers_too(layers):
    rnn = build(decoder_layers=layers, decoder_dropout_out=0.5).train().decoder.rnn
    x = torch.randn(5, 3, 6)
    assert torch.equal(rnn(x)[0], rnn(x)[0]) == (layers == 1)


@pytest.mark.parametrize("kind", ["update", "hidden", "cell"])
def test_each_kind_of_dropout_has_its_own_flags(kind):
    rnn = build(**{f"{kind}_dropout": 0.5, f"{kind}_dropout_sampling": "sequence"}).decoder.rnn
    for name in ("update", "hidden", "cell"):
        found = getattr(rnn, f"{name}_dropout"), getattr(rnn, f"{name}_sampling")
        assert found == ((0.5, "sequence") if name == kind else (0.0, "step"))


def test_dropped_words_have_no_embedding_and_weights_are_dropped_in_the_recurrence():
    model = build(decoder_embed_dropout=0.5, weight_dropout=0.25).train()
    inputs = []
    model.decoder.rnn.register_forward_pre_hook(lambda module, args: inputs.append(args[0].transpose(0, 1)))
    source = tokens(model, rows=8, steps=10)
    model(source)
    embedded = model.decoder.embed_tokens(source)
    dropped = (inputs[0] == 0).all(2, keepdim=True)
    assert dropped.float().mean() == pytest.approx(0.5, abs=0.2)
    torch.testing.assert_close(inputs[0], embedded * ~dropped * 2)
    assert model.decoder.rnn.weight_dropout == 0.25


def test_the_output_layer_of_shared_embeddings_may_have_a_bias():
    model = build(share_decoder_input_output_embed=True, decoder_output_bias=True)
    bias = model.decoder.output_bias
    assert bias.shape == (len(model.decoder.dictionary),) and not bias.any()
    torch.nn.init.normal_(bias)
    source = tokens(model)
    expected = model.decoder.extract_features(source)[0] @ model.decoder.embed_tokens.weight.T + bias
    torch.testing.assert_close(logits(model, source), expected)
    assert "decoder.output_bias" not in build(share_decoder_input_output_embed=True).state_dict()


def test_shared_embeddings_are_the_output_layer():
    model = build(share_decoder_input_output_embed=True).eval()
    assert model.decoder.projection is None
    assert not any(name.startswith("decoder.output_projection") for name in model.state_dict())
    source = tokens(model)
    expected = model.decoder.extract_features(source)[0] @ model.decoder.embed_tokens.weight.T
    torch.testing.assert_close(logits(model, source), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_a_projection_lies_between_other_sizes(shared):
    options = {"share_decoder_input_output_embed": True} if shared else {"decoder_out_embed_dim": 4}
    model = build(decoder_embed_dim=4, decoder_hidden_size=10, **options)
    assert model.decoder.projection.weight.shape == (4, 10)
    source = tokens(model)
    logits(model, source).sum().backward()
    assert logits(model, source).shape == (3, 8, len(model.decoder.dictionary))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_feed_forward_layer_is_added_to_the_recurrent_output():
    model = build(decoder_ffn_embed_dim=9, decoder_out_embed_dim=4, init_range=1.0).eval()
    features, extra = model.decoder.extract_features(source := tokens(model))
    (w1, b1), (w2, b2) = (
        layer.parameters() for layer in (model.decoder.feed_forward[0], model.decoder.feed_forward[2])
    )
    outputs = extra["outputs"]
    read = torch.cat([outputs, model.decoder.embed_tokens(source)], dim=2)
    expected = outputs + (read @ w1.T + b1).clamp(min=0) @ w2.T + b2
    torch.testing.assert_close(features, model.decoder.projection(expected))


@pytest.mark.parametrize("sampling", ["step", "sequence"])
def test_a_feed_forward_layer_that_gives_zero_is_none(sampling):
    """Under dropout, too: the mask of the recurrent output is the same, and does not change with the layer."""
    flags = {"decoder_dropout_out": 0.5, "decoder_dropout_sampling": sampling, "update_dropout": 0.25}
    plain, deep = build(**flags).train(), build(decoder_ffn_embed_dim=9, **flags).train()
    torch.nn.init.zeros_(deep.decoder.feed_forward[2].weight)
    torch.nn.init.zeros_(deep.decoder.feed_forward[2].bias)
    deep.load_state_dict({**deep.state_dict(), **plain.state_dict()})
    source, drawn = tokens(plain), []
    for model in (plain, deep):
        torch.manual_seed(3)
        drawn.append(logits(model, source))
    torch.testing.assert_close(*drawn, rtol=0, atol=0)


def test_the_output_of_a_feed_forward_layer_is_dropped_as_the_recurrent_one():
    model = build(decoder_hidden_size=400, decoder_ffn_embed_dim=50, decoder_dropout_out=0.25, init_range=1.0).train()
    features, extra = model.decoder.extract_features(tokens(model, rows=4, steps=10))
    assert ((features - extra["dropped_outputs"]) != 0).float().mean() == pytest.approx(0.75, abs=0.02)
    assert (features != 0).float().mean() == pytest.approx(1 - 0.25**2, abs=0.02)


def test_an_adaptive_softmax_normalizes_over_all_words():
    model = build(decoder_hidden_size=16, adaptive_softmax_cutoff="5,12").eval()
    assert model.decoder.adaptive_softmax.cutoff == [5, 12, 24]
    source = tokens(model)
    probabilities = model.get_normalized_probs(model(source), log_probs=False)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 8))


def test_an_adaptive_softmax_has_a_loss_for_every_word_but_padding():
    """Also for those that have the padding's number in their cluster, which fairseq leaves out."""
    model = build(decoder_hidden_size=16, adaptive_softmax_cutoff="5,12").eval()
    source, pad = tokens(model), model.decoder.dictionary.pad()
    target = torch.arange(24).view(3, 8)
    features, extra = model(source)
    outputs, targets = model.decoder.adaptive_softmax(features.flatten(0, 1), target.flatten())
    clusters = [(o, t) for o, t in zip(outputs, targets, strict=True) if t is not None]
    loss = sum(cross_entropy(o, t, ignore_index=pad, reduction="sum") for o, t in clusters)
    log_probs = model.get_normalized_probs((features, extra), log_probs=True).gather(2, target.unsqueeze(2))
    torch.testing.assert_close(loss, -log_probs[target != pad].sum())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "options",
    [{}, {"share_decoder_input_output_embed": True, "decoder_hidden_size": 9}, {"adaptive_softmax_cutoff": "10"}],
)
def test_all_parameters_are_uniform_in_the_range(arch, options):
    model = build(arch, init_range=0.03, **options)
    padding = model.decoder.dictionary.pad()
    for name, parameter in model.named_parameters():
        if name == "decoder.embed_tokens.weight":
            assert not parameter[padding].any()
            parameter = torch.cat([parameter[:padding], parameter[padding + 1 :]])
        assert 0.015 < parameter.abs().max() <= 0.03, name
        assert parameter.std().item() == pytest.approx(0.03 / 3**0.5, rel=0.5), name


def test_backends_start_from_the_same_parameters_and_agree():
    torch.manual_seed(3)
    reference = build(recurrent_backend="reference", update_dropout=0.25)
    torch.manual_seed(3)
    fast = build(update_dropout=0.25)
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), fast.parameters(), strict=True))
    source = tokens(fast)
    outputs = []
    for model in (reference.train(), fast.train()):
        torch.manual_seed(4)
        outputs.append(logits(model, source))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)


def test_presets_are_the_papers():
    word = {"decoder_embed_dim": 256, "decoder_hidden_size": 256, "decoder_layers": 1, "init_range": 0.05}
    char = {"decoder_embed_dim": 256, "decoder_hidden_size": 1024, "decoder_layers": 1, "init_range": 0.01}
    presets = {f"{cell}_rnndrop_ptb_word": word for cell in ("lstm", "gru", "rnn")} | {"lstm_rnndrop_ptb_char": char}
    for name, values in presets.items():
        cfg = MODEL_DATACLASS_REGISTRY[name]()
        assert {key: getattr(cfg, key) for key in values} == values
        assert cfg.recurrent_dropout_scaling == "expected"
        rates = ("decoder_dropout_in", "decoder_dropout_out", "update_dropout", "hidden_dropout", "cell_dropout")
        assert not any(getattr(cfg, rate) for rate in rates)


def test_the_stronger_model_of_256_units_has_three_million_parameters():
    cfg = MODEL_DATACLASS_REGISTRY["lstm_rnndrop_ptb_word_256"]()
    sizes = {"decoder_embed_dim": cfg.decoder_embed_dim, "decoder_hidden_size": cfg.decoder_hidden_size}
    model = build("lstm_rnndrop_ptb_word_256", types=9998, **sizes)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == 10_002 * 256 + 10_002 + 4 * 256 * (256 + 256 + 1) == 3_095_826
    assert (model.decoder.rnn.update_dropout, model.decoder.rnn.weight_dropout) == (0, 0.2)
    assert model.decoder.dropout_out.sampling == "sequence"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_bias_leaves_the_other_at_zero(arch):
    model = build(f"{arch}_ptb_word", decoder_layers=2)
    biases = {name: bias for name, bias in model.decoder.rnn.named_parameters() if name.startswith("bias")}
    assert len(biases) == 4
    for name, bias in biases.items():
        assert bias.requires_grad is bias.any().item() is name.startswith("bias_ih")
    assert all(parameter.requires_grad for parameter in build(arch).parameters())


def test_expected_scaling_evaluates_with_the_mean():
    model = build("lstm_rnndrop_ptb_word", update_dropout=0.25).eval()
    plain = build("lstm_rnndrop_ptb_word").eval()
    plain.load_state_dict(model.state_dict())
    source = tokens(model)
    assert not torch.allclose(logits(model, source), logits(plain, source), atol=1e-6)
    assert torch.equal(logits(model, source), logits(model, source))


def test_every_flag_explains_itself():
    parser = argparse.ArgumentParser()
    gen_parser_from_dataclass(parser, MODEL_DATACLASS_REGISTRY["lstm_rnndrop"]())
    gen_parser_from_dataclass(parser, RnndropLanguageModelingConfig())
    for action in parser._actions:
        if action.dest not in ("dataset_impl", "train_subset"):
            assert len(action.help or "") > 10, action.dest
    text = " ".join(parser.format_help().split())  # argparse fails on a stray % sign
    assert "--recurrent-dropout-sampling {step,sequence}" in text
    assert "--recurrent-dropout-scaling {inverted,expected}" in text
    preset = argparse.ArgumentParser()
    gen_parser_from_dataclass(preset, MODEL_DATACLASS_REGISTRY["lstm_rnndrop_ptb_word"]())
    assert "--recurrent-dropout-scaling {inverted,expected}" in " ".join(preset.format_help().split())


# Pretrained embeddings


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("4 3\nw3 1 2 3\nabsent 4 5 6\n<pad> 4 5 6\nw5 7 8 9\n")
    return path


def test_embeddings_are_read_and_may_be_frozen(vectors):
    options = {"decoder_embed_dim": 3, "decoder_embed_path": str(vectors), "init_range": 0.5}
    for freeze in (False, True):
        model = build(**options, decoder_freeze_embed=freeze)
        embeddings, dictionary = model.decoder.embed_tokens.weight, model.decoder.dictionary
        assert embeddings.requires_grad is not freeze
        assert embeddings[dictionary.index("w3")].tolist() == [1, 2, 3]
        assert embeddings[dictionary.index("w5")].tolist() == [7, 8, 9]
        assert embeddings[dictionary.index("w4")].abs().max() <= 0.5
        assert embeddings[dictionary.pad()].tolist() == [0, 0, 0]  # whatever the file has for it
    build(**options, from_checkpoint=True)
    vectors.unlink()
    build(**options, from_checkpoint=True)  # whose parameters come from the checkpoint
    with pytest.raises(InputError, match="--decoder-embed-path .*vectors.txt: No such file"):
        build(**options)


def test_embeddings_of_another_size_are_refused(vectors):
    message = r"--decoder-embed-path .*, line 1: vectors of 3 numbers, expected 6 \(--decoder-embed-dim\)"
    with pytest.raises(InputError, match=message):
        build(decoder_embed_path=str(vectors))


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_dropout": 1.0}, r"--update-dropout must be in \[0, 1\), got 1.0"),
        ({"hidden_dropout": -0.1}, r"--hidden-dropout must be in \[0, 1\), got -0.1"),
        ({"cell_dropout": float("nan")}, r"--cell-dropout must be in \[0, 1\), got nan"),
        ({"decoder_dropout_in": 1.0}, r"--decoder-dropout-in must be in \[0, 1\), got 1.0"),
        ({"decoder_dropout_out": 2.0}, r"--decoder-dropout-out must be in \[0, 1\), got 2.0"),
        ({"decoder_embed_dropout": 1.0}, r"--decoder-embed-dropout must be in \[0, 1\), got 1.0"),
        ({"weight_dropout": -0.5}, r"--weight-dropout must be in \[0, 1\), got -0.5"),
        ({"arch": "rnn_rnndrop", "update_dropout": 0.1}, "--update-dropout"),
        ({"arch": "rnn_rnndrop", "cell_dropout": 0.1}, "--cell-dropout"),
        ({"recurrent_biases": 0}, "--recurrent-biases must be 1 or 2, got 0"),
        ({"init_range": -1.0}, "--init-range must be a number of at least 0, got -1.0"),
        ({"init_range": float("nan")}, "--init-range must be a number of at least 0, got nan"),
        ({"init_range": float("inf")}, "--init-range must be a number of at least 0, got inf"),
        ({"decoder_out_embed_dim": 0}, "--decoder-out-embed-dim must be at least 1, got 0"),
        ({"decoder_ffn_embed_dim": 0}, "--decoder-ffn-embed-dim must be at least 1, got 0"),
        ({"decoder_ffn_embed_dim": 10**20}, r"--decoder-ffn-embed-dim must be less than 2\*\*63, got 1000"),
        ({"decoder_embed_dim": 0}, "--decoder-embed-dim must be at least 1, got 0"),
        ({"decoder_hidden_size": 0}, "--decoder-hidden-size must be at least 1, got 0"),
        ({"decoder_layers": 0}, "--decoder-layers must be at least 1, got 0"),
        ({"recurrent_backend": "vendor", "hidden_dropout": 0.5}, "--recurrent-backend 'vendor' cannot run"),
        ({"arch": "gru_rnndrop", "recurrent_backend": "vendor"}, "--recurrent-backend 'vendor' cannot run"),
        ({"share_decoder_input_output_embed": True, "decoder_out_embed_dim": 5}, "--decoder-out-embed-dim 6 .* got 5"),
        ({"decoder_output_bias": True}, "--decoder-output-bias needs --share-decoder-input-output-embed"),
        ({"adaptive_softmax_cutoff": "5", "share_decoder_input_output_embed": True}, "cannot be combined"),
        ({"adaptive_softmax_cutoff": "5", "decoder_out_embed_dim": 4}, "cannot be combined"),
        ({"adaptive_softmax_cutoff": "8,5"}, "must be increasing numbers from 4 to the dictionary's 24, got '8,5'"),
        ({"adaptive_softmax_cutoff": "5,5"}, "must be increasing numbers"),
        ({"adaptive_softmax_cutoff": "3,5"}, "must be increasing numbers"),
        ({"adaptive_softmax_cutoff": "5,25"}, "must be increasing numbers"),
        ({"adaptive_softmax_cutoff": "5,x"}, "must be increasing numbers"),
        ({"adaptive_softmax_cutoff": "5,12"}, "--decoder-hidden-size 6 is too small for 2 of them"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        build(**options)
    assert "\n" not in str(error.value)


def test_triton_is_refused_where_there_is_no_gpu(monkeypatch):
    """The model is built on the CPU, wherever it is going to train."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = "^--recurrent-backend 'triton' cannot run this recurrence: there is no GPU that torch can use$"
    with pytest.raises(InputError, match=message):
        build(recurrent_backend="triton")
    monkeypatch.setattr(availability, "obstacle", lambda device, dtype: None)
    build(recurrent_backend="triton")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "gru_rnndrop"}, r"decoder.rnn.weight_ih_l0 is \(24, 6\), expected \(18, 6\)"),
        ({"decoder_hidden_size": 7}, r"decoder.rnn.weight_ih_l0 is \(24, 6\), expected \(28, 6\)"),
        ({"types": 30}, r"34 types in the dictionary.*decoder.embed_tokens.weight is \(24, 6\), expected \(34, 6\)"),
        ({"decoder_layers": 2}, "decoder.rnn.weight_ih_l1 is missing"),
        ({"share_decoder_input_output_embed": True}, "decoder.output_projection.weight is not known"),
        ({"adaptive_softmax_cutoff": "10"}, "decoder.adaptive_softmax.* is missing"),
    ],
)
def test_parameters_of_another_model_are_refused_in_one_line(options, message):
    saved = build().state_dict()
    with pytest.raises(InputError, match=message) as error:
        build(**options).load_state_dict(saved)
    assert "\n" not in str(error.value)
