import pytest
import torch

from rnndrop_plugin.modules import CharacterCNN

PAD = 1


def test_a_word_has_the_largest_value_of_each_filter():
    cnn = CharacterCNN(20, 6, PAD)
    words = [torch.tensor([7]), torch.tensor([3, 9]), torch.tensor([4, 5, 6, 7, 8])]
    batch = torch.full((1, 4, 5), PAD)  # the last is no word
    for row, word in zip(batch[0], words, strict=False):
        row[: len(word)] = word
    found = cnn(batch)
    assert found.shape == (1, 4, 6)
    weight, bias = cnn.convolution.weight, cnn.convolution.bias
    for word, values in zip(words, found[0], strict=False):
        zero = torch.zeros(1, 30)
        x = torch.cat([zero, cnn.embedding.weight[word], zero])
        windows = torch.stack([x[t : t + 3].t().flatten() for t in range(len(word))])
        torch.testing.assert_close(values, torch.relu(windows @ weight.flatten(1).t() + bias).amax(0))
    assert not found[0, 3].any()
    assert not cnn(batch[:, :, :0]).any() and cnn(batch[:, :, :0]).shape == (1, 4, 6)  # no word has any


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_an_empty_batch(shape):
    found = CharacterCNN(20, 6, PAD)(torch.zeros(shape, dtype=torch.long))
    assert found.shape == (*shape[:2], 6) and not found.any()


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 4, 5)])
def test_another_number_of_dimensions_is_refused(shape):
    with pytest.raises(ValueError, match=r"the characters must be \(batch, time, characters\), got"):
        CharacterCNN(20, 6, PAD)(torch.zeros(shape, dtype=torch.long))


def test_a_padding_index_from_the_end():
    cnn, batch = CharacterCNN(20, 6, PAD), a_batch()
    from_the_end = CharacterCNN(20, 6, PAD - 20)
    from_the_end.load_state_dict(cnn.state_dict())
    assert torch.equal(from_the_end(batch), cnn(batch))


def by_convolution(cnn: CharacterCNN, characters: torch.Tensor) -> torch.Tensor:
    words = characters.flatten(0, 1)
    x = torch.relu(cnn.convolution(cnn.embedding(words).transpose(1, 2)))
    return (x * (words != PAD).unsqueeze(1)).amax(2).unflatten(0, characters.shape[:2])


def a_batch() -> torch.Tensor:
    batch = torch.randint(4, 20, (3, 5, 7), generator=torch.Generator().manual_seed(1))
    for word, length in zip(batch.flatten(0, 1), torch.arange(15) % 8, strict=True):  # some have none
        word[length:] = PAD
    return batch


def test_values_and_gradients_are_those_of_a_convolution():
    torch.manual_seed(1)
    cnn, batch = CharacterCNN(20, 6, PAD).double(), a_batch()
    expected, found = by_convolution(cnn, batch), cnn(batch)
    torch.testing.assert_close(found, expected)
    d_output = torch.randn(3, 5, 6, dtype=torch.float64)
    d_expected = torch.autograd.grad(expected, [*cnn.parameters()], d_output)
    d_found = torch.autograd.grad(found, [*cnn.parameters()], d_output)
    torch.testing.assert_close(d_found, d_expected)
    assert not d_found[0][PAD].any() and all(gradient.any() for gradient in d_found)
    assert cnn.state_dict().keys() == {"embedding.weight", "convolution.weight", "convolution.bias"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    torch.manual_seed(1)
    cnn, batch = CharacterCNN(20, 6, PAD), a_batch()
    expected = cnn(batch)
    found = cnn.to(dtype)(batch)
    found.sum().backward()
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    assert all(parameter.grad.isfinite().all() for parameter in cnn.parameters())


@pytest.mark.parametrize("bias", [-10.0, 10.0])
def test_padding_changes_nothing(bias):
    """Not even where the bias alone is more than any character gives."""
    cnn = CharacterCNN(20, 6, PAD)
    torch.nn.init.constant_(cnn.convolution.bias, bias)
    words = torch.randint(4, 20, (3, 2, 5))
    padded = torch.full((3, 3, 9), PAD)
    padded[:, :2, :5] = words
    torch.testing.assert_close(cnn(padded)[:, :2], cnn(words))
    torch.testing.assert_close(cnn(padded).sum(1), cnn(words).sum(1))
