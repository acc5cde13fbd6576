"""Losses and the metrics they log."""
