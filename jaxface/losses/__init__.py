"""Pure losses: arrays in, per-example losses out.

| name | idea | source |
|---|---|---|
| `sface_loss` | weighted cosines, no normaliser; the weights fade inside safe angles | arXiv:2205.12010 |
| `softmax_loss` | cross-entropy over scaled cosines | arXiv:1704.06369 |
| `cosface_loss` | cosine margin | arXiv:1801.09414 |
| `arcface_loss` | angular margin | arXiv:1801.07698 |
| `cross_entropy` | over logits, classes sharded or not | |
| `partial_fc_loss` | all of these over sharded prototypes, with sampled negatives; no [B, C] | arXiv:2203.15565 |
"""

from jaxface.losses.partial_fc import partial_fc_loss, sample_classes, shard_bounds
from jaxface.losses.sface import SFaceTerms, sface_loss, sface_rescale, sface_terms
from jaxface.losses.softmax import arcface_loss, cosface_loss, cross_entropy, margin_logits, softmax_loss

__all__ = [
    "SFaceTerms",
    "arcface_loss",
    "cosface_loss",
    "cross_entropy",
    "margin_logits",
    "partial_fc_loss",
    "sample_classes",
    "sface_loss",
    "sface_rescale",
    "sface_terms",
    "shard_bounds",
    "softmax_loss",
]
