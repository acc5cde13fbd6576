import pytest
import torch
from omegaconf import OmegaConf

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.optim.rmsprop import RMSprop, RMSpropConfig


def build(parameters, **changes) -> RMSprop:
    return RMSprop(OmegaConf.merge(OmegaConf.structured(RMSpropConfig(lr=[0.01])), changes), parameters)


def test_a_step_is_the_gradient_over_the_root_of_its_running_square():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build([parameter], rmsprop_eps=1e-3, weight_decay=0.1)
    average, value = torch.zeros(2), parameter.detach().clone()
    for gradient in (torch.tensor([0.5, 4.0]), torch.tensor([-1.0, 0.25])):
        parameter.grad = gradient.clone()
        optimizer.step()
        gradient = gradient + 0.1 * value
        average = 0.9 * average + 0.1 * gradient**2
        value = value - 0.01 * gradient / (average.sqrt() + 1e-3)
        torch.testing.assert_close(parameter.detach(), value)


@pytest.mark.parametrize(
    "changes", [{"rmsprop_alpha": 1.0}, {"rmsprop_alpha": -0.1}, {"rmsprop_eps": 0.0}, {"weight_decay": -1.0}]
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(InputError, match=f"--{next(iter(changes)).replace('_', '-')}"):
        build([torch.nn.Parameter(torch.zeros(1))], **changes)
