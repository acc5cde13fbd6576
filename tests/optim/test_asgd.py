import copy

import pytest
import torch
from omegaconf import OmegaConf

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.optim.asgd import AveragedSGD, AveragedSGDConfig


def build(parameters, maximize: bool = False, **changes) -> AveragedSGD:
    cfg = AveragedSGDConfig(lr=[0.5], maximize_best_checkpoint_metric=maximize, **changes)
    return AveragedSGD(OmegaConf.structured(cfg), parameters)


def train(optimizer: AveragedSGD, parameter: torch.nn.Parameter, gradients: torch.Tensor) -> list[torch.Tensor]:
    """The parameter after each step."""
    values = []
    for gradient in gradients:
        optimizer.zero_grad()
        parameter.grad = gradient.clone()
        optimizer.step()
        values.append(parameter.detach().clone())
    return values


@pytest.fixture
def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(3, dtype=torch.float64))


def test_before_the_trigger_it_is_sgd_at_every_rate(parameter):
    start, gradients = parameter.detach().clone(), torch.randn(4, 3, dtype=torch.float64)
    optimizer = build([parameter], weight_decay=0.1)
    optimizer.set_lr(0.5)
    values = train(optimizer, parameter, gradients[:2])
    optimizer.set_lr(0.125)
    values += train(optimizer, parameter, gradients[2:])
    for rate, gradient, value in zip((0.5, 0.5, 0.125, 0.125), gradients, values, strict=True):
        start = start - rate * (gradient + 0.1 * start)
        torch.testing.assert_close(value, start)
    optimizer.use_averages(True)
    assert torch.equal(parameter, values[-1])  # nothing has been averaged


def test_the_rate_of_a_checkpoint_may_be_overridden(parameter):
    optimizer, gradients = build([parameter]), torch.randn(2, 3, dtype=torch.float64)
    (before,) = train(optimizer, parameter, gradients[:1])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()), {"lr": 0.125})
    optimizer.set_lr(0.125)
    (after,) = train(optimizer, parameter, gradients[1:])
    torch.testing.assert_close(after, before - 0.125 * gradients[1])


def test_after_the_trigger_the_model_has_the_mean_in_validation_and_trains_without_it(parameter):
    gradients = torch.randn(7, 3, dtype=torch.float64)
    plain = torch.nn.Parameter(parameter.detach().clone())
    expected = train(build([plain]), plain, gradients)

    optimizer = build([parameter], asgd_nonmonotone=0)
    train(optimizer, parameter, gradients[:2])
    optimizer.end_validation(1.0)
    optimizer.end_validation(1.5)
    assert optimizer.averaging
    train(optimizer, parameter, gradients[2:5])
    for _ in range(2):
        optimizer.use_averages(True)
        torch.testing.assert_close(parameter.detach(), torch.stack(expected[2:5]).mean(0))
    assert torch.equal(train(optimizer, parameter, gradients[5:])[-1], expected[-1])
    optimizer.use_averages(True)
    torch.testing.assert_close(parameter.detach(), torch.stack(expected[2:]).mean(0))


@pytest.mark.parametrize(
    ("n", "maximize", "validations", "trigger"),
    [
        (0, False, [3.0, 2.0, 2.5], 3),
        (2, False, [3.0, 3.5, 3.25, 3.0, 2.0, 2.75, 3.0, 2.0, 2.5], 9),  # 2.5 is worse than the 2.0 that is 4 before it
        (2, False, [1.0, 1.5, 1.5, 1.5], 4),
        (2, False, [1.0, 1.5, 1.5], None),
        (1, True, [0.5, 0.75, 0.625, 0.625], 4),
        (AveragedSGDConfig().asgd_nonmonotone, False, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 7),  # the paper's 5
    ],
)
def test_the_trigger_is_a_validation_worse_than_the_best_of_those_more_than_n_before(
    parameter, n, maximize, validations, trigger
):
    optimizer = build([parameter], asgd_nonmonotone=n, maximize=maximize)
    begun = []
    for value in validations:
        optimizer.end_validation(value)
        begun.append(optimizer.averaging)
    assert begun == [trigger is not None and k >= trigger for k in range(1, len(validations) + 1)]


def test_the_averages_go_on_over_validations_that_are_worse_still(parameter):
    optimizer = build([parameter], asgd_nonmonotone=0)
    train(optimizer, parameter, torch.randn(2, 3, dtype=torch.float64))
    values = []
    for validation in (1.0, 1.5, 2.0, 2.5):
        optimizer.end_validation(validation)
        values += train(optimizer, parameter, torch.randn(2, 3, dtype=torch.float64))
    optimizer.use_averages(True)
    torch.testing.assert_close(parameter.detach(), torch.stack(values[2:]).mean(0))  # since the second validation


@pytest.mark.parametrize("averages", [False, True])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(parameter, averages):
    gradients = torch.randn(6, 3, dtype=torch.float64)
    optimizer = build([parameter], asgd_nonmonotone=0)
    train(optimizer, parameter, gradients[:2])
    optimizer.end_validation(1.0)
    optimizer.end_validation(2.0)
    train(optimizer, parameter, gradients[2:4])
    optimizer.use_averages(averages)
    resumed_parameter = torch.nn.Parameter(parameter.detach().clone())
    resumed = build([resumed_parameter])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((optimizer, parameter), (resumed, resumed_parameter)):
        train(*pair, gradients[4:])
    assert torch.equal(parameter, resumed_parameter)
    optimizer.use_averages(True), resumed.use_averages(True)
    assert torch.equal(parameter, resumed_parameter)
    assert resumed.validations == [1.0, 2.0]


def test_a_training_on_a_gpu_is_resumed_on_a_cpu(parameter):
    optimizer = build([parameter])
    train(optimizer, parameter, torch.randn(2, 3, dtype=torch.float64))
    state = optimizer.state_dict()
    state["param_groups"][0]["capturable"] = True
    resumed = build([parameter])
    resumed.load_state_dict(state)
    train(resumed, parameter, torch.randn(1, 3, dtype=torch.float64))
    assert resumed.param_groups[0]["capturable"] is False


@pytest.mark.parametrize("changes", [{"asgd_nonmonotone": -1}, {"weight_decay": -1.0}])
def test_numbers_out_of_range_are_refused(parameter, changes):
    with pytest.raises(InputError, match=f"--{next(iter(changes)).replace('_', '-')}"):
        build([parameter], **changes)
