import inspect
import types

import pytest
from fairseq.trainer import Trainer

from rnndrop_plugin.compat import memory


def test_the_memory_of_a_gpu_is_read_where_it_is_logged(monkeypatch):
    upstream = inspect.getsource(inspect.unwrap(Trainer.train_step))
    assert "if self.cuda and self.cuda_env is not None:" in upstream  # at every update
    assert Trainer.train_step is memory.train_step

    read = []

    def update(trainer, samples):
        if trainer.cuda_env is not None:
            read.append(trainer.updates)
        if samples == "bad":
            raise FloatingPointError

    monkeypatch.setattr(memory, "upstream_train_step", update)
    cfg = types.SimpleNamespace(common=types.SimpleNamespace(log_interval=3))
    trainer = types.SimpleNamespace(cfg=cfg, cuda_env="a GPU", updates=0, get_num_updates=lambda: trainer.updates)
    for trainer.updates in range(7):
        memory.train_step(trainer, "good")
    with pytest.raises(FloatingPointError):
        memory.train_step(trainer, "bad")
    assert read == [2, 5]  # the third and the sixth update
    assert trainer.cuda_env == "a GPU"
