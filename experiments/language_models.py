"""What the tables of language models share: their cells, their flags and their layout."""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.experiment import (
    check_data,
    common_flags,
    dropout_flags,
    files_of,
    first_columns,
    halves,
    header,
    of_cell,
    row,
    spread,
)
from experiments.runs import Run
from rnndrop_plugin.data.tokenization import Tokenization

CHECKPOINTS = {"best": "checkpoint_best.pt", "last": "checkpoint_last.pt"}
SPLITS = ["valid", "test"]


class LanguageModels(NamedTuple):
    """A table of language models.

    Attributes:
        title: its heading.
        level: the level of its tokens, "word" or "char".
        batch: the flags of the batches, for training and tests.
        train: the other flags of the training.
        limit: the paper's number of epochs, after which a training ends at the latest.
        ends: whether a training is over, as in ``Run``.
        metrics: the tested metrics by their names in the log, with their headings. The last one is the paper's.
        digits: how many decimals the figures have.
        paper: the paper's validation and test figures by the cell's name, in the order of the table.
        notes: notes on the protocol and the figures, for the end of the table.
    """

    title: str
    level: str
    batch: list[str]
    train: list[str]
    limit: int
    ends: Callable[[list[dict]], bool] | None
    metrics: dict[str, str]
    digits: int
    paper: dict[str, tuple[float, float]]
    notes: Sequence[str]

    def prepare(self, args: argparse.Namespace) -> None:
        """Check that the data are there and of the right level."""
        made = f"rnndrop prepare ptb --level {self.level}"
        check_data(args, files_of("", ("train", *SPLITS)), made)
        tokenization = Tokenization.load(args.data)
        if tokenization and (tokenization.tokenizer == "characters") != (self.level == "char"):
            raise ValueError(f"{args.data}: its tokens are not those of {made}, which {args.table} needs")

    def runs(self, args: argparse.Namespace) -> list[Run]:
        """The runs of all cells of the paper with each seed."""
        data = str(args.data or "DATA")  # --list needs none
        shared = [data, *common_flags("rnndrop_language_modeling"), *self.batch]
        train = [*shared, *self.train, "--max-epoch", str(args.epochs or self.limit)]
        return [
            Run(
                f"{cell}/seed{seed}",
                [*train, *dropout_flags(cell), "--seed", str(seed)],
                shared,
                SPLITS,
                list(self.metrics),
                ends=self.ends,
                checkpoints=list(CHECKPOINTS.values()),
            )
            for seed in args.seeds
            for cell in self.paper
        ]

    def markdown(self, results: dict[str, dict]) -> str:
        """The table with the paper's figures beside ours, and the length and the origin of each run."""
        lines = [f"# {self.title}", "", self._protocol(results), ""]
        heads = ["dropout", "rate", "sampling", "checkpoint"]
        heads += [f"{title}: {split}" for title in self.metrics.values() for split in SPLITS]
        heads += ["paper: valid / test", "ratio to it", "seeds"]
        for title, paper in halves(self.paper):
            lines += [f"## {title}", "", *header(heads)]
            for cell in paper:
                lines += self._rows(cell, of_cell(results, cell))
            lines.append("")
        heads = ["run", "epochs", "ended by", "updates", "minutes", "commit", "device"]
        lines += ["## Runs", "", *header(heads)]
        for name, result in results.items():
            end = "its rule" if result["solved"] else "the limit"
            figures = [f"{result['epochs']}", end, f"{result['updates']:,}", f"{result['seconds'] / 60:.1f}"]
            lines.append(row([name, *figures, ", ".join(result["commits"]), ", ".join(result["devices"])]))
        return "\n".join([*lines, "", *self.notes]) + "\n"

    def _protocol(self, results: dict[str, dict]) -> str:
        """A sentence that says which protocol was run."""
        for result in results.values():
            limit = result["train"][result["train"].index("--max-epoch") + 1]
            if int(limit) != self.limit:
                return f"**A shortened protocol**: at most {limit} of the paper's {self.limit} epochs."
        return f"The paper's protocol: at most {self.limit} epochs."

    def _rows(self, cell: str, results: list[dict]) -> list[str]:
        """The rows of a cell: one for each checkpoint or, without results, one with only the paper's figures."""
        paper = [f"{figure:.{1 if self.level == 'word' else 3}f}" for figure in self.paper[cell]]
        lines = []
        for checkpoint, file in CHECKPOINTS.items() if results else [("", "")]:
            columns = [
                [result["tests"][file][split][metric] for result in results]
                for metric in self.metrics
                for split in SPLITS
            ]
            ours = [spread(values, self.digits) for values in columns]
            ratios = [
                f"{sum(values) / len(values) / figure:.3f}"
                for values, figure in zip(columns[-len(SPLITS) :], self.paper[cell], strict=True)
                if values
            ]
            end = [" / ".join(paper), " / ".join(ratios), str(len(results))]
            lines.append(row([*first_columns(cell), checkpoint, *ours, *end]))
        return lines
