import itertools
import math
from types import SimpleNamespace

import pytest
from fairseq.trainer import Trainer

from rnndrop_plugin.compat.divergence import LossWatch, watch


def test_fairseq_goes_on_with_any_loss(command, training, tmp_path, unpatch):
    def warnings(rate: float) -> list[str]:
        flags = ("--tokens-per-sample", 4, "--max-epoch", 1, "--log-interval", 12, "--no-save")
        logged = command(*training, *flags, "--lr", rate, "--save-dir", tmp_path)
        return [record.getMessage() for record in logged if record.levelname == "WARNING"]

    (warning,) = warnings(1e5)
    assert warning.startswith("update 12: the loss is ")
    assert warnings(1) == []
    unpatch(Trainer, "train_step")
    assert warnings(1e5) == []


@pytest.mark.parametrize(
    ("losses", "warned_at"),
    [
        ([13.3] * 40, []),
        ([13.3, *[26.5] * 39], []),  # bad, but within twice a guess
        ([13.3, *[60.0] * 9, *[6.0] * 30], [10]),
        ([13.3] * 20 + [43.0] * 20, [30]),  # once
        ([200.0] * 40, []),  # large initial parameters, not worse than they were
        ([5.0, *[math.nan] * 39], [10]),
        ([5.0] * 10 + [math.inf] * 30, [20]),
    ],
)
def test_what_is_far_above_a_guess_is_said_once(losses, warned_at):
    watch = LossWatch(10_000)
    said = [n for n, loss in enumerate(losses, 1) if watch.update(loss, at_interval=n % 10 == 0)]
    assert said == warned_at


def test_the_losses_of_a_long_interval_are_not_kept():
    watch = LossWatch(10_000)
    assert not any(watch.update(13.3, at_interval=False) for _ in range(1000))
    assert watch.update(100_000.0, at_interval=True).startswith("the loss is 113.2 bits, it began with 13.3")
    assert all(not hasattr(value, "__len__") for value in vars(watch).values())


@pytest.mark.parametrize(
    ("losses", "sentence_avg", "warned"),
    [({"loss": 30.0}, False, True), ({"loss": 30.0}, True, False), ({"loss": 3.0, "nll_loss": 30.0}, True, True)],
)
def test_a_loss_of_whole_sentences_is_not_in_bits_of_a_symbol(caplog, losses, sentence_avg, warned):
    updates = itertools.count(1)
    cfg = {"optimization": SimpleNamespace(sentence_avg=sentence_avg), "common": SimpleNamespace(log_interval=1)}
    trainer = SimpleNamespace(task=SimpleNamespace(target_dictionary=range(100)), cfg=SimpleNamespace(**cfg))
    trainer.is_data_parallel_master, trainer.get_num_updates = True, lambda: next(updates)
    for n in range(40):
        watch(trainer, {name: 1.0 for name in losses} if n == 0 else losses)
    assert ("the loss is" in caplog.text) is warned


def test_few_classes_are_taken_for_sixteen():
    for loss, warned in ((7.9, False), (8.5, True)):
        watch = LossWatch(2)
        assert any([watch.update(x, at_interval=True) for x in [loss / 4, *[loss] * 400]]) is warned


def test_single_batches_of_few_classes_are_no_reason():
    watch = LossWatch(2)
    assert not any(watch.update(loss, at_interval=True) for loss in [1.0, 7.0, 0.5, 9.0, 0.1] * 20)
