"""Losses and the metrics they log."""

from rnndrop_plugin.criterions.classification import RnndropClassification
from rnndrop_plugin.criterions.cross_entropy import RnndropCrossEntropy
from rnndrop_plugin.criterions.tagging import RnndropTagging

__all__ = ["RnndropClassification", "RnndropCrossEntropy", "RnndropTagging"]
