"""Run a user's module again in our own way, and leave no trace on it."""

from lightning_neurocorr.isolation.checkpointing import without_checkpointing
from lightning_neurocorr.isolation.inference import ordinary, ordinary_tensors

__all__ = ["ordinary", "ordinary_tensors", "without_checkpointing"]
