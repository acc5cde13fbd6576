"""Figures as tables and as a picture."""

from pathlib import Path

from benchmarks.layers import GATES, Figure
from rnndrop_plugin.cli.plot import save, subplots

TITLES = {
    "training": "Training: forward and backward pass / that of torch.nn without dropout",
    "evaluation": "Evaluation: forward pass / that of torch.nn",
    "rows": "Few rows: forward and backward pass with dropout, or forward pass / that of torch.nn without dropout",
    "memory": "Peak memory of a training step / that of torch.nn without dropout",
    "growth": "Growth: a training step with one size doubled / one at {}",
}


def table(figures: list[Figure]) -> str:
    """The figures of one section as lines, which begin with the ratio."""
    lines = []
    shape = None
    for figure in figures:
        if (figure.shape, figure.family) != shape:
            shape = (figure.shape, figure.family)
            lines.append(f"\n  (time, batch, input, hidden) = ({figure.shape})")
        share = "" if figure.share is None else f"{figure.share:7.0%} "
        lines.append(
            f"  {figure.ratio:6.2f} {figure.value:9.1f} {figure.unit} {share} {figure.name} [{figure.backend}]"
        )
    return "\n".join(lines)


def plot(figures: list[Figure], path: Path) -> None:
    """Draw the training ratios as bars, with one panel for each shape."""
    figures = [figure for figure in figures if figure.section == "training" and figure.backend != "reference"]
    shapes = list(dict.fromkeys(figure.shape for figure in figures))
    rows = max(sum(figure.shape == shape for figure in figures) for shape in shapes)
    size = (4 + 2.2 * len(shapes), 1.5 + 0.25 * rows)
    picture, panels = subplots(path, 1, len(shapes), figsize=size, sharey=True, squeeze=False)
    for axes, shape in zip(panels[0], shapes, strict=True):
        bars = [figure for figure in figures if figure.shape == shape][::-1]
        colours = [f"C{list(GATES).index(figure.family)}" for figure in bars]
        axes.barh([figure.name for figure in bars], [figure.ratio for figure in bars], color=colours)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_title(f"({shape})", fontsize="small")
    picture.suptitle("Time of a training step / that of torch.nn without dropout\n(time, batch, input, hidden)")
    save(picture, path)
