"""Plot the norm of an LSTM's cell over time under each recurrent dropout, for the nets of reproduce.py table1."""

import argparse
from pathlib import Path

from experiments.runs import read_json
from rnndrop_plugin.cli.arguments import positive
from rnndrop_plugin.cli.plot import save, subplots
from rnndrop_plugin.progress import progress_bar

MODES = {"evaluation": False, "training": True}
SCALINGS = ("expected", "inverted")
COLOURS = {"none": "black", "update": "C0", "hidden": "C1", "cell": "C2"}
STYLES = {"step": "-", "sequence": "--"}


def cell_norms(model, tokens, training: bool) -> list[float]:
    """The Euclidean norm of the cell state after each step, ||c_t|| for t = 1, ..., T, as the mean over sequences.

    Args:
        model: an LSTM classifier of one layer.
        tokens: ``(sequences, time)``, ids of words, none of them padding.
        training: whether to drop as in training, with masks drawn here, or as in evaluation.
    """
    import torch

    rnn = model.rnn.train(training)
    with torch.no_grad():
        inputs = model.features(tokens).transpose(0, 1)
        time, batch, _ = inputs.shape
        (masks,) = rnn.draw_masks(time, batch)
        state, norms = None, []
        for t in range(time):
            _, state = rnn(inputs[t : t + 1], state, masks=[masks.at(t)])
            norms.append(state[1][0].norm(dim=1).mean().item())
    return norms


def load(checkpoint: Path, data: Path):
    """The model of a checkpoint, and the test sequences in the data folder as ``(sequences, time)``.

    Raises:
        OSError, ValueError: one of them cannot be read.
    """
    from fairseq import checkpoint_utils

    import rnndrop_plugin

    rnndrop_plugin.register()
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": str(data)})
    task.load_dataset("test")
    test = task.dataset("test")
    return models[0].eval(), test.collater([*range(len(test))])["net_input"]["src_tokens"]


def find(out: Path, length: int, seed: int) -> dict[str, Path]:
    """The tested checkpoints of a length and seed, by the name of their cell without the length.

    Raises:
        ValueError: there is no such checkpoint, or a result is damaged.
    """
    found = {}
    for path in out.glob(f"{length}-*/seed{seed}/result.json"):
        name = path.parts[-3].removeprefix(f"{length}-")
        found[name] = path.with_name(Path(read_json(path)["checkpoint"]).name)
    if not found:
        raise ValueError(f"{out}: has no finished run of length {length}, seed {seed}, by reproduce.py table1")
    return dict(sorted(found.items(), key=lambda item: ([*COLOURS].index(item[0].split("-")[0]), item[0])))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Plot the norm of the cell state over time, as the mean over the test sequences, under each "
        "recurrent dropout. Evaluation and training with expected and inverted scaling have a panel each. The nets are "
        "those that reproduce.py table1 has trained so far."
    )
    parser.add_argument("out", type=Path, metavar="DIR", help="the --out of reproduce.py table1")
    parser.add_argument("--length", type=positive, required=True, metavar="N", help="length of the sequences")
    parser.add_argument("--seed", type=positive, default=1, metavar="N", help="seed of the trainings (default: 1)")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="picture to write, such as a .png or .svg"
    )
    args = parser.parse_args()
    checkpoints = find(args.out, args.length, args.seed)

    import torch

    torch.manual_seed(args.seed)
    figure, axes = subplots(args.output, len(MODES), len(SCALINGS), figsize=(10, 7), sharex=True, sharey="row")
    for name, checkpoint in progress_bar(checkpoints.items(), unit=" nets"):
        kind, sampling, scaling = (name.split("-") + ["", ""])[:3]
        model, tokens = load(checkpoint, args.out / f"data-{args.length}")
        label = f"{kind}, per {sampling}" if sampling else "none"
        for axis_row, training in zip(axes, MODES.values(), strict=True):
            norms = cell_norms(model, tokens, training)
            for axis, panel in zip(axis_row, SCALINGS, strict=True):
                if scaling in ("", panel):
                    style = STYLES.get(sampling, ":")
                    axis.plot(range(1, len(norms) + 1), norms, style, color=COLOURS[kind], label=label)
    for axis_row, mode in zip(axes, MODES, strict=True):
        for axis, scaling in zip(axis_row, SCALINGS, strict=True):
            axis.set(title=f"{mode}, {scaling} scaling", yscale="log")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
        axis_row[0].set_ylabel("mean norm of c")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), title="dropout", loc="outside right upper")
    save(figure, args.output)
