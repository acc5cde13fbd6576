"""Training and evaluation on a GPU through fairseq's own commands: ``python -m pytest -m gpu``."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

pytestmark = pytest.mark.gpu

LANGUAGE = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling")
PRECISIONS = ("--fp16", "--memory-efficient-fp16", "--bf16", "--memory-efficient-bf16", "--amp")


@pytest.fixture(scope="module")
def language_model(command, stream_data, tmp_path_factory):
    """Train a small language model; returns its folder and what was logged."""

    def train(*options):
        folder = tmp_path_factory.mktemp("language")
        flags = (
            *("--arch", "lstm_rnndrop", "--decoder-embed-dim", 16, "--decoder-hidden-size", 32),
            *("--update-dropout", 0.25, "--recurrent-dropout-scaling", "expected", "--optimizer", "sgd", "--lr", 1),
            *("--clip-norm", 5, "--batch-size", 4, "--tokens-per-sample", 12, "--sentence-avg", "--max-epoch", 4),
            *("--log-format", "json", "--save-dir", folder, "--seed", 1, "--distributed-world-size", 1),
        )
        return folder, command("train", stream_data, *LANGUAGE, *flags, *options)

    return train


@pytest.fixture(scope="module")
def single_precision(language_model):
    return language_model()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_train_to_the_same_loss(language_model, single_precision, precision):
    _, expected = single_precision
    # fairseq's sgd has no memory-efficient form. Without momentum its nag is the same.
    optimizer = ("--optimizer", "nag", "--momentum", 0) if precision.startswith("--memory") else ()
    _, logged = language_model(precision, *optimizer)
    losses = [float(log.metrics("loss", "valid")[-1]) for log in (logged, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize(
    "flags",
    [
        ("--update-freq", 2),
        ("--bf16",),
        ("--memory-efficient-bf16", "--optimizer", "nag", "--momentum", 0),
        (
            *("--variable-bptt", "--activation-regularization", 1, "--temporal-activation-regularization", 1),
            *("--weight-dropout", 0.2, "--decoder-embed-dropout", 0.1, "--decoder-dropout-in", 0.2),
            *("--decoder-dropout-sampling", "sequence", "--optimizer", "adam", "--lr", 0.01),
            *("--validate-interval-updates", 5),
        ),
    ],
)
def test_a_training_from_cuda_graphs_is_the_same(monkeypatch, language_model, flags):
    """With the same masks: torch's generator has the same numbers for a replay."""
    replay, replays = torch.cuda.CUDAGraph.replay, []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(graph) or replay(graph))
    criterion = ("--criterion", "rnndrop_cross_entropy", *flags)
    logs = [language_model(*criterion, *graph)[1] for graph in ((), ("--cuda-graph",))]
    assert len(replays) > 10
    half = any(flag in flags for flag in ("--bf16", "--memory-efficient-bf16"))
    for split in ("train", "valid"):
        plain, graphs = ([float(x) for x in log.metrics("loss", split)] for log in logs)
        assert graphs == pytest.approx(plain, rel=5e-3 if half else 1e-3)


def test_a_model_learns_from_teachers(language_model, single_precision):
    """In half precision and from a CUDA graph from the same words as in float32; on a CPU from others."""
    path = single_precision[0] / "checkpoint_last.pt"
    flags = ("--criterion", "rnndrop_cross_entropy", "--teachers", path, "--teacher-text", 200)
    logs = [language_model(*flags, *how)[1] for how in ((), ("--cuda-graph",), ("--bf16",), ("--cpu",))]
    single, graphs, half, cpu = (float(log.metrics("loss", "valid")[-1]) for log in logs)
    assert graphs == pytest.approx(single, rel=1e-3)
    assert half == pytest.approx(single, rel=0.01) and cpu == pytest.approx(single, rel=0.05)


def test_eval_lm_on_a_gpu_is_eval_lm_on_a_cpu(command, single_precision, stream_data):
    """Which is the whole text unrolled, see test_language_modeling.py; with expected scaling kernels of ours run."""
    folder, _ = single_precision
    lines = []
    for device in ((), ("--cpu",)):
        log = command("eval_lm", stream_data, *LANGUAGE, "--path", folder / "checkpoint_last.pt", *device)
        (line,) = [record.getMessage() for record in log if "Perplexity" in record.getMessage()]
        lines.append(float(line.split("Perplexity: ")[1]))
    assert lines[0] == pytest.approx(lines[1], rel=2e-3)  # TF32 rounds to 2**-11


@pytest.mark.parametrize("rule", [("sgd", 0.1), ("rms", 0.0001)])
def test_a_dynamic_evaluation_on_a_gpu_is_that_on_a_cpu(command, single_precision, stream_data, rule):
    """Its gradients are those of an evaluation, which torch.nn's layers do not have on cuDNN."""
    flags = ("--dynamic-evaluation", rule[0], "--dynamic-evaluation-lr", rule[1], "--tokens-per-sample", 5)
    for model in ({}, {"recurrent_dropout_scaling": "inverted"}):
        lines = []
        for device in ((), ("--cpu",)):
            path = ("--path", single_precision[0] / "checkpoint_last.pt", "--model-overrides", repr(model))
            log = command("eval_lm", stream_data, *LANGUAGE, *path, *flags, *device)
            (line,) = [record.getMessage() for record in log if "Perplexity" in record.getMessage()]
            lines.append(float(line.split("Perplexity: ")[1]))
        assert lines[0] == pytest.approx(lines[1], rel=5e-3)


@pytest.mark.parametrize("task, model, arch", [("tagging", "tagger", "lstm"), ("classification", "classifier", "gru")])
def test_a_small_model_learns(command, tagging_data, tmp_path, task, model, arch):
    log = command(
        "train",
        *(tagging_data, "--user-dir", "rnndrop_plugin", "--task", f"rnndrop_{task}", "--criterion", f"rnndrop_{task}"),
        *("--arch", f"{arch}_rnndrop_{model}", "--decoder-embed-dim", 12, "--decoder-hidden-size", 16),
        *("--batch-size", 8, "--optimizer", "adam", "--lr", 0.01, "--clip-norm", 5, "--seed", 3, "--max-epoch", 12),
        *("--update-dropout", 0.25, "--save-dir", tmp_path, "--log-format", "json", "--distributed-world-size", 1),
        *(("--bidirectional", "--crf") if task == "tagging" else ()),
    )
    scores = [float(score) for score in log.metrics("f1", "valid")]
    assert max(scores[-3:]) > 80 and max(scores[-3:]) > scores[0]  # a classifier's goes up and down
