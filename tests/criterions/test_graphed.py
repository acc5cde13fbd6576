"""--cuda-graph, with a stand-in for CUDA's graphs; on a GPU see tests/tasks/test_gpu.py."""

import pytest
import torch

from rnndrop_plugin.criterions import graphed
from rnndrop_plugin.criterions.cross_entropy import RnndropCrossEntropy
from rnndrop_plugin.errors import InputError
from rnndrop_plugin.tasks.language_modeling import RnndropLanguageModelingTask

LANGUAGE = ("--user-dir", "rnndrop_plugin", "--task", "rnndrop_language_modeling", "--arch", "lstm_rnndrop")
FLAGS = (
    *("--decoder-embed-dim", 6, "--decoder-hidden-size", 8, "--update-dropout", 0.25, "--decoder-dropout-in", 0.2),
    *("--optimizer", "sgd", "--lr", 1, "--clip-norm", 5, "--batch-size", 4, "--tokens-per-sample", 7, "--max-epoch", 2),
    *("--cpu", "--log-format", "json", "--seed", 1, "--no-epoch-checkpoints", "--criterion", "rnndrop_cross_entropy"),
)


@pytest.fixture
def replayed(monkeypatch):
    """CUDA's graphs on a CPU: the work is done again at each replay. Counts the replays."""
    graphs, replays = [], []
    build = graphed.GraphedCriterion.__init__

    def capture(work, pool):
        if graphs[-1].model._forward_hooks:  # fairseq's, that read values to find a NaN
            raise RuntimeError("operation not permitted when stream is capturing")
        kept = torch.get_rng_state(), [s.clone() for s in graphs[-1].state]
        figures, *rest = work()
        torch.set_rng_state(kept[0])
        for s, before in zip(graphs[-1].state, kept[1], strict=True):
            s.copy_(before)

        def replay():
            replays.append(graphs[-1])
            with torch.enable_grad():
                figures.copy_(work()[0])

        return replay, (figures, *rest)

    def begin_epoch(task, epoch, model):
        task.cfg.cuda_graph = True  # which the trainer refuses on a CPU

    def init(graph, *arguments):
        graphs.append(graph)
        build(graph, *arguments)

    monkeypatch.setattr(graphed, "capture", capture)
    monkeypatch.setattr(graphed.GraphedCriterion, "__init__", init)
    monkeypatch.setattr(RnndropLanguageModelingTask, "begin_epoch", begin_epoch)
    return replays


def parameters(folder):
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--update-freq", 2, "--variable-bptt", "--sentence-avg"),
        (
            *("--variable-bptt", "--activation-regularization", 1, "--temporal-activation-regularization", 1),
            *("--weight-dropout", 0.2, "--decoder-embed-dropout", 0.1, "--decoder-dropout-sampling", "sequence"),
            *("--optimizer", "adam", "--lr", 0.01, "--validate-interval-updates", 5),
        ),
    ],
)
def test_a_training_from_graphs_is_the_same(command, stream_data, tmp_path, request, flags):
    logs = []
    for name in ("plain", "graphs"):
        replays = request.getfixturevalue("replayed") if name == "graphs" else []
        logs.append(command("train", stream_data, *LANGUAGE, *FLAGS, *flags, "--save-dir", tmp_path / name))
    assert len(replays) > 10
    for metric in ("loss", "nll_loss", "ppl_batch_mean"):
        assert logs[0].metrics(metric, "train") == logs[1].metrics(metric, "train")
    plain, graphs = (parameters(tmp_path / name) for name in ("plain", "graphs"))
    assert all(torch.equal(plain[name], graphs[name]) for name in plain)


def test_a_training_from_graphs_has_teachers(command, stream_data, tmp_path, request):
    command("train", stream_data, *LANGUAGE, *FLAGS, "--init-range", 2, "--max-update", 1, "--save-dir", tmp_path)
    taught = ("--teachers", tmp_path / "checkpoint_last.pt", "--teacher-weight", 0.9, "--teacher-text", 300)
    for name in ("plain", "graphs"):
        replays = request.getfixturevalue("replayed") if name == "graphs" else []
        command("train", stream_data, *LANGUAGE, *FLAGS, *taught, "--save-dir", tmp_path / name)
    assert len(replays) > 10
    plain, graphs = (parameters(tmp_path / name) for name in ("plain", "graphs"))
    assert all(torch.equal(plain[name], graphs[name]) for name in plain)


def test_an_adaptive_softmax_is_refused(command, capsys, stream_data, tmp_path):
    flags = ("--cuda-graph", "--adaptive-softmax-cutoff", 6, "--criterion", "adaptive_loss", "--save-dir", tmp_path)
    with pytest.raises(SystemExit) as end:
        command("train", stream_data, *LANGUAGE, *FLAGS, *flags)
    assert end.value.code == 2
    assert "--cuda-graph cannot hold fairseq's adaptive softmax" in capsys.readouterr().err


def test_a_resumed_training_goes_on_from_its_state(command, stream_data, tmp_path, replayed):
    for name, ends in (("whole", [30]), ("resumed", [17, 30])):
        for end in ends:
            command("train", stream_data, *LANGUAGE, *FLAGS, "--max-update", end, "--save-dir", tmp_path / name)
    whole, resumed = (parameters(tmp_path / name) for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_batch_that_runs_out_of_memory_is_left_out(monkeypatch, command, stream_data, tmp_path, replayed):
    """The first one, before there is a state, by the trainer as without graphs."""
    forward, calls = RnndropCrossEntropy.forward, []

    def first_fails(criterion, *arguments, **keywords):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("CUDA out of memory")
        return forward(criterion, *arguments, **keywords)

    monkeypatch.setattr(RnndropCrossEntropy, "forward", first_fails)
    log = command("train", stream_data, *LANGUAGE, *FLAGS, "--save-dir", tmp_path)
    assert any("attempting to recover from OOM" in record.getMessage() for record in log)
    assert len(replayed) > 10


def test_without_memory_for_a_graph_the_training_goes_on(monkeypatch, command, stream_data, tmp_path, replayed):
    """The state as it would be without graphs, also where the stream begins anew in the second epoch."""
    command("train", stream_data, *LANGUAGE, *FLAGS, "--save-dir", tmp_path / "graphs")

    def out_of_memory(*arguments, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def capture(work, pool):
        generator = torch.get_rng_state()
        with monkeypatch.context() as patch:
            patch.setattr(torch.autograd, "grad", out_of_memory)  # after the forward pass, which has left a state
            try:
                work()
            finally:
                torch.set_rng_state(generator)

    monkeypatch.setattr(graphed, "capture", capture)
    log = command("train", stream_data, *LANGUAGE, *FLAGS, "--save-dir", tmp_path / "none")
    assert "not enough memory for more than 0 CUDA graphs" in log.text()
    graphs, none = (parameters(tmp_path / name) for name in ("graphs", "none"))
    assert all(torch.equal(graphs[name], none[name]) for name in graphs)


def test_a_training_that_diverges_says_so(capsys, command, stream_data, tmp_path, replayed):
    flags = ("--variable-bptt", "--sentence-avg", "--lr", 1e38, "--clip-norm", 0, "--save-dir", tmp_path)
    with pytest.raises(SystemExit):
        command("train", stream_data, *LANGUAGE, *FLAGS, *flags)
    assert "the training has diverged" in capsys.readouterr().err


def test_what_cannot_be_captured_ends_in_one_line(monkeypatch, capsys, command, stream_data, tmp_path, replayed):
    def capture(work, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphed, "capture", capture)
    with pytest.raises(SystemExit) as end:
        command("train", stream_data, *LANGUAGE, *FLAGS, "--save-dir", tmp_path)
    assert end.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.endswith("cannot be captured (operation not permitted when stream is capturing); train without it")


@pytest.mark.parametrize(
    "gpu, flags, words",
    [
        (False, (), "--cuda-graph needs a GPU"),
        (True, ("--fp16",), "--cuda-graph is for float32 and bfloat16"),
        (True, ("--amp",), "--cuda-graph is for float32 and bfloat16"),
        (True, ("--distributed-world-size", 2), "--cuda-graph is for one process"),
    ],
)
def test_where_it_cannot_be_is_refused(monkeypatch, stream_data, tmp_path, gpu, flags, words):
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer

    parser = options.get_training_parser()
    flags = [*map(str, (stream_data, *LANGUAGE, *FLAGS, *flags, "--cuda-graph"))]
    if gpu:
        flags.remove("--cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))
    with pytest.raises(InputError, match=words):
        Trainer(cfg, None, None, None)
