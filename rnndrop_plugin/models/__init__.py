"""Models: recurrent networks with an output layer, and their presets."""

from rnndrop_plugin.models import language_model  # noqa: F401
