"""Turning text, tags and word vectors into tokens and features, and the datasets that hold them."""
