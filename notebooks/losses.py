# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
# On Colab this fetches the repository and its packages (a minute); in a checkout it does nothing.
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("jaxface") is None:
    subprocess.run(["git", "clone", "-q", "https://github.com/jaxface/jaxface"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./jaxface[all]"], check=True)
checkout = next((p for p in (".", "..", "jaxface") if pathlib.Path(p, "experiments").is_dir()), ".")
sys.path.insert(0, checkout)  # `experiments` and `benchmarks` are used from a checkout

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/losses.ipynb)
#
# # Losses on the sphere
#
# A face is a point on a sphere: an embedding of length one. Every class has a prototype there, and a loss says in which direction,
# and how hard, each point is pulled. Margin losses differ in nothing but that. This notebook draws the pull of four of them, as
# pure functions of [`jaxface.losses`](https://github.com/jaxface/jaxface/blob/main/jaxface/losses/__init__.py), and lets wrong labels act on them.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxface import losses
from jaxface.layers.prototypes import l2_normalize

HEADS = {
    "softmax": losses.Softmax(scale=16.0),
    "CosFace": losses.CosFace(scale=16.0, margin=0.2),
    "ArcFace": losses.ArcFace(scale=16.0, margin=0.3),
    "SFace": losses.SFace(),
}

# %% [markdown]
# ## How hard is a face pulled to its class?
#
# Of 100 classes the face has the angle $\theta$ to its own and right angles to all others. The curve is
# $|\partial L/\partial\theta|$, divided by its maximum: where the others pull a face that is farthest, SFace lets go of one that
# is close, and of nothing else.


# %%
def loss_at(angle, head):
    """The loss of one face at this angle to its prototype, at right angles to 99 others."""
    cosines = jnp.zeros((1, 100)).at[0, 0].set(jnp.cos(angle))
    return head.loss(cosines, jnp.array([0]))[0]


angles = jnp.linspace(0.02, jnp.pi - 0.02, 200)
for name, head in HEADS.items():
    pull = jnp.abs(jax.vmap(jax.grad(loss_at), in_axes=(0, None))(angles, head))
    plt.plot(angles, pull / pull.max(), label=name)
plt.xlabel("angle to the own prototype, radians")
plt.ylabel("pull, of its maximum")
plt.legend()
plt.show()

# %% [markdown]
# ## The field on the sphere
#
# Three prototypes, and the direction in which faces of the first class move (minus the gradient, projected onto the sphere).

# %%
prototypes = l2_normalize(jnp.array([[1.0, 0.0, 0.0], [-0.4, 0.9, 0.0], [-0.4, -0.4, 0.8]]))
polar, azimuth = np.meshgrid(np.linspace(0.3, np.pi - 0.3, 7), np.linspace(0, 2 * np.pi, 14, endpoint=False))
points = jnp.stack(
    [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], -1
).reshape(-1, 3)


def loss_of(point, head):
    """The loss of a point, brought to length one, as a face of class 0; its gradient is tangent to the sphere."""
    return head.loss(l2_normalize(point[None]) @ prototypes.T, jnp.array([0]))[0]


figure, axes = plt.subplots(1, 2, figsize=(10, 5), subplot_kw={"projection": "3d"})
for axis, name in zip(axes, ("ArcFace", "SFace"), strict=True):
    field = -jax.vmap(jax.grad(loss_of), in_axes=(0, None))(points, HEADS[name])
    field = field / jnp.linalg.norm(field, axis=-1).max()
    axis.quiver(*np.asarray(points).T, *np.asarray(field).T, length=0.35, color="gray")
    axis.scatter(*np.asarray(prototypes).T, c=["tab:red", "tab:blue", "tab:green"], s=80)
    axis.set_title(f"{name}: red is the own class")
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## Wrong labels
#
# Eight classes of 40 faces; one face in five has a wrong label. Faces and prototypes are free, and follow the gradient. What counts
# is how near a face comes to its *true* prototype.

# %%
CLASSES, EACH = 8, 40
truth = np.repeat(np.arange(CLASSES), EACH)
random = np.random.default_rng(0)
wrong = random.random(len(truth)) < 0.2
labels = jnp.asarray(np.where(wrong, (truth + random.integers(1, CLASSES, len(truth))) % CLASSES, truth))


def train(head, steps=300, dim=8):
    """(faces, prototypes) after gradient descent. Faces are `features @ matrix`, so that those of one class move together."""
    keys = jax.random.split(jax.random.key(0), 3)
    features = jnp.repeat(jax.random.normal(keys[0], (CLASSES, 16)), EACH, axis=0)
    features += 0.7 * jax.random.normal(keys[1], features.shape)
    weights = {"matrix": jax.random.normal(keys[2], (16, dim)) * 0.3, "prototypes": jnp.eye(CLASSES, dim)}
    optimizer = optax.adam(0.02)

    def objective(weights):
        faces = l2_normalize(features @ weights["matrix"])
        return head.loss(faces @ l2_normalize(weights["prototypes"]).T, labels).mean()

    def step(state, _):
        weights, moments = state
        updates, moments = optimizer.update(jax.grad(objective)(weights), moments)
        return (optax.apply_updates(weights, updates), moments), None

    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=steps)
    return l2_normalize(features @ weights["matrix"]), l2_normalize(weights["prototypes"])


for name, head in HEADS.items():
    faces, centers = jax.jit(train, static_argnums=0)(head)
    own = jnp.arccos(jnp.clip(jnp.sum(faces * centers[truth], axis=-1), -1, 1))
    right = jnp.mean(jnp.argmax(faces @ centers.T, axis=-1) == truth)
    print(
        f"{name:8}  angle to the true prototype: {own[~wrong].mean():.2f} with the right label, {own[wrong].mean():.2f} with a "
        f"wrong one; nearest prototype is the true one for {right:.3f}"
    )

# %% [markdown]
# On real training runs: `python -m experiments.reproduce sface` measures this over seeds, on rendered people with 40 % wrong labels.
