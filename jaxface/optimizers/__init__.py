"""Optax transformations: gradients in, updates of the parameters out.

| name | idea | source |
|---|---|---|
| `sampled_rows` | what a step did not sample stays, its momentum too | PartialFC, arXiv:2203.15565, version 1 |
"""

from jaxface.optimizers.sampled_rows import sampled_rows

__all__ = ["sampled_rows"]
