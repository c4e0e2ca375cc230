"""Where a run may report its numbers beside its own files: services that track runs, each in a module that registers itself."""

from jaxface.training.writers.base import WRITERS, Tracking

__all__ = ["WRITERS", "Tracking"]
