"""Sequence to sequence: the models by themselves, and under fairseq's commands on a task that is learnt in seconds."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import Dictionary, indexed_dataset
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks.translation import TranslationConfig, TranslationTask

import rnndrop_plugin
from rnndrop_plugin.criterions.cross_entropy import RnndropCrossEntropy
from rnndrop_plugin.models.seq2seq import RecurrentSeq2Seq, Seq2SeqConfig

rnndrop_plugin.register()
CELLS = ["lstm", "gru", "rnn"]
SIZES = {"encoder_embed_dim": 5, "encoder_hidden_size": 4, "decoder_embed_dim": 5, "decoder_hidden_size": 7}


def dictionary(types: int = 8) -> Dictionary:
    words = Dictionary()
    for i in range(types):
        words.add_symbol(f"w{i}")
    return words


def build(cell: str = "lstm", **flags):
    cfg = Seq2SeqConfig(**{**SIZES, "init_range": 0.5, **flags})
    task = TranslationTask(TranslationConfig(), dictionary(), dictionary())
    return MODEL_REGISTRY[f"{cell}_rnndrop_seq2seq"].build_model(cfg, task)


def left_padded(*sentences: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sentences))
    tokens = torch.tensor([[1] * (longest - len(sentence)) + sentence for sentence in sentences])
    return tokens, torch.tensor([len(sentence) for sentence in sentences])


SOURCE = left_padded([5, 6, 7, 8, 2], [9, 2], [4, 5, 9, 2])
PREVIOUS = torch.tensor([[2, 4, 5, 6], [2, 7, 7, 8], [2, 9, 1, 1]])


def generate(model, source: torch.Tensor, order: list[int] | None = None) -> torch.Tensor:
    """The logits of PREVIOUS word by word, all rows being taken in ``order`` after two words."""
    encoded = model.encoder(*source)
    previous, cache, logits = PREVIOUS, {}, []
    for t in range(previous.size(1)):
        if t == 2 and order is not None:
            previous, rows = previous[order], torch.tensor(order)
            encoded = model.encoder.reorder_encoder_out(encoded, rows)
            model.decoder.reorder_incremental_state(cache, rows)
            logits = [x[order] for x in logits]
        logits.append(model.decoder(previous[:, : t + 1], encoded, incremental_state=cache)[0])
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("feed", [True, False], ids=["feed", "no-feed"])
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_word_by_word_as_all_at_once(cell, feed):
    flags = {"encoder_layers": 2, "decoder_layers": 2, "encoder_bidirectional": True, "no_input_feed": not feed}
    dropout = {"hidden_dropout": 0.3, "weight_dropout": 0.2, "recurrent_dropout_scaling": "expected", "dropout": 0.3}
    model = build(cell, **flags, **dropout).eval()
    logits, extra = model(*SOURCE, PREVIOUS)
    torch.testing.assert_close(generate(model, SOURCE), logits)
    order = [2, 0, 0]  # as beam search gives up the hypothesis of one row and goes on twice from another's
    torch.testing.assert_close(generate(model, SOURCE, order), logits[order])
    (weights,) = extra["attn"]
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 4))
    assert weights[1, :, :3].eq(0).all() and weights[1, :, 3:].gt(0).all()  # where the source has its words


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_sentence_does_not_depend_on_its_batch(cell):
    model = build(cell, encoder_bidirectional=True, update_dropout=0 if cell == "rnn" else 0.3).eval()
    logits, _ = model(*SOURCE, PREVIOUS)
    alone, _ = model(*left_padded([9, 2]), PREVIOUS[1:2])
    torch.testing.assert_close(alone[0], logits[1])
    right = torch.tensor([[5, 6, 7, 8, 2], [9, 2, 1, 1, 1], [4, 5, 9, 2, 1]])
    from_right, extra = model(right, SOURCE[1], PREVIOUS)
    torch.testing.assert_close(from_right, logits)
    assert extra["attn"][0][1, :, 2:].eq(0).all() and extra["attn"][0][1, :, :2].gt(0).all()
    short, _ = model(*SOURCE, PREVIOUS[:, :2])
    torch.testing.assert_close(short, logits[:, :2])


def test_masks_are_those_of_the_flags():
    """A dropped cell has no output. With no context and an identity in place of W_c the decoder's features show it."""

    def dropped(model) -> torch.Tensor:
        return model.decoder.extract_features(PREVIOUS, model.encoder(*SOURCE))[0].eq(0)

    for kind in ({"cell_dropout": 0.5}, {"decoder_dropout_out": 0.5}):
        for feed, sampling in itertools.product((True, False), ("sequence", "step")):
            samplings = {"cell_dropout_sampling": sampling, "decoder_dropout_sampling": sampling}
            model = build("lstm", decoder_hidden_size=40, no_input_feed=not feed, **kind, **samplings)
            torch.nn.init.zeros_(model.encoder.values.weight)
            torch.nn.init.eye_(model.decoder.attention.weight)
            first, second = dropped(model), dropped(model)
            assert 0.3 < first.double().mean() < 0.7
            assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)
            assert (first[:, :1] == first).all() == (sampling == "sequence")
            assert not dropped(model.eval()).any()


@pytest.mark.parametrize(("own", "others"), [("sequence", "step"), ("step", "sequence")])
def test_the_encoder_draws_forward_dropout_by_its_own_flag(own, others):
    flags = {"encoder_layers": 2, "encoder_embed_dim": 40, "encoder_hidden_size": 40, "encoder_dropout_out": 0.5}
    samplings = {"encoder_dropout_sampling": own, "decoder_dropout_sampling": others}
    model = build("lstm", encoder_dropout_in=0.5, decoder_layers=2, **flags, **samplings)
    assert (model.encoder.rnn.dropout_sampling, model.decoder.rnn.dropout_sampling) == (own, others)
    dropped = []
    model.encoder.dropout_in.register_forward_hook(lambda module, inputs, output: dropped.append(output[0].eq(0)))
    model.encoder(*SOURCE)
    assert (dropped[0][:1] == dropped[0]).all() == (own == "sequence")


def test_update_and_weight_dropout_change_training_alone():
    for flags in ({"update_dropout": 0.5}, {"hidden_dropout": 0.5}, {"weight_dropout": 0.5}, {"dropout": 0.5}):
        model = build("gru", **flags)
        first, second = (model(*SOURCE, PREVIOUS)[0] for _ in range(2))
        assert not torch.allclose(first, second)
        model.eval()
        torch.testing.assert_close(model(*SOURCE, PREVIOUS)[0], model(*SOURCE, PREVIOUS)[0], rtol=0, atol=0)


@torch.no_grad()
def test_the_decoder_begins_where_both_directions_of_the_encoder_end():
    model = build("lstm", encoder_layers=2, decoder_layers=2, encoder_bidirectional=True, decoder_hidden_size=8).eval()
    source = left_padded([5, 6, 7, 8, 2])
    _, final = model.encoder.rnn(model.encoder.embed_tokens(source[0]).transpose(0, 1))
    for ours, (forward0, backward0, forward1, backward1) in zip(model.encoder(*source).state, final, strict=True):
        layers = [torch.cat([forward0, backward0], dim=1), torch.cat([forward1, backward1], dim=1)]
        torch.testing.assert_close(ours, torch.stack(layers))


@pytest.mark.parametrize("cell", CELLS)
def test_input_feeding_that_reads_nothing_is_none(cell):
    feeding, plain = build(cell, decoder_layers=2, encoder_layers=2), None
    plain = build(cell, decoder_layers=2, encoder_layers=2, no_input_feed=True)
    parameters = feeding.state_dict()
    name = "decoder.rnn.weight_ih_l0"
    parameters[name][:, 5:] = 0
    plain.load_state_dict({**parameters, name: parameters[name][:, :5]})
    logits = feeding(*SOURCE, PREVIOUS)[0], plain(*SOURCE, PREVIOUS)[0]
    torch.testing.assert_close(*logits)
    target = torch.randint(4, 12, PREVIOUS.shape)
    for x in logits:
        torch.nn.functional.cross_entropy(x.flatten(0, 1), target.flatten()).backward()
    gradients = [{n: p.grad for n, p in model.named_parameters()} for model in (feeding, plain)]
    gradients[0][name] = gradients[0][name][:, :5]
    torch.testing.assert_close(*gradients)


def test_shared_embeddings():
    model = build(share_all_embeddings=True, encoder_bidirectional=True)
    assert model.encoder.embed_tokens is model.decoder.embed_tokens
    shapes = {tuple(p.shape) for p in model.parameters()}
    assert (12, 7) not in shapes and (12, 5) in shapes and model.decoder.output_projection is None
    assert model(*SOURCE, PREVIOUS)[0].shape == (3, 4, 12)


def test_the_output_layer_and_its_loss_as_one():
    target = torch.tensor([[4, 5, 6, 2], [7, 7, 8, 2], [9, 2, 1, 1]])
    net_input = {"src_tokens": SOURCE[0], "src_lengths": SOURCE[1], "prev_output_tokens": PREVIOUS}
    sample = {"net_input": net_input, "target": target, "ntokens": 10}
    task = TranslationTask(TranslationConfig(), dictionary(), dictionary())
    fused = RnndropCrossEntropy(task, sentence_avg=False, label_smoothing=0.1)
    fairseqs = LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.1)
    for shared in (True, False):
        model = build(share_decoder_input_output_embed=shared)
        torch.testing.assert_close(fused(model, sample)[0], fairseqs(model, sample)[0])


def write_pairs(folder: Path, sizes: dict[str, int]) -> Path:
    """Parallel data as fairseq-preprocess makes them: the target is the source backwards."""
    folder.mkdir()
    words = dictionary()
    generator = torch.Generator().manual_seed(1)
    for language in ("a", "b"):
        words.save(str(folder / f"dict.{language}.txt"))
    for split, sentences in sizes.items():
        prefix = f"{folder / split}.a-b"
        builders = {x: indexed_dataset.make_builder(f"{prefix}.{x}.bin", "mmap", len(words)) for x in ("a", "b")}
        for length in torch.randint(2, 6, (sentences,), generator=generator):
            source = torch.randint(words.nspecial, len(words), (int(length),), generator=generator)
            eos = torch.tensor([words.eos()])
            builders["a"].add_item(torch.cat([source, eos]))
            builders["b"].add_item(torch.cat([source.flip(0), eos]))
        for x, builder in builders.items():
            builder.finalize(f"{prefix}.{x}.idx")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs", {"train": 600, "valid": 20, "test": 40})


def training(data: Path, cell: str, *flags) -> tuple:
    sizes = ("--encoder-embed-dim", 32, "--decoder-embed-dim", 32, "--encoder-hidden-size", 24)
    sizes += ("--decoder-hidden-size", 48, "--encoder-bidirectional", "--max-tokens", 200, "--log-format", "json")
    sizes += ("--optimizer", "adam", "--lr", 0.01, "--clip-norm", 1, "--init-range", 0.2, "--update-dropout", 0.1)
    plugin = ("--user-dir", "rnndrop_plugin", "--task", "translation", "--arch", f"{cell}_rnndrop_seq2seq")
    return ("train", data, *plugin, *sizes, "--no-epoch-checkpoints", "--num-workers", 0, "--cpu", *flags)


@pytest.mark.parametrize(
    ("cell", "flags"),
    [
        pytest.param("lstm", (), id="lstm"),
        pytest.param("gru", ("--no-input-feed",), id="gru-no-feed", marks=pytest.mark.slow),
    ],
)
def test_learns_to_turn_sentences_round(command, data, tmp_path, cell, flags):
    bleu = ("--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 10}', "--best-checkpoint-metric", "bleu")
    bleu += ("--maximize-best-checkpoint-metric",)
    log = command(*training(data, cell, *flags, *bleu, "--max-epoch", 10, "--save-dir", tmp_path))
    best = max(map(float, log.metrics("bleu", "valid")))
    assert best > 80

    best = tmp_path / "checkpoint_best.pt"
    for paths in (str(best), f"{best}:{tmp_path / 'checkpoint_last.pt'}"):
        out = tmp_path / "results"
        generation = ("--task", "translation", "--path", paths, "--beam", 3, "--results-path", out, "--cpu")
        generation += ("--num-workers", 0)
        command("generate", data, "--user-dir", "rnndrop_plugin", *generation, "--skip-invalid-size-inputs-valid-test")
        score = (out / "generate-test.txt").read_text().splitlines()[-1]
        assert float(score.split("BLEU4 = ")[1].split(",")[0]) > 80, score


def test_embeddings_of_a_checkpoint_need_no_file(command, data, tmp_path, capsys):
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    for path, value in ((source, 0.25), (target, 0.75)):
        path.write_text(f"1 32\nw3{f' {value}' * 32}\n")
    flags = ("--encoder-embed-path", source, "--decoder-embed-path", target, "--encoder-freeze-embed")
    arguments = training(data, "gru", *flags, "--max-update", 1, "--lr", 0.001, "--save-dir", tmp_path)
    command(*arguments)
    source.unlink()
    path = str(tmp_path / "checkpoint_last.pt")
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([path])
    row = task.source_dictionary.index("w3")
    assert model.encoder.embed_tokens.weight[row].eq(0.25).all()
    assert (model.decoder.embed_tokens.weight[row] - 0.75).abs().max() < 0.01
    with pytest.raises(SystemExit):  # a new run needs the file
        command(*arguments, "--restore-file", path, "--save-dir", tmp_path / "other")
    assert f"--encoder-embed-path {source}" in capsys.readouterr().err


def test_half_precision():
    for dtype in (torch.float16, torch.bfloat16):
        for feed in (True, False):
            model = build("lstm", update_dropout=0.2, dropout=0.1, no_input_feed=not feed).eval()
            expected, _ = model(*SOURCE, PREVIOUS)
            torch.testing.assert_close(model.to(dtype)(*SOURCE, PREVIOUS)[0], expected.to(dtype), rtol=0.02, atol=0.02)
            model.train()(*SOURCE, PREVIOUS)[0].square().mean().backward()
            assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("cell", CELLS[:2])
def test_resumes_bit_for_bit(command, data, tmp_path, cell):
    arguments = training(data, cell, "--dropout", 0.1, "--recurrent-dropout-sampling", "sequence")
    command(*arguments, "--max-epoch", 2, "--save-dir", tmp_path / "whole")
    command(*arguments, "--max-epoch", 1, "--save-dir", tmp_path / "parts")
    command(*arguments, "--max-epoch", 2, "--save-dir", tmp_path / "parts")
    whole, parts = (
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name / "checkpoint_last.pt"))["model"]
        for name in ("whole", "parts")
    )
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


def test_a_checkpoint_of_other_dictionaries_is_refused(command, data, tmp_path, refuse):
    """Of the same size, too: the same words in another order, or the languages exchanged."""
    other = shutil.copytree(data, tmp_path / "other")
    lines = (data / "dict.b.txt").read_text().splitlines(keepends=True)
    (other / "dict.b.txt").write_text("".join(reversed(lines)))
    arguments = training(other, "lstm", "--max-update", 1)
    command(*arguments, "--save-dir", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint_last.pt"
    generate = ("--user-dir", "rnndrop_plugin", "--task", "translation", "--path", path, "--cpu", "--num-workers", 0)
    expected = "error: the checkpoint's target dictionary has 12 types and is not the one of "
    for source, target in (("a", "b"), ("b", "a")):
        folder = data if source == "a" else other
        line = refuse("generate", folder, *generate, "-s", source, "-t", target)
        assert line.startswith(expected if source == "a" else expected.replace("target", "source"))
    another = (*training(data, "lstm", "--max-update", 2), "--save-dir")
    assert refuse(*another, tmp_path / "run").startswith(expected)
    assert refuse(*another, tmp_path / "run", "--reset-dataloader").startswith(expected)
    assert refuse(*another, tmp_path / "new", "--finetune-from-model", path).startswith(expected)
    state = torch.load(path)  # older ones do not say which they were
    del state["task_state"]["dictionaries"], state["extra_state"]["TranslationTask"]["dictionaries"]
    torch.save(state, path)
    command("generate", data, *generate)
    command(*another, tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--encoder-layers", 2), "--encoder-layers must equal --decoder-layers"),
        (("--encoder-hidden-size", 0), "--encoder-hidden-size must be at least 1, got 0"),
        (("--encoder-dropout-out", 1), "--encoder-dropout-out must be in [0, 1), got 1.0"),
        (("--dropout", -0.1), "--dropout must be in [0, 1), got -0.1"),
        (("--update-dropout", 1.5), "--update-dropout must be in [0, 1), got 1.5"),
        (("--share-all-embeddings", "--decoder-embed-dim", 6), "--share-all-embeddings needs --encoder-embed-dim 32"),
        (("--share-all-embeddings", "--decoder-freeze-embed"), "needs --encoder-freeze-embed, too"),
        (("--share-decoder-input-output-embed", "--decoder-out-embed-dim", 5), "--decoder-out-embed-dim 32"),
        (("--encoder-embed-path", "absent.txt"), "--encoder-embed-path absent.txt"),
        (("--arch", "rnn_rnndrop_seq2seq"), "--update-dropout must be 0: an RNN has no update to drop"),
    ],
    ids=lambda value: value[-2] if isinstance(value, tuple) else "",
)
def test_flags_that_cannot_be(command, data, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        command(*training(data, "lstm"), *flags)
    line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and line.startswith("error: ") and message in line


def test_the_callers_settings_stay_as_they_are():
    cfg = Seq2SeqConfig(dropout=0.3, **SIZES)
    task = TranslationTask(TranslationConfig(), dictionary(), dictionary())
    model = MODEL_REGISTRY["lstm_rnndrop_seq2seq"].build_model(cfg, task)
    assert model.encoder.dropout_in.rate == model.decoder.dropout_out.rate == 0.3
    assert cfg == Seq2SeqConfig(dropout=0.3, **SIZES)


def test_sharing_needs_one_dictionary():
    task = TranslationTask(TranslationConfig(), dictionary(8), dictionary(9))
    with pytest.raises(rnndrop_plugin.errors.InputError, match="of 12 and 13 types"):
        MODEL_REGISTRY["lstm_rnndrop_seq2seq"].build_model(Seq2SeqConfig(share_all_embeddings=True, **SIZES), task)


def test_a_task_that_does_not_translate(command, stream_data, capsys):
    with pytest.raises(SystemExit):
        command(*training(stream_data, "lstm"), "--task", "language_modeling")
    assert "this model is for --task translation, got the task LanguageModelingTask" in capsys.readouterr().err


def test_parameters_of_another_model_are_refused():
    with pytest.raises(rnndrop_plugin.errors.InputError, match="decoder.rnn.weight_ih_l0 is"):
        build().load_state_dict(build(no_input_feed=True).state_dict())


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "model.pt").touch()
    for arguments, line in (
        ((tmp_path / "absent",), "absent/checkpoint_best.pt: no such file"),
        ((tmp_path, "model.pt:other.pt"), "other.pt: no such file"),
        ((tmp_path, "model.pt", "absent"), "absent: no such folder"),
    ):
        with pytest.raises(FileNotFoundError, match=line):
            RecurrentSeq2Seq.from_pretrained(*arguments)
