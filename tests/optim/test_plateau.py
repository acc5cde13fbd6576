import math
from argparse import Namespace

import pytest
import torch
from fairseq.optim.sgd import SGD
from omegaconf import OmegaConf

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.optim.plateau import Plateau, PlateauConfig


def scheduler(lr=(1.0,), maximize=False, **options) -> Plateau:
    flags = Namespace(lr=list(lr), momentum=0.0, weight_decay=0.0)
    cfg = OmegaConf.structured(PlateauConfig(lr=list(lr), maximize_best_checkpoint_metric=maximize, **options))
    return Plateau(cfg, SGD(flags, [torch.nn.Parameter(torch.zeros(2))]))


def rates(schedule: Plateau, losses) -> list[float]:
    return [schedule.step(epoch, loss) for epoch, loss in enumerate(losses, 1)]


def test_the_rate_is_divided_by_one_and_a_half_after_every_epoch_that_is_not_the_best():
    # The rates of two epochs of the protocol's runs: 5 is worse than 4, 6 is the best, 7 and 8 are not.
    losses = [192.4, 150.4, 134.1, 130.6, 133.9, 126.1, 131.4, 133.2]
    shrunk = [1, 1, 1, 1, 1 / 1.5, 1 / 1.5, 1.5**-2, 1.5**-3]
    assert rates(scheduler(), losses) == pytest.approx(shrunk)


def test_an_equal_validation_is_not_the_best_so_far_and_the_best_is_kept():
    assert rates(scheduler(lr_shrink=0.5), [3.0, 3.0, 4.0, 3.5, 2.0]) == [1, 0.5, 0.25, 0.125, 0.125]


def test_a_metric_may_be_maximized():
    assert rates(scheduler(maximize=True, lr_shrink=0.5), [0.1, 0.3, 0.2, 0.4]) == [1, 1, 0.5, 0.5]


def test_an_epoch_without_validation_changes_nothing_and_a_nan_is_not_the_best():
    schedule = scheduler(lr_shrink=0.5)
    assert rates(schedule, [3.0, None, None, math.nan, 2.0]) == [1, 1, 1, 0.5, 0.5]


def test_updates_within_an_epoch_keep_the_rate():
    schedule = scheduler(lr=[0.1])
    assert [schedule.step_update(n) for n in range(3)] == [0.1] * 3


def test_the_state_holds_the_rate_and_the_best():
    schedule = scheduler(lr_shrink=0.5)
    rates(schedule, [3.0, 2.0, 2.5])
    resumed = scheduler(lr_shrink=0.5)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.optimizer.get_lr() == 0.5
    assert rates(resumed, [2.0, 1.9]) == [0.25, 0.25]


def test_a_schedule_that_is_reset_begins_with_its_own_rate():
    """fairseq loads the optimizer, which has the rate of the checkpoint, and asks the schedule before an update."""
    schedule = scheduler(lr=[0.7], lr_shrink=0.5)
    schedule.optimizer.set_lr(0.5)
    assert (schedule.step_update(1), schedule.optimizer.get_lr()) == (0.7, 0.7)
    assert rates(schedule, [3.0, 4.0]) == [0.7, 0.35]


def test_the_state_of_another_schedule_is_refused():
    with pytest.raises(InputError, match="another --lr-scheduler: use that one, or --reset-lr-scheduler"):
        scheduler().load_state_dict({"best": 3.0, "last_epoch": 2})  # reduce_lr_on_plateau


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": (1.0, 0.5)}, "one learning rate, got 2"),
        ({"lr_shrink": 0.0}, r"--lr-shrink must be in \(0, 1\], got 0"),
        ({"lr_shrink": 1.5}, r"--lr-shrink must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_flags_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        scheduler(**options)
