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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/quality_and_liveness.ipynb)
#
# # What a score is worth: quality models attacked, liveness with uncertain labels
#
# Two kinds of scores. A quality model says how good a picture is: can a change that nobody sees move what it says? A detector of
# presentation attacks says whether a face is live: does it know when an image is too bad to tell? All of it is on one seed; what the
# methods are worth against their baselines over several seeds stands on their pages.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.methods import dpm, niqa_attack
from experiments.recipes import quality
from jaxface import attacks, data, metrics, training

QUALITY = niqa_attack.Config(models=("cnn",), steps=300)
ATTACK = attacks.PerceptualAttack(steps=40, step=6e-4, keep_every=0)
LIVENESS = dataclasses.replace(dpm.Config.digits(), steps=500, quality_steps=400)
UNCERTAIN = dataclasses.replace(
    dpm.Config.digits(), lam=1.0, beta=3.0, projection=16, corrections=(), steps=600
)

# %% [markdown]
# ## A quality model
#
# Dead leaves, blurred, noisy or in blocks, with an opinion from 0 to 10 that falls with the distortion. A small network learns it.

# %%
rated = quality.load(QUALITY)
stage, rate_of = quality.model_stage(QUALITY, "cnn", rated)
rate = rate_of(training.run([stage]).state)  # image [H, W, C] in [0, 1] -> score from 0 to 10
shown = jnp.asarray(np.stack([rated.held_out[i]["image"] for i in range(100)]), jnp.float32) / 255
scores = np.asarray(jax.jit(jax.vmap(rate))(shown))
opinions = np.asarray(rated.held_out.opinions)[:100]
print(f"rank correlation of scores and opinions: {metrics.srcc(scores, opinions):.3f}")
figure, axes = plt.subplots(1, 6, figsize=(11, 2.2))
for axis, index in zip(axes, np.argsort(scores)[:: len(scores) // 6][:6], strict=True):
    axis.imshow(shown[index])
    axis.set_title(f"says {scores[index]:.1f}, is {opinions[index]:.1f}", fontsize="small")
    axis.axis("off")
plt.show()

# %% [markdown]
# ### Attacked
#
# The attack climbs $-D(x, x_0) + \lambda (f(x) - f_0)^2$, up and down, with the structural similarity as what people see. A whole ladder
# of $\lambda$ around the threshold at which the score gets away from the penalty is one compiled program. Below: the image, what makes
# the model say more and less, and the differences twenty-fold.

# %%


def dissimilarity(image, start):
    return 1 - metrics.ssim(image, start)


start = shown[int(np.argmin(np.abs(scores - 5)))]
key = jax.random.key(0)
ladder = attacks.ladder_around(attacks.critical_weight(rate, dissimilarity, start, key, ATTACK), 6)
told = attacks.perceptual_attack(rate, dissimilarity, start, key, ladder, ATTACK)
pair = np.asarray(told.iterates[-1])  # of the last rung: up, then down
figure, axes = plt.subplots(1, 5, figsize=(11, 2.6))
before = np.asarray(start * 255).round()
panels = [("the image", before), ("says more", pair[0]), ("says less", pair[1])]
panels += [
    (f"20 × change, {name}", 128 + 20 * (image - before))
    for name, image in (("up", pair[0]), ("down", pair[1]))
]
words = [float(rate(start)), *map(float, told.scores[-1])]
for k, (axis, (name, image)) in enumerate(zip(axes, panels, strict=True)):
    axis.imshow(np.clip(image, 0, 255).astype(np.uint8))
    axis.set_title(name + (f": {words[k]:.1f}" if k < 3 else ""), fontsize="small")
    axis.axis("off")
plt.show()

# %% [markdown]
# ### Beside random changes of the same size
#
# Any change of an image may move a score. The control shuffles the change over places and signs: the same root mean square and maximum.

# %%
figure, axis = plt.subplots(figsize=(6, 3))
moves = np.asarray(told.scores) - float(rate(start))
for k, name in enumerate(("up", "down")):
    axis.plot(np.asarray(told.distances)[:, k], moves[:, k], marker="o", label=f"attacked {name}")
random = [
    np.asarray(jax.vmap(rate)(attacks.shuffled_changes(image[0].astype(np.float32) / 255, start, key)))
    - float(rate(start))
    for image in np.asarray(told.iterates)
]
for distance, values in zip(np.asarray(told.distances)[:, 0], random, strict=True):
    axis.plot([distance] * len(values), values, ".", color="gray", markersize=3)
axis.set_xlabel("1 - SSIM")
axis.set_ylabel("change of the score")
axis.legend(fontsize="small")
plt.show()
print(
    f"largest change: attacked {np.abs(moves).max():.2f}, at random {max(np.abs(v).max() for v in random):.2f}"
)

# %% [markdown]
# ## Liveness: how sure may a detector be?
#
# Digits stand for faces: 5 to 9 are live, 0 to 4 attacks. The detector learns from clean images. In the test four images of ten are
# captured badly: noise is mixed in, by half or more. The detector does not know that, and is as sure as ever.
#
# Behind it, trunk and classifier frozen, a small head learns from bad captures how much the margin of an image varies. The variance
# moderates the margin: the farther apart image and sureness, the nearer the probability comes to one half. It never changes a
# decision at one half, but it changes who is ahead of whom.

# %%
split = data.load(LIVENESS.data, image_size=LIVENESS.image_size, seed=LIVENESS.data_seed)
print(
    f"{len(split.train)} digits to learn from, {len(split.development)} to fit the variance on, {len(split.held_out)} to test"
)
outcome = training.run(dpm.build(LIVENESS))
names = {
    "raw": "as it is",
    "temperature": "one temperature",
    "scaled": "variance per image",
    "refit": "margin fitted anew",
}
print(f"{'margin':>20}  accuracy  likelihood  calibration  live accepted at 1 % of the attacks")
for name, words in names.items():
    keys = (f"quality/{key}@{name}" for key in ("accuracy", "nll", "ece", "tpr_at_1e-2"))
    values = [outcome.metrics.get(key, float("nan")) for key in keys]
    print(f"{words:>20}  {values[0]:8.3f}  {values[1]:10.3f}  {values[2]:11.3f}  {values[3]:.3f}")

# %% [markdown]
# The refitted margin is the honest control: the same head, the same images and steps, but it predicts the margin itself. It does as
# well. What the variance has beside it: decisions at one half stay what they were, and it is a number that can be read.
#
# ### What the variance sees

# %%
network, variables = dpm.deployed(LIVENESS, outcome.state, {"digit": 10})
records = [split.held_out[i] for i in range(len(split.held_out))]
images = jnp.asarray(np.stack([record["image"] for record in records]), jnp.float32) / 127.5 - 1
severity = np.array([record["severity"] for record in records])
said = jax.jit(network.apply)(variables, images)
margin = np.asarray(said["logits"][:, 1] - said["logits"][:, 0])
variance = np.asarray(said["v"])
figure, axes = plt.subplots(2, 9, figsize=(11, 3))
order = np.argsort(variance)
for row, (title, rows) in zip(axes, (("surest", order[:9]), ("least sure", order[-9:])), strict=True):
    for axis, index in zip(row, rows, strict=True):
        axis.imshow(records[index]["image"][..., 0], cmap="gray")
        axis.set_title(f"v {variance[index]:.3g}", fontsize="small")
        axis.axis("off")
    row[0].set_ylabel(title)
plt.show()
bad = severity > 0
print(f"mean variance: clean {variance[~bad].mean():.1f}, captured badly {variance[bad].mean():.1f}")

# %% [markdown]
# ### Reliability
#
# Where a detector is as often right as it says, the line is the diagonal.

# %%
live = np.asarray(split.held_out.labels) == 0
moderated = margin / np.sqrt(1 + np.pi / 8 * variance)
figure, axis = plt.subplots(figsize=(4.5, 4.5))
axis.plot([0, 1], [0, 1], "k--", linewidth=1)
for name, logits in (("as it is", margin), ("variance per image", moderated)):
    table = metrics.reliability_bins(logits, live)
    axis.plot(table.confidence, table.frequency, marker="o", label=name)
axis.set_xlabel("probability of live that is said")
axis.set_ylabel("share that is live")
axis.legend()
plt.show()

# %% [markdown]
# ## Labels of which some are wrong
#
# Semantic labels, here which digit it is, help a detector that has few labels of live and attack: 60 of 600 images say it. When a part
# of the digits is drawn anew, a classifier on the features fits them all the same. DPM-LQ classifies them from a sample of a Gaussian
# code, and what the code tells beyond a standard Gaussian costs something: a wrong label need not be fitted.

# %%
runs = {
    "no semantic labels": {"lq": "none", "lam": 0.0},
    "classifier on the features": {"lq": "none"},
    "Gaussian code": {"lq": "gaussian"},
}
noises = (0.0, 0.5)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True)
for k, (name, changes) in enumerate(runs.items()):
    found = []
    for noise in noises:
        told = data.DigitPresentations(
            training=600, semantic_noise=noise, labeled=60, captures=data.CaptureNoise()
        )
        found.append(training.run(dpm.build(dataclasses.replace(UNCERTAIN, data=told, **changes))).metrics)
    for axis, key in zip(axes, ("nll@raw", "accuracy@raw"), strict=True):
        axis.bar(np.arange(len(noises)) + 0.25 * (k - 1), [m[key] for m in found], 0.25, label=name)
    print(
        f"{name}: "
        + ", ".join(f"η {n:g}: likelihood {m['nll@raw']:.3f}" for n, m in zip(noises, found, strict=True))
    )
axes[0].set_title("negative log-likelihood of live")
axes[1].set_title("accuracy of live")
axes[1].set_ylim(0.8, 1)
for axis in axes:
    axis.set_xticks(np.arange(len(noises)), [f"η = {n:g}" for n in noises])
axes[0].legend(fontsize="small")
plt.show()
