"""Two images for detectors, one with two objects of classes 2 and 0, one without any."""

import jax.numpy as jnp
import numpy as np

SIZE = (24, 32)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 12, (2, 3, 2))
    object_boxes = np.concatenate([corner, corner + rng.uniform(6, 12, (2, 3, 2))], -1)
    return {
        "image": jnp.asarray(rng.uniform(-1, 1, (2, *SIZE, 3)), jnp.float32),
        "boxes": jnp.asarray(object_boxes, jnp.float32),
        "box_mask": jnp.array([[True, True, False], [False, False, False]]),
        "box_label": jnp.array([[2, 0, 0], [0, 0, 0]]),
        "box_crowd": jnp.zeros((2, 3), bool),
        "image_size": jnp.array([[24, 32], [24, 32]]),
    }
