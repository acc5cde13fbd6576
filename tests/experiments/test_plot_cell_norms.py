from types import SimpleNamespace

import pytest
import torch

from experiments import plot_cell_norms
from rnndrop_plugin.modules import LSTM

KINDS = {
    "none": {},
    "update": {"update_dropout": 0.5},
    "hidden": {"hidden_dropout": 0.5},
    "cell": {"cell_dropout": 0.5},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sampling", ["step", "sequence"])
@pytest.mark.parametrize("scaling", ["expected", "inverted"])
@pytest.mark.parametrize("kind", KINDS)
def test_norms(kind, scaling, sampling, training):
    """Step by step as in one run over the whole sequences, with the masks that the layer would draw."""
    embedding = torch.nn.Embedding(8, 4)
    model = SimpleNamespace(features=embedding, rnn=LSTM(4, 6, sampling=sampling, scaling=scaling, **KINDS[kind]))
    tokens = torch.randint(8, (5, 7))
    torch.manual_seed(3)
    norms = plot_cell_norms.cell_norms(model, tokens, training)
    torch.manual_seed(3)
    masks = model.rnn.train(training).draw_masks(7, 5)
    assert len(norms) == 7
    for steps in (1, 4, 7):
        inputs = embedding(tokens[:, :steps]).transpose(0, 1)
        kept = [m._replace(keep=m.keep[:steps]) if m.keep is not None and m.keep.dim() == 3 else m for m in masks[0]]
        _, (_, c) = model.rnn(inputs, masks=[type(masks[0])(*kept)])
        assert norms[steps - 1] == pytest.approx(c[0].square().sum(1).sqrt().mean().item(), rel=1e-5)


def test_no_runs(call, tmp_path):
    (tmp_path / "30-none" / "seed1").mkdir(parents=True)
    status, out, err = call(plot_cell_norms, tmp_path, "--length", 30, "--output", tmp_path / "c.png")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "has no finished run of length 30, seed 1, by reproduce.py table1" in err
    assert not (tmp_path / "c.png").exists()


def test_damaged_result(call, tmp_path, write):
    write(tmp_path / "30-none" / "seed1" / "result.json", "{")
    status, out, err = call(plot_cell_norms, tmp_path, "--length", 30, "--output", tmp_path / "c.png")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "result.json: is damaged (not JSON, or no object)" in err


def test_an_ending_of_no_picture_is_said_before_any_net_is_read(call, tmp_path, write):
    write(tmp_path / "30-none" / "seed1" / "result.json", '{"checkpoint": "absent.pt"}')
    status, out, err = call(plot_cell_norms, tmp_path, "--length", 30, "--output", tmp_path / "c.xyz")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "c.xyz: its ending must be that of a picture: " in err
