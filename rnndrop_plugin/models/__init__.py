"""Models: recurrent networks with an output layer, and their presets."""

from rnndrop_plugin.models.classifier import RecurrentClassifier
from rnndrop_plugin.models.language_model import RecurrentLanguageModel
from rnndrop_plugin.models.seq2seq import RecurrentSeq2Seq
from rnndrop_plugin.models.tagger import RecurrentTagger

__all__ = ["RecurrentClassifier", "RecurrentLanguageModel", "RecurrentSeq2Seq", "RecurrentTagger"]
