"""Tasks: what is read, how it is batched, and which state travels with it."""

from rnndrop_plugin.tasks import classification, language_modeling, tagging  # noqa: F401
