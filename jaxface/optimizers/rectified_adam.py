"""Rectified Adam by name (RAdam, arXiv:1908.03265): optax's, whose first five steps at b2 = 0.999 are plain momentum.

Methods: lifelong
"""

import optax

from jaxface.optimizers.rules import RULES, Rule


@RULES.register("radam")
def _radam(momentum, decay):
    return Rule([optax.scale_by_radam(b1=momentum), decay])
