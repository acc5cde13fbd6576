import importlib.util
import types

import torch
from fairseq import trainer

from rnndrop_plugin.ops.masks import draw_mask


def test_fairseq_seeds_the_processes_alike():
    spec = importlib.util.spec_from_file_location("fairseq.unpatched_trainer", trainer.__file__)
    unpatched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpatched)

    def drawn(set_seed, rank, seed=1, updates=5) -> tuple:
        cfg = types.SimpleNamespace(common=types.SimpleNamespace(seed=seed))
        process = types.SimpleNamespace(cfg=cfg, data_parallel_rank=rank, get_num_updates=lambda: updates)
        set_seed(process)
        mask = draw_mask(0.5, 3, 4, 8).keep.flatten().tolist()
        return *mask, *torch.nn.functional.dropout(torch.ones(64)).tolist()

    upstream, ours = unpatched.Trainer._set_seed, trainer.Trainer._set_seed
    assert drawn(upstream, 0) == drawn(upstream, 1) == drawn(ours, 0)
    several = [drawn(ours, rank, updates=updates) for rank in range(8) for updates in range(5)]
    assert len(set(several)) == 40
    assert drawn(ours, 1) == drawn(ours, 1) != drawn(ours, 1, seed=2)
