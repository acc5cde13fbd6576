"""The commands: one a file, each with a ``main``."""
