"""Features of words, computed from their characters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CharacterCNN(nn.Module):
    """The maximum of each filter over the characters of a word, relu(max_t(W [e_(t-1) e_t e_(t+1)] + b)).

    As in Ma and Hovy (2016), section 2.1, embeddings have 30 numbers and windows three characters; a relu follows. The
    gradient cannot be differentiated again, because that of torch's embedding_bag cannot.

    Args:
        characters: the number of characters in the dictionary.
        filters: the number of features that a word gets.
        padding_idx: the id of the padding, counted from the end if it is negative.
        device, dtype: as in torch.nn.
    """

    def __init__(
        self,
        characters: int,
        filters: int,
        padding_idx: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 30, padding_idx, device=device, dtype=dtype)
        self.convolution = nn.Conv1d(30, filters, 3, padding=1, device=device, dtype=dtype)

    def forward(self, characters: Tensor) -> Tensor:
        """``(batch, time, characters)`` to ``(batch, time, filters)``, zeros for a word without characters.

        Raises:
            ValueError: characters of another shape.
            RuntimeError: an id that the dictionary does not have; on a GPU it ends in a device-side assertion.

        What a character adds at each place of a window is computed once and then looked up for each window. On a CPU
        this takes half the time of torch.conv1d. On a GPU it saves cuDNN's planning for each new shape of a batch.
        """
        if characters.dim() != 3:
            raise ValueError(f"the characters must be (batch, time, characters), got {tuple(characters.shape)}")
        table = self.embedding.weight @ self.convolution.weight.permute(1, 2, 0).flatten(1)
        table = table.unflatten(1, (3, -1))  # (characters, 3, filters)
        # Padding adds nothing to its neighbours' windows, and -inf to its own window, which is then never the maximum.
        places = torch.arange(3, device=table.device)
        nothing = torch.arange(len(table), device=table.device) == self.embedding.padding_idx
        added = table.new_zeros(3).masked_fill(places == 1, -math.inf)
        table = torch.where(nothing.view(-1, 1, 1), added.unsqueeze(1), table)
        if characters.numel() == 0:
            return table.new_zeros(*characters.shape[:2], len(self.convolution.bias))
        words = F.pad(characters.flatten(0, 1), (1, 1), value=self.embedding.padding_idx)
        windows = torch.add(places, words.unfold(1, 3, 1), alpha=3).flatten(0, 1)
        x = F.embedding_bag(windows, table.flatten(0, 1), mode="sum").unflatten(0, (len(words), -1))
        return torch.relu(x.amax(dim=1) + self.convolution.bias).unflatten(0, characters.shape[:2])
