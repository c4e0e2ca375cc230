"""Optax transformations: gradients in, updates of the parameters out.

| name | idea | source |
|---|---|---|
| `amsgrad`, `uncorrected_adam` | without a correction of the moments' bias, which optax has not | Reddi et al. 2018 |
| `bamsprod` | AMSGrad of latent binary weights, its second moment in a closing range | arXiv:2009.13799 |
| `bop` | binary weights that flip, without a step size | arXiv:1906.02107 |
| `project_box` | parameters stay in [-1, 1] | |
| `sampled_rows` | what a step did not sample stays, its momentum too | PartialFC, arXiv:2203.15565, version 1 |
| `keep_last_gradient` | the gradient of a step is there in the next | RBONN, arXiv:2209.01542, released code |
| `recurrent_bilinear` | filters whose scale is dense and weights are small grow by a learned factor | RBONN, arXiv:2209.01542 |
| `decoupled_step`, `psi_update` | an architecture is corrected where weights are dense | DCP-NAS, arXiv:2306.15390 |
| `cp_indicator` | operations are judged by a real and a binary network's accuracy | CP-NAS, arXiv:2005.00057 |
| `train_only`, `freeze` | parameters of some names move, the others stay; and the other way round | |
| `scale_groups` | a rate for each group of parameters, or by depth | BEiT, arXiv:2106.08254 |
| `track_sign_flips` | counts the latent weights that change their sign | |

`RULES` has the update rules by name, optax's lion, lars, lamb, muon and adafactor among them; `simulate_online` is a problem to
tell rules apart on.
"""

from jaxface.optimizers.bamsprod import (
    bamsprod,
    bamsprod_rule,
    h_norm_quant_error,
    h_norm_scale,
    latent_weights,
    range_bounds,
    scale_by_bamsprod,
)
from jaxface.optimizers.bop import bop
from jaxface.optimizers.box import project_box
from jaxface.optimizers.dcp_nas import (
    Decoupled,
    bounded_psi,
    cp_indicator,
    decoupled_step,
    density_gate,
    operation_norms,
    psi_gradient,
    psi_update,
    sample_without_replacement,
)
from jaxface.optimizers.groups import check_groups, freeze, scale_groups, selects
from jaxface.optimizers.lifelong import fuse_tasks, fusion_rate, fusion_weights
from jaxface.optimizers.online import online_regret, simulate_online
from jaxface.optimizers.rbonn import keep_last_gradient, last_gradient, recurrent_bilinear
from jaxface.optimizers.rules import RULES, NamedRule, Rule
from jaxface.optimizers.sampled_rows import sampled_rows
from jaxface.optimizers.sign_flips import flip_rate, track_sign_flips
from jaxface.optimizers.trained_parts import name_mask, train_only
from jaxface.optimizers.uncorrected_adam import amsgrad, scale_by_uncorrected_adam, uncorrected_adam

__all__ = [
    "RULES",
    "Decoupled",
    "NamedRule",
    "Rule",
    "amsgrad",
    "bamsprod",
    "bamsprod_rule",
    "bop",
    "bounded_psi",
    "check_groups",
    "cp_indicator",
    "decoupled_step",
    "density_gate",
    "flip_rate",
    "freeze",
    "fuse_tasks",
    "fusion_rate",
    "fusion_weights",
    "h_norm_quant_error",
    "h_norm_scale",
    "keep_last_gradient",
    "last_gradient",
    "latent_weights",
    "name_mask",
    "online_regret",
    "operation_norms",
    "project_box",
    "psi_gradient",
    "psi_update",
    "range_bounds",
    "recurrent_bilinear",
    "sample_without_replacement",
    "sampled_rows",
    "scale_by_bamsprod",
    "scale_by_uncorrected_adam",
    "scale_groups",
    "selects",
    "simulate_online",
    "track_sign_flips",
    "train_only",
    "uncorrected_adam",
]
