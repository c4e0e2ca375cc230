"""Optax transformations: gradients in, updates of the parameters out.

| name | idea | source |
|---|---|---|
| `sampled_rows` | what a step did not sample stays, its momentum too | PartialFC, arXiv:2203.15565, version 1 |
| `keep_last_gradient` | the gradient of a step is there in the next | RBONN, arXiv:2209.01542, released code |
| `recurrent_bilinear` | filters whose scale is dense and weights are small grow by a learned factor | RBONN, arXiv:2209.01542 |
| `train_only` | parameters of some names move, the others stay | |
| `track_sign_flips` | counts the latent weights that change their sign | |
"""

from jaxface.optimizers.rbonn import keep_last_gradient, last_gradient, recurrent_bilinear
from jaxface.optimizers.sampled_rows import sampled_rows
from jaxface.optimizers.sign_flips import flip_rate, track_sign_flips
from jaxface.optimizers.trained_parts import name_mask, train_only

__all__ = [
    "flip_rate",
    "keep_last_gradient",
    "last_gradient",
    "name_mask",
    "recurrent_bilinear",
    "sampled_rows",
    "track_sign_flips",
    "train_only",
]
