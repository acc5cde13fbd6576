"""Features of words that their characters tell."""

import torch
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

    def forward(self, characters: Tensor) -> Tensor:
        """``(batch, time, characters)`` to ``(batch, time, filters)``, zeros for a word without characters."""
        words = characters.flatten(0, 1)
        x = torch.relu(self.convolution(self.embedding(words).transpose(1, 2)))
        x = x * (words != self.embedding.padding_idx).unsqueeze(1)  # where there is none, the bias alone would be left
        return x.amax(dim=2).unflatten(0, characters.shape[:2])
