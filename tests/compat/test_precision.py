import pytest
import torch
from fairseq import trainer, utils


@pytest.mark.skipif(utils.xm is not None, reason="torch_xla is installed")
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--bf16",), "--bf16 asks fairseq for a TPU, and torch_xla is not installed"),
        (("--memory-efficient-bf16",), "--bf16 asks fairseq for a TPU"),
        (("--tpu",), "--tpu asks fairseq for a TPU"),
        (("--cpu", "--fp16"), "--fp16 needs a GPU"),
        (("--cpu", "--memory-efficient-fp16"), "--fp16 needs a GPU"),
    ],
)
def test_fairseq_has_no_words_for_precisions_that_the_machine_lacks(
    command, training, tmp_path, flags, line, refuse, unpatch
):
    arguments = (*training, "--max-update", 1, "--save-dir", tmp_path, *flags)
    assert line in refuse(*arguments)
    assert not list(tmp_path.iterdir())
    unpatch(trainer.Trainer, "__init__")
    if flags == ("--cpu", "--fp16") and not torch.cuda.is_available():
        assert "Torch not compiled with CUDA" in refuse(*arguments)
    else:
        with pytest.raises((AttributeError, ValueError)):
            command(*arguments)
