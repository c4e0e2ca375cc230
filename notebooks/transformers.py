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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/transformers.ipynb)
#
# # Vision transformers: where they look, what they can drop, how few bits they need
#
# A small ViT learns to read a digit on a noisy canvas. Then three questions are put to the same weights: where does the class
# token look, how many tokens can go, and how coarse may every matrix product be? Each is a field of the one network of
# [`jaxface.models`](https://github.com/jaxface/jaxface/blob/main/jaxface/models/transformers/vit.py), none a copy of it.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxface import data, metrics, models
from jaxface.data.transforms.drawing import draw_map, draw_tokens
from jaxface.layers import Attention, Maps, SparseEncoder, calibrate
from jaxface.models.transformers.quantized import Precision, quantized
from jaxface.models.transformers.vit import Block

SIDE, PATCH, STEPS, BATCH = 16, 4, 350, 64
GRID = (SIDE // PATCH, SIDE // PATCH)

train, test = data.cluttered_digits(
    scenes=3000, test_scenes=400, side=SIDE, scales=(1,), noise=(0.3, 0.3), seed=0
)


def arrays(source):
    """(images [N, H, W, 1] in [-1, 1], labels [N], pixels)."""
    pixels = np.stack([source[i]["image"] for i in range(len(source))])
    labels = np.array([source[i]["label"] for i in range(len(source))])
    return pixels.astype(np.float32) / 127.5 - 1, labels, pixels


images, labels, _ = arrays(train)
test_images, test_labels, test_pixels = arrays(test)

# %% [markdown]
# ## A transformer of 16 tokens

# %%
FIELDS = {"embedding": 10, "dim": 32, "depth": 3, "heads": 2, "patch": PATCH}
network = models.create("vit_tiny", **FIELDS)


def trained(network, variables, steps, rate):
    """Variables after some steps of Adam on random batches; what is not a parameter stays."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(params, image, label):
        logits = network.apply({**rest, "params": params}, image, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    @jax.jit
    def run(params, images, labels):
        def step(carry, rng):
            params, state = carry
            chosen = jax.random.randint(rng, (BATCH,), 0, len(images))
            value, gradients = jax.value_and_grad(loss)(params, images[chosen], labels[chosen])
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.key(1), steps)
        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
        return params, losses

    params, losses = run(variables["params"], images, labels)
    return {**rest, "params": params}, losses


def accuracy(network, variables):
    """Share of the test scenes that are read right."""
    logits = jax.jit(partial(network.apply, train=False))(variables, test_images)
    return float(np.mean(np.argmax(logits, -1) == test_labels))


variables = jax.jit(network.init)(jax.random.key(0), images[:1])
variables, losses = trained(network, variables, STEPS, 3e-3)
print(f"{models.parameter_count(variables):,} parameters, test accuracy {accuracy(network, variables):.3f}")
plt.figure(figsize=(5, 2.5))
plt.plot(np.convolve(losses, np.ones(20) / 20, "valid"))
plt.xlabel("step")
plt.ylabel("loss, mean of 20")
plt.show()

# %% [markdown]
# ## Where it looks
#
# `Maps` is a mixing of values that also hands out its attention. In place of the plain one it leaves all parameters where they
# are. What the class token attends to is shown twice: in the last block alone, and rolled out through all of them ([arXiv:2005.00928](https://arxiv.org/abs/2005.00928)).

# %%
watched = network.clone(unit=partial(Block, attention=partial(Attention, mix=Maps)))
_, sown = jax.jit(partial(watched.apply, mutable=["attention"]))(variables, test_images)
layers = [sown["attention"][f"block{i + 1}"]["attention"]["mix"]["maps"][0] for i in range(FIELDS["depth"])]
last = metrics.class_attention(layers[-1])
rollout = metrics.class_attention(metrics.attention_rollout(layers))


def show(rows):
    """Rows of images, each with a title."""
    figure, every = plt.subplots(len(rows), 8, figsize=(10, 1.4 * len(rows)))
    for line, (title, pictures) in zip(every, rows.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=False):
            axes.imshow(np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture)
            axes.axis("off")
        line[0].set_title(title, loc="left", fontsize="small")
    plt.show()


show(
    {
        "scene": test_pixels,
        "last block": [draw_map(p, m, GRID) for p, m in zip(test_pixels[:8], last, strict=False)],
        "rollout": [draw_map(p, m, GRID) for p, m in zip(test_pixels[:8], rollout, strict=False)],
    }
)
boxes = np.array([test[i]["box"] for i in range(len(test))])
y, x = np.mgrid[:SIDE, :SIDE]
inside = [(y >= y0) & (x >= x0) & (y < y1) & (x < x1) for y0, x0, y1, x1 in boxes]
on_digit = [
    metrics.attention_mass(m.reshape(1, *GRID), region)[0] for m, region in zip(last, inside, strict=True)
]
print(f"attention on the digit: {np.mean(on_digit):.2f}; its share of the canvas: {np.mean(inside):.2f}")

# %% [markdown]
# ## What it can drop
#
# The same weights, with an encoder that drops patch tokens before the last block: those to which the class token attends less than
# to a threshold, in units of what it would attend to each if to all alike. AS-ViT
# ([arXiv:2209.13802](https://arxiv.org/abs/2209.13802)) learns such thresholds; here they are given, and nothing is trained again.

# %%
encoder = partial(SparseEncoder, stages=(FIELDS["depth"] - 1,), start=(0.0,))
pruned = models.AdaptiveSparseViT(**FIELDS, encoder=encoder)
prune = jax.jit(partial(pruned.apply, mutable=["pruning"]))
rows, points = {"scene": test_pixels}, []
for threshold in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
    params = {**variables["params"], "encoder": {"thresholds": jnp.array([threshold])}}
    logits, seen = prune({"params": params}, test_images)
    policy = np.asarray(seen["pruning"]["encoder"]["policy"][0][:, 0])
    points.append((policy.sum(axis=1).mean(), np.mean(np.argmax(logits, -1) == test_labels)))
    if threshold in (0.5, 1.0, 2.0):
        pictures = zip(test_pixels[:8], policy, strict=False)
        rows[f"threshold {threshold}"] = [draw_tokens(picture, kept, GRID) for picture, kept in pictures]
show(rows)
print("tokens left, accuracy:", *(f"{tokens:.1f} {share:.3f}," for tokens, share in points))

# %%
plt.figure(figsize=(5, 3))
plt.plot(*zip(*points, strict=True), "o-")
plt.xlabel(f"patch tokens left before the last block, of {GRID[0] * GRID[1]}")
plt.ylabel("test accuracy")
plt.show()

# %% [markdown]
# ## How few bits it needs
#
# `quantized` puts every matrix product on codes of so many bits: weights and inputs, queries, keys, values and probabilities; the
# first and the last layer have 8. `calibrate` gives each quantizer its first step from a batch. Then the same network learns on,
# through the rounding (LSQ, [arXiv:1902.08153](https://arxiv.org/abs/1902.08153)).

# %%
calibrated, learned = [], []
for bits in (8, 4, 2):
    coarse = quantized(network, Precision(bits=bits, rectify=None))
    shapes = jax.eval_shape(coarse.init, jax.random.key(0), images[:1])["params"]
    params = {path: jnp.zeros(leaf.shape) for path, leaf in flatten_dict(shapes).items()}
    params |= flatten_dict(variables["params"])  # what is not a quantizer's has the same name
    start = calibrate(coarse, {"params": unflatten_dict(params)}, images[:256], train=False)
    calibrated.append((bits, accuracy(coarse, start)))
    if calibrated[-1][1] < 0.9 * calibrated[0][1]:  # too coarse without learning
        learned.append((bits, accuracy(coarse, trained(coarse, start, 100, 2e-3)[0])))
print("calibrated:", calibrated, "learned:", learned)

# %%
plt.figure(figsize=(5, 3))
plt.plot(*zip(*calibrated, strict=True), "o-", label="calibrated")
if learned:
    plt.plot(*zip(*learned, strict=True), "s", label="100 steps of learning")
plt.axhline(accuracy(network, variables), color="black", linestyle="--", label="float32")
plt.xlabel("bits")
plt.ylabel("test accuracy")
plt.legend()
plt.show()

# %% [markdown]
# The methods whole, with their studies: [Q-ViT](https://github.com/jaxface/jaxface/blob/main/docs/methods/qvit.md) and
# [AS-ViT](https://github.com/jaxface/jaxface/blob/main/docs/methods/sparsevit.md).
