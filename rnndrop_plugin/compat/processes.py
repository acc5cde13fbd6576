"""Several processes drop other units each."""

from fairseq import utils
from fairseq.trainer import Trainer


def seed_each_process(trainer: Trainer) -> None:
    """fairseq/trainer.py, Trainer._set_seed, seeds the processes alike at every update: all would drop the same
    units, each in its own rows. The first process keeps fairseq's seed. (A CPU's generator reads a seed modulo
    2**32, and multiples of 2**32 over the golden ratio stay as far apart there as can be.)
    """
    seed = trainer.cfg.common.seed + trainer.get_num_updates()
    utils.set_torch_seed(seed + trainer.data_parallel_rank * 0x9E3779B9)
