"""A training step does not wait for a GPU: shown on torch's device "meta", whose tensors have no values.

There, whatever has to wait (``item()``, ``cpu()``, a selection by a mask, the check of a label) raises an error of
torch's own. What is read after the step, to be logged, is left out: fairseq reads it, too. On a GPU torch can watch
over that itself.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fairseq import options, tasks, utils
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import rnndrop_plugin
from rnndrop_plugin.compat import batches
from rnndrop_plugin.models.seq2seq import Seq2SeqConfig
from rnndrop_plugin.ops import availability
from rnndrop_plugin.ops.cross_entropy import dispatch

rnndrop_plugin.register()
META = torch.device("meta")


class NoBlockingCopies(TorchFunctionMode):
    """Refuses to copy anything from the host to the device and to wait for that, which torch allows."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        if isinstance(result, torch.Tensor) and result.is_meta and not keywords.get("non_blocking"):
            leaves = tree_leaves((arguments, keywords))
            from_host = any(isinstance(x, torch.Tensor) and not x.is_meta and x.numel() > 1 for x in leaves)
            made = function in self.MAKERS and not isinstance(arguments[-1], torch.Tensor)
            lists = function is torch.Tensor.__getitem__ and any(isinstance(x, list) for x in arguments)
            if from_host or made or lists:
                raise AssertionError(f"{function.__name__} waits for a copy to the device")
        return result


X = torch.arange(6.0, device=META).view(2, 3)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: X[0, 0].item(),
        lambda: bool(X.any()),
        lambda: X.tolist(),
        lambda: X.cpu(),
        lambda: X[X > 2],
        lambda: X.nonzero(),
        lambda: torch.bincount(X[0].long(), minlength=4),
        lambda: torch.equal(X, X),
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: X[:, torch.tensor([0, 1])],
        lambda: torch.ones(3).to(META),
        lambda: torch.empty_like(X).copy_(torch.ones(2, 3)),
    ],
)
def test_what_waits_is_seen(wait):
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), NoBlockingCopies():
        wait()


class Launched(list):
    """Stands for a kernel: notes that it was launched."""

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.append(grid)


@pytest.fixture(params=["triton", "torch"])
def launched(request, monkeypatch):
    """The kernels of a GPU with Triton, which are not run, or the operations that serve where there is none."""
    launched = Launched()
    if request.param == "torch":
        yield launched
        return
    pytest.importorskip("triton", reason="Triton is not installed (the extra 'triton')")
    from rnndrop_plugin.ops.crf import fused as crf
    from rnndrop_plugin.ops.cross_entropy import fused as loss
    from rnndrop_plugin.ops.recurrence.triton import backend, tiles

    monkeypatch.setattr(availability, "obstacle", lambda device, dtype: None if device == META else "not there")
    monkeypatch.setattr(tiles, "_chosen", {})
    monkeypatch.setattr(tiles, "device_limits", lambda device: (132, 227 * 1024))
    monkeypatch.setattr(backend, "launch", lambda kernel, *_, **__: launched.append(kernel))
    for module, kernel in ((crf, "forward"), (crf, "backward"), (loss, "softmax_loss"), (loss, "sums")):
        monkeypatch.setattr(module, kernel, launched)
    yield launched
    assert launched


@contextmanager
def watched_by_torch():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step(model, criterion, sample, monkeypatch, device=META, no_waiting=NoBlockingCopies) -> dict:
    """Train on a batch as fairseq's trainer would do on a GPU; returns what is logged."""
    model.train()
    model.to(device)
    criterion.train()
    monkeypatch.setattr(utils, "move_to_cuda", lambda x: utils.apply_to_sample(lambda tensor: tensor.to(device), x))
    common = SimpleNamespace(on_cpu_convert_precision=False)
    trainer = SimpleNamespace(
        cfg=SimpleNamespace(common=common),
        cuda=True,
        pipeline_model_parallel=False,
        _dummy_batch=None,
        _fp_convert_sample=lambda sample: sample,
        get_model=lambda: model,
    )
    sample, _ = batches.prepare_sample(trainer, sample)
    assert sample["target"].device == sample["net_input"]["src_tokens"].device == device
    if device != META:
        criterion(model, sample)[0].backward()  # compiles the kernels
    with no_waiting():
        for _ in range(2):  # the second goes on from the state of the first
            loss, _, logged = criterion(model, sample)
            loss.backward()
    assert loss.device == device
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    return logged


RECURRENT = "--update-dropout 0.2 --hidden-dropout 0.2 --cell-dropout 0.2 --weight-dropout 0.2 --decoder-layers 2"
FORWARD = "--decoder-dropout-in 0.1 --decoder-dropout-out 0.1 --decoder-embed-dropout 0.1"
LANGUAGE = "--task rnndrop_language_modeling --tokens-per-sample 6 --criterion rnndrop_cross_entropy --arch"
TAGGING = "--task rnndrop_tagging --criterion rnndrop_tagging --arch"
CLASSIFICATION = "--task rnndrop_classification --criterion rnndrop_classification --arch"
CASES = {
    "language model": f"{LANGUAGE} lstm_rnndrop {RECURRENT} {FORWARD} --label-smoothing 0.1 --decoder-dropout-sampling "
    "sequence --activation-regularization 1 --temporal-activation-regularization 1",
    "language model, large loss": f"{LANGUAGE} gru_rnndrop --recurrent-dropout-scaling expected --update-dropout 0.2",
    "language model, large loss, smoothed": f"{LANGUAGE} rnn_rnndrop --hidden-dropout 0.2 --label-smoothing 0.1",
    "tagger": f"{TAGGING} lstm_rnndrop_tagger --bidirectional --crf --character-filters 3 --context conv "
    f"--extract-length 4 {RECURRENT} {FORWARD}",
    "tagger, paper's GRU without dropout": f"{TAGGING} gru_rnndrop_tagger --context concat --bidirectional",
    "classifier": f"{CLASSIFICATION} gru_rnndrop_classifier --ignore-absent-classes {RECURRENT} {FORWARD}",
    "classifier, RNN": f"{CLASSIFICATION} rnn_rnndrop_classifier --hidden-dropout 0.2",
}


def prepare(monkeypatch, stream_data, tagging_data, name):
    """The model, criterion and first batch of a case."""
    if "large loss" in name:
        monkeypatch.setattr(dispatch, "SMALL", 0)
    data = stream_data if name.startswith("language") else tagging_data
    arguments = [str(data), *CASES[name].split(), "--user-dir", "rnndrop_plugin", "--cpu"]
    arguments += "--decoder-embed-dim 8 --decoder-hidden-size 16 --batch-size 4 --optimizer sgd --lr 1".split()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    task = tasks.setup_task(cfg.task)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    batch = next(task.get_batch_iterator(task.datasets["train"], max_sentences=4).next_epoch_itr())
    return model, criterion, batch


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_our_tasks(monkeypatch, launched, stream_data, tagging_data, name):
    model, criterion, batch = prepare(monkeypatch, stream_data, tagging_data, name)
    step(model, criterion, batch, monkeypatch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["language model, large loss", "tagger", "classifier"])
def test_a_step_on_a_gpu(monkeypatch, stream_data, tagging_data, name):
    batch = prepare(monkeypatch, stream_data, tagging_data, name)
    step(*batch, monkeypatch, torch.device("cuda", 0), watched_by_torch)


@pytest.mark.parametrize("feed", [True, False], ids=["feed", "no-feed"])
def test_a_step_of_translation(monkeypatch, launched, feed):
    words = Dictionary()
    for i in range(8):
        words.add_symbol(f"w{i}")
    sizes = {"encoder_embed_dim": 8, "encoder_hidden_size": 8, "decoder_embed_dim": 8, "decoder_hidden_size": 16}
    dropout = {"update_dropout": 0.2, "hidden_dropout": 0.2, "weight_dropout": 0.2, "dropout": 0.2}
    cfg = Seq2SeqConfig(**sizes, **dropout, encoder_bidirectional=True, no_input_feed=not feed)
    task = TranslationTask(TranslationConfig(), words, words)
    source = torch.tensor([[5, 6, 7, 8, 2], [1, 1, 1, 9, 2], [1, 4, 5, 9, 2]])  # padded at the left, as fairseq does
    target = torch.tensor([[4, 5, 6, 2], [7, 7, 8, 2], [9, 2, 1, 1]])
    batch = {
        "id": torch.arange(3),
        "nsentences": 3,
        "ntokens": 10,
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.tensor([5, 2, 4]),
            "prev_output_tokens": target.roll(1, 1),
        },
        "target": target,
    }
    model = MODEL_REGISTRY["lstm_rnndrop_seq2seq"].build_model(cfg, task)
    step(model, LabelSmoothedCrossEntropyCriterion(task, False, 0.1), batch, monkeypatch)


def test_only_our_models_in_training_find_lengths_on_the_host(monkeypatch):
    """fairseq's own, and the search of a translation, look for them on the GPU."""
    monkeypatch.setattr(batches, "upstream_prepare_sample", lambda trainer, sample: ({"net_input": {}}, False))
    lengths = torch.tensor([3, 2])
    for ours, training in ((True, True), (True, False), (False, True)):
        model = SimpleNamespace(training=training, **({"lengths_on_host": True} if ours else {}))
        trainer = SimpleNamespace(get_model=lambda model=model: model)
        prepared, _ = batches.prepare_sample(trainer, {"net_input": {"src_lengths": lengths}})
        assert (prepared["net_input"].get("src_lengths") is lengths) == (ours and training)
