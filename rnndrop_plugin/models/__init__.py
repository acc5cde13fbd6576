"""Models: recurrent networks with an output layer, and their presets."""

from rnndrop_plugin.models import seq2seq  # noqa: F401
from rnndrop_plugin.models.classifier import RecurrentClassifier
from rnndrop_plugin.models.language_model import RecurrentLanguageModel
from rnndrop_plugin.models.tagger import RecurrentTagger

__all__ = ["RecurrentClassifier", "RecurrentLanguageModel", "RecurrentTagger"]
