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
