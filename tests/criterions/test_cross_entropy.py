"""rnndrop_cross_entropy: the losses and updates of fairseq's criteria, and the paper's perplexity beside them."""

import math

import pytest
import torch
from fairseq import checkpoint_utils, options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics

from rnndrop_plugin.criterions import RnndropCrossEntropy
from rnndrop_plugin.criterions.cross_entropy import activation_penalty, linear_preference
from rnndrop_plugin.models.language_model import RecurrentDecoder, RecurrentLanguageModel
from rnndrop_plugin.ops.cross_entropy import chunked, dispatch

ARGUMENTS = (
    "--user-dir rnndrop_plugin --cpu --batch-size 4 --tokens-per-sample 6 --optimizer sgd --lr 1 --clip-norm 5 "
    "--max-update 5 --log-format json --log-interval 1 --seed 3"
).split()
OURS = (
    "--task rnndrop_language_modeling --arch lstm_rnndrop --decoder-embed-dim 8 --decoder-hidden-size 8 "
    "--update-dropout 0.3 --decoder-dropout-in 0.1 --decoder-dropout-out 0.4"
).split()
BUILT_IN = "--task language_modeling --sample-break-mode none --num-workers 0 --decoder-embed-dim 8".split()
BUILT_IN_LSTM = [*BUILT_IN, *"--arch lstm_lm --decoder-hidden-size 8 --decoder-out-embed-dim 8".split()]
BUILT_IN_ADAPTIVE = [
    *BUILT_IN,
    *"--arch transformer_lm --decoder-layers 1 --decoder-attention-heads 1 --decoder-ffn-embed-dim 8".split(),
    *"--adaptive-softmax-cutoff 10".split(),
]


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Chunks of some rows at these sizes, and no way around them."""
    monkeypatch.setattr(dispatch, "SMALL", 0)
    monkeypatch.setattr(chunked, "ROWS", 1)
    monkeypatch.setattr(chunked, "CHUNK", 100)


@pytest.fixture
def train(command, stream_data, tmp_path):
    def run(criterion, *arguments, model=OURS):
        folder = tmp_path / criterion
        logged = command(
            "train", stream_data, *ARGUMENTS, *model, "--criterion", criterion, "--save-dir", folder, *arguments
        )
        saved = torch.load(folder / "checkpoint_last.pt", weights_only=True)
        return logged, saved["model"]

    return run


def assert_same_run(run, other, names):
    (logged, parameters), (other_logged, other_parameters) = run, other
    logs = [("train_inner", 5, name) for name in ("gnorm", *names)] + [("valid", 1, name) for name in names]
    for tag, lines, name in logs:
        found = [float(value) for value in logged.metrics(name, tag)]
        expected = [float(value) for value in other_logged.metrics(name, tag)]
        assert len(found) == lines
        assert found == pytest.approx(expected, abs=1.1e-3)  # printed to three decimals
    for name, value in parameters.items():
        torch.testing.assert_close(value, other_parameters[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "arguments",
    [
        "--sentence-avg",
        "--share-decoder-input-output-embed --sentence-avg",
        "--decoder-out-embed-dim 5 --update-freq 2",
    ],
)
def test_same_run_as_cross_entropy(train, arguments):
    names = ("loss", "nll_loss") if "--sentence-avg" in arguments else ("loss",)
    ours = train("rnndrop_cross_entropy", *arguments.split())
    assert_same_run(ours, train("cross_entropy", *arguments.split()), names)
    assert ours[0].metrics("nll_loss", "valid")  # logged even where it equals the loss


def test_same_run_as_label_smoothed_cross_entropy(train):
    smoothing = ["--label-smoothing", "0.1"]
    ours = train("rnndrop_cross_entropy", *smoothing)
    assert_same_run(ours, train("label_smoothed_cross_entropy", *smoothing), ("loss", "nll_loss"))


def test_a_model_of_fairseq(train):
    ours = train("rnndrop_cross_entropy", model=BUILT_IN_LSTM)
    assert_same_run(ours, train("cross_entropy", model=BUILT_IN_LSTM), ("loss",))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half(stream_data, dtype):
    """As --fp16 and --bf16 run it (which fairseq does on accelerators only)."""
    arguments = [str(stream_data), *ARGUMENTS, *OURS, "--criterion", "rnndrop_cross_entropy"]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    task = tasks.setup_task(cfg.task)
    model, criterion = task.build_model(cfg.model).eval(), task.build_criterion(cfg.criterion)
    task.load_dataset("valid")
    sample = task.get_batch_iterator(task.dataset("valid"), max_sentences=4).first_batch
    expected, _, _ = criterion(model, sample)
    loss, sample_size, logged = criterion.to(dtype)(model.to(dtype), sample)
    loss.backward()
    assert loss.dtype == logged["nll_loss"].dtype == torch.float32 and sample_size == 24
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    assert model.decoder.output_projection.weight.grad.dtype == dtype


def test_batch_mean(train, command, stream_data, tmp_path):
    """In training and in fairseq-validate, ppl is of the mean NLL and ppl_batch_mean the mean of the batches'."""
    logged, _ = train("rnndrop_cross_entropy", "--sentence-avg", "--label-smoothing", "0.1", "--init-range", "2")
    path = tmp_path / "rnndrop_cross_entropy" / "checkpoint_last.pt"
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    task.load_dataset("valid")
    nlls, counts = [], []
    model.eval()
    with torch.no_grad():
        for sample in task.get_batch_iterator(task.dataset("valid"), max_sentences=4).next_epoch_itr(shuffle=False):
            logits = model(**sample["net_input"])[0].flatten(0, 1).double()
            target = sample["target"].flatten()
            nlls.append(torch.nn.functional.cross_entropy(logits, target, ignore_index=1, reduction="sum").item())
            counts.append(int((target != 1).sum()))
    assert len(counts) > 3 and counts[-1] < counts[0]
    ppl = math.exp(sum(nlls) / sum(counts))
    batch_mean = sum(math.exp(nll / count) for nll, count in zip(nlls, counts, strict=True)) / len(counts)
    assert batch_mean > ppl + 0.02

    validated = command(
        "validate", stream_data, "--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling", "--cpu",
        "--path", path, "--batch-size", "4", "--log-format", "json", "--valid-subset", "valid",
    )  # fmt: skip
    for run in (logged, validated):
        assert float(run.metrics("ppl", "valid")[0]) == pytest.approx(ppl, abs=0.01)
        assert float(run.metrics("ppl_batch_mean", "valid")[0]) == pytest.approx(batch_mean, abs=0.006)
        assert float(run.metrics("nll_loss", "valid")[0]) == pytest.approx(math.log2(ppl), abs=0.001)


def test_sums_of_processes():
    """Two batches, each of two processes of which one has no target left in the second, alone and together."""
    assert RnndropCrossEntropy.logging_outputs_can_be_summed()
    logs = [
        [
            {"loss": 4.0, "nll_loss": 3.0, "ntokens": 3, "nsentences": 2, "sample_size": 2},
            {"loss": 2.0, "nll_loss": 2.0, "ntokens": 1, "nsentences": 2, "sample_size": 2},
        ],
        [
            {"loss": 3.0, "nll_loss": 2.0, "ntokens": 1, "nsentences": 2, "sample_size": 2},
            {"loss": 0.0, "nll_loss": 0.0, "ntokens": 0, "nsentences": 2, "sample_size": 2},
        ],
    ]
    batches = [{name: sum(log[name] for log in batch) for name in batch[0]} for batch in logs]
    for groups in ([batches], [batches[:1], batches[1:]]):
        with metrics.aggregate(new_root=True) as meters:
            for group in groups:
                RnndropCrossEntropy.reduce_metrics(group)
        values = meters.get_smoothed_values()
        assert values["loss"] == pytest.approx(9 / 8 / math.log(2), abs=1e-3)
        assert values["nll_loss"] == pytest.approx(7 / 5 / math.log(2), abs=1e-3)
        assert values["ppl"] == pytest.approx(math.exp(7 / 5), abs=0.01)
        assert values["ppl_batch_mean"] == pytest.approx((math.exp(5 / 4) + math.exp(2)) / 2, abs=0.01)


def test_meters_hold_numbers_not_tensors():
    """A tensor on a GPU would be added up there, by each of fairseq's aggregators at each update."""
    log = {"loss": torch.tensor(4.0), "nll_loss": torch.tensor(300.0), "ntokens": 3, "nsentences": 2, "sample_size": 2}
    with metrics.aggregate(new_root=True) as meters:
        for logs in ([log], [log, {name: value * 0 for name, value in log.items()}]):  # a batch of no tokens
            RnndropCrossEntropy.reduce_metrics(logs)
    sums = {name: meters[name].sum for name in ("loss", "nll_loss", "ppl_batch_mean")}
    assert all(type(value) is float for value in sums.values())
    assert sums["loss"] == pytest.approx(8 / math.log(2)) and sums["nll_loss"] == pytest.approx(600 / math.log(2))
    assert math.isnan(sums["ppl_batch_mean"])
    assert meters["ppl_batch_mean"].count == 3


@pytest.mark.parametrize(
    ("criterion", "arguments", "words"),
    [
        ("rnndrop_cross_entropy", "--adaptive-softmax-cutoff 10", "use --criterion adaptive_loss"),
        ("rnndrop_cross_entropy", "--label-smoothing 1", "--label-smoothing must be in [0, 1), got 1.0"),
        ("adaptive_loss", "", "--criterion adaptive_loss needs --adaptive-softmax-cutoff"),
    ],
)
def test_refused_before_training(train, tmp_path, capsys, criterion, arguments, words):
    with pytest.raises(SystemExit) as exit:
        train(criterion, *arguments.split())
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not list(tmp_path.glob("**/*.pt"))


def test_adaptive_softmax_of_a_model_of_fairseq(train, capsys):
    with pytest.raises(SystemExit):
        train("rnndrop_cross_entropy", model=BUILT_IN_ADAPTIVE)
    assert "use --criterion adaptive_loss" in capsys.readouterr().err


def build(data, *flags):
    """A model, the criterion and a batch."""
    arguments = [str(data), *ARGUMENTS, *OURS, "--criterion", "rnndrop_cross_entropy", *flags]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    sample = next(task.get_batch_iterator(task.datasets["train"], max_sentences=4).next_epoch_itr())
    return task.build_model(cfg.model), task.build_criterion(cfg.criterion), sample


class OwnOutputLayer(RecurrentDecoder):
    def output_layer(self, features, **kwargs):
        return 3 * super().output_layer(features)


class OwnProbabilities(RecurrentDecoder):
    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return super().get_normalized_probs((3 * net_output[0], net_output[1]), log_probs, sample)


@pytest.mark.parametrize("decoder", [OwnOutputLayer, OwnProbabilities])
def test_a_decoder_of_ones_own_trains_by_its_own_probabilities(stream_data, monkeypatch, decoder):
    monkeypatch.setattr(RecurrentLanguageModel, "decoder_class", decoder)
    model, criterion, sample = build(stream_data)
    assert type(model.decoder) is decoder
    model.eval()
    loss, nll = criterion.compute_loss(model, sample)
    log_probs = model.decoder.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
    expected = -log_probs.gather(2, sample["target"].unsqueeze(2)).sum()
    torch.testing.assert_close((loss, nll), (expected, expected))
    model.decoder.__class__ = RecurrentDecoder
    assert abs(criterion.compute_loss(model, sample)[1] - expected) > 0.1


# Teachers, see tests/tasks/test_teachers.py


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_teachers_prefer_is_computed_in_float32(dtype):
    torch.manual_seed(1)
    features, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((2, 3, 64), (20, 64), (20,)))
    target, words = torch.randint(20, (2, 3)), torch.randint(20, (2, 3, 7), dtype=torch.int32)
    logits = features.double() @ weight.double().T + bias.double()
    expected = logits.gather(2, target.unsqueeze(2)).squeeze(2) - logits.gather(2, words.long()).mean(2)
    found = linear_preference(features, weight, bias, target, words)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


# Regularisation of the activations


def test_the_penalty_is_that_of_the_paper():
    torch.manual_seed(1)
    outputs, scored = torch.randn(2, 3, 5), torch.tensor([[True, True, True], [True, True, False]])
    dropped = outputs * torch.tensor([0.0, 2.0, 2.0, 0.0, 2.0])
    squares = [dropped[b, t].square().mean() for b, t in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
    changes = [(outputs[b, t] - outputs[b, t + 1]).square().mean() for b, t in ((0, 0), (0, 1), (1, 0))]
    expected = 2 * sum(squares) / 5 + 3 * sum(changes) / 3
    torch.testing.assert_close(activation_penalty(outputs, dropped, scored, 2, 3), expected)
    assert activation_penalty(outputs[:, :1], dropped[:, :1], scored[:, :1], 0, 3) == 0


def test_the_penalty_is_part_of_the_loss_in_training_and_not_of_the_likelihood(stream_data):
    flags = "--activation-regularization 2 --temporal-activation-regularization 1 --sentence-avg"
    model, criterion, sample = build(stream_data, *flags.split())
    for training in (True, False):
        model.train(training)
        torch.manual_seed(1)
        loss, nll = criterion.compute_loss(model, sample)
        torch.manual_seed(1)
        _, extra = model(**sample["net_input"])
        scored = torch.ones_like(sample["target"], dtype=torch.bool)
        penalty = activation_penalty(extra["outputs"], extra["dropped_outputs"], scored, 2, 1)
        assert penalty > 0.001
        torch.testing.assert_close(loss - nll, sample["ntokens"] * penalty * training, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "model", "words"),
    [
        ("-1", OURS, "--activation-regularization must be a number of at least 0, got -1.0"),
        ("1", BUILT_IN_LSTM, "need one of rnndrop's language models, and LSTMLanguageModel is not one"),
    ],
)
def test_what_cannot_be_regularised_is_refused(train, tmp_path, capsys, weight, model, words):
    with pytest.raises(SystemExit) as exit:
        train("rnndrop_cross_entropy", "--activation-regularization", weight, model=model)
    assert exit.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("rnndrop_cross_entropy/checkpoint*.pt"))
