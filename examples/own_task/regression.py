"""Sequence regression from scratch: the adding problem (Hochreiter and Schmidhuber 1997, section 5.4).

A sequence has at each step a random number and a marker; two steps are marked, and the sum of their numbers is to be
predicted. A network that predicts the mean, 1, has a mean squared error of 1/6.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.data import FairseqDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask, register_task
from torch import Tensor, nn

from rnndrop_plugin.models.config import RecurrentConfig, build_recurrent, init_uniform

SIZES = {"train": 2000, "valid": 500, "test": 500}


class AddingProblem(FairseqDataset):
    """``size`` sequences of ``length`` steps, drawn from ``seed``."""

    def __init__(self, size: int, length: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.rand(size, length, generator=generator)
        marked = torch.rand(size, length, generator=generator).topk(2).indices
        markers = torch.zeros(size, length).scatter_(1, marked, 1.0)
        self.inputs = torch.stack([numbers, markers], dim=2)
        self.targets = (numbers * markers).sum(1)
        self.sizes = np.full(size, length)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index: int) -> int:
        return int(index)

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def collater(self, samples: list[int]) -> dict:
        """A batch: the model is called with ``net_input``; fairseq counts ``nsentences`` and ``ntokens``."""
        return {
            "id": torch.tensor(samples),
            "nsentences": len(samples),
            "ntokens": sum(map(self.size, samples)),
            "net_input": {"inputs": self.inputs[samples]},
            "target": self.targets[samples],
        }


@dataclass
class AddingProblemConfig(FairseqDataclass):
    length: int = field(default=30, metadata={"help": "steps of a sequence"})


@register_task("adding_problem", dataclass=AddingProblemConfig)
class AddingProblemTask(FairseqTask):
    def load_dataset(self, split: str, **kwargs):
        self.datasets[split] = AddingProblem(SIZES[split], self.cfg.length, seed=list(SIZES).index(split))

    def max_positions(self) -> int:
        return self.cfg.length

    @property
    def source_dictionary(self):
        return None

    @property
    def target_dictionary(self):
        return None


@register_model("lstm_regression", dataclass=RecurrentConfig)
class LSTMRegression(BaseFairseqModel):
    """A number read off the last state; RecurrentConfig gives it all flags of recurrent dropout."""

    def __init__(self, rnn: nn.Module):
        super().__init__()
        self.rnn = rnn
        self.output = nn.Linear(rnn.hidden_size, 1)

    @classmethod
    def build_model(cls, cfg: RecurrentConfig, task):
        from rnndrop_plugin.modules import LSTM

        model = cls(build_recurrent(LSTM, cfg, input_size=2))
        init_uniform(model, cfg.init_range)
        return model

    def forward(self, inputs: Tensor) -> Tensor:
        """``(batch, time, 2)`` to ``(batch,)``."""
        _, (h, _) = self.rnn(inputs.transpose(0, 1))
        return self.output(h[-1]).squeeze(1)


@register_criterion("mean_squared_error")
class MeanSquaredError(FairseqCriterion):
    def forward(self, model, sample):
        """The summed loss, what its gradient is divided by, and the sums to log."""
        loss = (model(**sample["net_input"]) - sample["target"]).square().sum()
        size = sample["nsentences"]
        return (
            loss,
            size,
            {"loss": loss.detach(), "sample_size": size, "nsentences": size, "ntokens": sample["ntokens"]},
        )

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        loss, size = (sum(log[name] for log in logging_outputs) for name in ("loss", "sample_size"))
        metrics.log_scalar("loss", loss / size, size, round=5)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
