"""Datasets: what one batch of a task is made of."""
