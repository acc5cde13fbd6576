"""Learning-rate schedules and optimizers that fairseq lacks."""

from rnndrop_plugin.optim import asgd, plateau, rmsprop  # noqa: F401
