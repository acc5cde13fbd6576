"""A warning if the loss diverges, since fairseq goes on training then."""

import logging
import math

from fairseq.trainer import Trainer

logger = logging.getLogger(__name__)


def watch(trainer: Trainer, logged: dict | None) -> None:
    """Warn when :class:`LossWatch` finds that the loss diverges, as with Adam and the default rate of 0.25. fairseq
    goes on training however large the loss is. A task that predicts no symbols is not watched, because its loss is not
    in bits."""
    if not logged or (symbols := trainer.task.target_dictionary) is None:
        return
    name = "nll_loss" if "nll_loss" in logged else "loss"
    if name == "loss" and trainer.cfg.optimization.sentence_avg:  # this is the loss per sentence
        return
    if not hasattr(trainer, "loss_watch"):
        trainer.loss_watch = LossWatch(len(symbols))
    at_interval = trainer.get_num_updates() % trainer.cfg.common.log_interval == 0
    warning = trainer.loss_watch.update(float(logged[name]), at_interval)
    if warning and trainer.is_data_parallel_master:
        logger.warning(f"update {trainer.get_num_updates()}: {warning}: a lower --lr or a --clip-norm may help")


class LossWatch:
    """Warns once if the mean loss is more than twice that of a uniform prediction and more than twice the first loss.

    A model that learns anything is better than both. Because single batches of a good training may be far from the
    mean, the mean is taken over at least 10 updates, and a uniform prediction over few classes counts as 4 bits.
    """

    def __init__(self, classes: int):
        self.limit = 2 * max(math.log2(max(classes, 1)), 4.0)
        self.first: float | None = None
        self.sum, self.count = 0.0, 0
        self.warned = False

    def update(self, loss: float, at_interval: bool) -> str | None:
        """Take the loss of an update in bits. Returns the warning due at the end of an interval of updates, if any."""
        if self.first is None:
            self.first = loss
        self.sum, self.count = self.sum + loss, self.count + 1
        if not at_interval or self.count < 10 or self.warned:
            return None
        mean = self.sum / self.count
        self.sum, self.count = 0.0, 0
        if mean <= max(self.limit, 2 * self.first):
            return None
        self.warned = True
        return f"the loss is {mean:.1f} bits, it began with {self.first:.1f}, and guessing has {self.limit / 2:.1f}"
