"""Losses and the metrics they log."""

from rnndrop_plugin.criterions.cross_entropy import RnndropCrossEntropy

__all__ = ["RnndropCrossEntropy"]
