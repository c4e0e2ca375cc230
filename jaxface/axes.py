"""Names of the device-mesh axes, and how a pure function sees them.

The same step runs under `jit` over a mesh, where arrays are global and no axis name is bound, and under `pmap`,
where each replica sees its own shard and the name `DATA` is bound. A function that needs a value over the whole
batch (a mean of gradients, batch statistics) asks `bound` and is then right in both.
"""

import jax

DATA = "data"
MODEL = "model"


def bound(name: str) -> bool:
    """Whether `name` is a mapped axis at this point of the trace."""
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True


def mean(tree, name: str = DATA):
    """Mean of every leaf over the replicas where `name` is bound; the tree itself where it is not."""
    return jax.lax.pmean(tree, name) if bound(name) else tree
