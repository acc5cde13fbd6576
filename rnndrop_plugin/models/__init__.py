"""Models: recurrent networks with an output layer, and their presets."""

from rnndrop_plugin.models import classifier, language_model, seq2seq, tagger  # noqa: F401
