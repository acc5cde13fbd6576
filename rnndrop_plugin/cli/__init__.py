"""The commands, each a file with a ``main``, and what several of them share."""
