"""Different processes drop different units."""

from fairseq import utils
from fairseq.trainer import Trainer


def seed_each_process(trainer: Trainer) -> None:
    """fairseq/trainer.py, Trainer._set_seed, gives all processes the same seed at every update, so all would drop the
    same units, each in its own rows. Here only the first process keeps fairseq's seed. (A CPU's generator reads a seed
    modulo 2**32. There, multiples of 2**32 over the golden ratio stay as far apart as possible.)
    """
    seed = trainer.cfg.common.seed + trainer.get_num_updates()
    utils.set_torch_seed(seed + trainer.data_parallel_rank * 0x9E3779B9)
