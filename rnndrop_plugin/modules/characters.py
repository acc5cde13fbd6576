"""Features of words that their characters tell."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CharacterCNN(nn.Module):
    """For each word the largest value of each filter over its characters, relu(max_t(W [e_(t-1) e_t e_(t+1)] + b)).

    As in Ma and Hovy (2016), section 2.1, embeddings of 30 numbers and windows of three characters, with relu.

    Args:
        characters: how many there are in the dictionary.
        filters: the features it gives.
        padding_idx: what stands for no character.
    """

    def __init__(self, characters: int, filters: int, padding_idx: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 30, padding_idx)
        self.convolution = nn.Conv1d(30, filters, 3, padding=1)
        nothing = (torch.arange(characters) == padding_idx).unsqueeze(1)
        inside = torch.tensor([False, True, False]).view(3, 1, 1)
        self.register_buffer("_nothing", nothing, persistent=False)  # (characters, 1)
        self.register_buffer("_no_window", nothing & inside, persistent=False)  # (3, characters, 1)
        self.register_buffer("_rows", torch.arange(3) * characters, persistent=False)

    def forward(self, characters: Tensor) -> Tensor:
        """``(batch, time, characters)`` to ``(batch, time, filters)``, zeros for a word without characters.

        What a character adds at each place of a window is computed once, and looked up for each window: half the time
        of torch.conv1d on a CPU, and on a GPU no plan of cuDNN's for each new shape of a batch.
        """
        words = F.pad(characters.flatten(0, 1), (1, 1), value=self.embedding.padding_idx)
        table = self.embedding.weight.masked_fill(self._nothing, 0) @ self.convolution.weight.permute(2, 1, 0)
        table = table.masked_fill(self._no_window, -math.inf)  # in whose middle there is no character
        windows = (words.unfold(1, 3, 1) + self._rows).flatten(0, 1)
        x = F.embedding_bag(windows, table.flatten(0, 1), mode="sum").unflatten(0, (len(words), -1))
        return torch.relu(x.amax(dim=1) + self.convolution.bias).unflatten(0, characters.shape[:2])
