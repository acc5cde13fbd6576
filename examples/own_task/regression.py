"""Sequence regression from scratch: the adding problem (Hochreiter and Schmidhuber 1997, section 5.4).

A sequence has at each step a random number and a marker. Two steps are marked, and the sum of their numbers is to be
predicted. A network that always predicts the mean, 1, has a mean squared error of 1/6.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.data import (
    BaseWrapperDataset,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    RawLabelDataset,
)
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel, register_model
from fairseq.tasks import FairseqTask, register_task
from torch import Tensor, nn

from rnndrop_plugin.errors import InputError
from rnndrop_plugin.models.config import RecurrentConfig, build_recurrent, init_uniform
from rnndrop_plugin.modules import LSTM, Dropout

SIZES = {"train": 2000, "valid": 500, "test": 500}


@dataclass
class AddingProblemConfig(FairseqDataclass):
    length: int = field(default=30, metadata={"help": "steps of a sequence"})


@register_task("adding_problem", dataclass=AddingProblemConfig)
class AddingProblem(FairseqTask):
    source_dictionary = target_dictionary = None  # there are no words

    def load_dataset(self, split: str, **kwargs):
        size, length = SIZES[split], self.cfg.length
        if length < 2:
            raise InputError(f"--length must be at least 2, got {length}")  # this becomes one line for the user
        generator = torch.Generator().manual_seed(list(SIZES).index(split))
        numbers = torch.rand(size, length, generator=generator)
        marked = torch.rand(size, length, generator=generator).topk(2).indices
        markers = torch.zeros(size, length).scatter_(1, marked, 1.0)
        inputs = list(torch.stack([numbers, markers], dim=2))
        # A batch: the model is called with net_input, and the trainer counts nsentences and ntokens.
        batch = {
            "id": IdDataset(),
            "nsentences": NumSamplesDataset(),
            "ntokens": NumelDataset(list(numbers), reduce=True),
            "net_input": {"inputs": BaseWrapperDataset(inputs)},
            "target": RawLabelDataset((numbers * markers).sum(1).tolist()),
        }
        self.datasets[split] = NestedDictionaryDataset(batch, sizes=[np.full(size, length)])

    def max_positions(self):
        return self.cfg.length


@register_model("lstm_regression", dataclass=RecurrentConfig)
class LSTMRegression(BaseFairseqModel):
    """A number read off the last state. RecurrentConfig brings all flags of dropout.

    Forward dropout before and after the recurrent layers is the model's to apply: here --decoder-dropout-out.
    """

    def __init__(self, cfg: RecurrentConfig, rnn: nn.Module):
        super().__init__()
        self.rnn = rnn
        self.dropout_out = Dropout(cfg.decoder_dropout_out)
        self.output = nn.Linear(rnn.hidden_size, 1)

    @classmethod
    def build_model(cls, cfg, task):
        model = cls(cfg, build_recurrent(LSTM, cfg, input_size=2))
        init_uniform(model, cfg.init_range)
        return model

    def forward(self, inputs: Tensor) -> Tensor:
        """``(batch, time, 2)`` to ``(batch,)``."""
        _, (h, _) = self.rnn(inputs.transpose(0, 1))
        return self.output(self.dropout_out(h[-1])).squeeze(1)


@register_criterion("mean_squared_error")
class MeanSquaredError(FairseqCriterion):
    def forward(self, model, sample):
        """The summed loss, what its gradient is divided by, and the sums to log."""
        loss = (model(**sample["net_input"]) - sample["target"]).square().sum()
        size = sample["nsentences"]
        return (
            loss,
            size,
            {"loss": loss.detach(), "sample_size": size, "ntokens": sample["ntokens"], "nsentences": size},
        )

    @staticmethod
    def reduce_metrics(logging_outputs):
        loss, size = (sum(log[name] for log in logging_outputs) for name in ("loss", "sample_size"))
        metrics.log_scalar("loss", loss / size, size, round=5)

    @staticmethod
    def logging_outputs_can_be_summed():
        return True
