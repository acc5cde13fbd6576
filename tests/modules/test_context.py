import pytest
import torch

from rnndrop_plugin.modules import CRF, CharacterCNN, ConcatContext, ConvContext


def neighbours(x: torch.Tensor, t: int, side: int) -> torch.Tensor:
    """The features around step ``t`` of one sequence in a row, zeros beyond its ends."""
    steps = range(t - side, t + side + 1)
    return torch.cat([x[i] if 0 <= i < len(x) else torch.zeros(x.size(1)) for i in steps])


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("time", [1, 2, 7])
def test_concat_puts_the_neighbours_in_a_row(width, time):
    x = torch.randn(2, time, 3)
    context = ConcatContext(3, width)
    expected = torch.stack([torch.stack([neighbours(row, t, width // 2) for t in range(time)]) for row in x])
    assert context.output_size == 3 * width
    assert torch.equal(context(x), expected)


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_conv_is_one_layer_over_the_neighbours(nonlinearity):
    x = torch.randn(2, 6, 3)
    conv, concat = ConvContext(3, 8, 5, nonlinearity), ConcatContext(3, 5)
    weight = conv.convolution.weight.transpose(1, 2).flatten(1)  # (filters, width * input), as concat's rows
    expected = getattr(torch, nonlinearity)(concat(x) @ weight.t() + conv.convolution.bias)
    assert conv.output_size == 8
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("width", [0, 2, 4, -1])
def test_an_even_width_is_refused(width):
    for context in (lambda: ConvContext(3, 8, width), lambda: ConcatContext(3, width)):
        with pytest.raises(ValueError, match=f"must be odd.*got {width}"):
            context()


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 2, 4, 3)])
def test_another_number_of_dimensions_is_refused(shape):
    for context in (ConvContext(3, 8), ConcatContext(3)):
        with pytest.raises(ValueError, match=r"the input must be \(batch, time, features\), got"):
            context(torch.zeros(shape))


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match="nonlinearity must be one of .*, got 'gelu'"):
        ConvContext(3, 8, nonlinearity="gelu")


@pytest.mark.parametrize(
    ("module", "arguments", "shown"),
    [
        (ConvContext, (4, 6), "nonlinearity=relu"),
        (CharacterCNN, (9, 5, 1), "Embedding(9, 30, padding_idx=1)"),
        (CRF, (3,), "CRF(3)"),
    ],
)
def test_they_are_built_and_shown_as_those_of_torch_nn(module, arguments, shown):
    built = module(*arguments, device="meta", dtype=torch.float64)
    assert all(parameter.is_meta and parameter.dtype == torch.float64 for parameter in built.parameters())
    assert shown in repr(built)


def test_the_words_of_a_concatenation_are_shown():
    assert repr(ConcatContext(4, width=3)) == "ConcatContext(width=3)"
