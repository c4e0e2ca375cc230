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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/imperfect_data.ipynb)
#
# # Learning from imperfect data
#
# Labels that are wrong, classes that are rare, tasks that come one after the other: three ways in which data are not what a
# textbook has, and what `mda`, `nclpp` and `lifelong` do about them. All of it is on scikit-learn's digits, and on one seed; what
# each method is worth against its baselines over several seeds stands on its page.

# %%
import dataclasses

import matplotlib.pyplot as plt
import numpy as np

from experiments.methods import lifelong, mda, nclpp
from jaxface import data, training

WRONG = mda.Config(steps=600)  # the recipe has 1000
RARE = nclpp.Config(steps=700)
TASKS = lifelong.Config(steps=72)  # of each session

# %% [markdown]
# ## Wrong labels
#
# Half of the labels are drawn anew among the other classes. Plain training learns them by heart: its accuracy falls when it does.
# MDA learns the labels that two networks find easy on the mirror images, chosen before every epoch.

# %%
runs = {
    "MDA": WRONG,
    "plain": dataclasses.replace(WRONG, selection="all", mirrored=False, agreement_weight=0.0),
}
outcomes = {name: training.run(mda.build(config)) for name, config in runs.items()}
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True)
for name, outcome in outcomes.items():
    history = outcome.state.extra["history"]
    axes[0].plot(np.arange(1, len(history["accuracy"]) + 1), history["accuracy"], label=name)
    axes[1].plot(np.arange(1, len(history["precision"]) + 1), history["precision"], label=name)
    print(f"{name}: test accuracy {outcome.metrics['classification/recent_accuracy']:.3f}")
axes[0].set_title("test accuracy")
axes[1].set_title("share of right labels in what is learned")
for axis in axes:
    axis.set_xlabel("epoch")
    axis.legend()
plt.show()

# %% [markdown]
# ### What the selection sees
#
# Above, wrong labels that were left out; below, wrong ones that were learned. The given label, and the true one in brackets. Some
# digits are mirrored: the set is closed under mirroring, or its mirror images would be no digits.

# %%
train = data.load(WRONG.data, image_size=WRONG.image_size, seed=WRONG.data_seed).train
selected = np.asarray(outcomes["MDA"].state.extra["selected"])
wrong = train.labels != train.true_labels
print(f"wrong labels: {wrong.mean():.0%} of all, {wrong[selected].mean():.1%} of those that are learned")
figure, axes = plt.subplots(2, 8, figsize=(9, 3))
for row, rows in zip(
    axes, (np.flatnonzero(wrong & ~selected), np.flatnonzero(wrong & selected)), strict=True
):
    for axis in row:
        axis.axis("off")
    for axis, index in zip(row, rows, strict=False):
        axis.imshow(train[int(index)]["image"][..., 0], cmap="gray")
        axis.set_title(f"{train.labels[index]} ({train.true_labels[index]})")
plt.show()

# %% [markdown]
# ## Rare classes
#
# The largest class has 120 examples, the smallest two. Cross-entropy is good at frequent classes; balanced softmax knows how many
# examples a class has, and NCL++ has two networks, and copies of an image, that learn from each other besides.

# %%
runs = {name: dataclasses.replace(RARE, loss=name) for name in ("cross_entropy", "balanced", "nclpp")}
parts = ("many", "medium", "few", "accuracy")
figure, axis = plt.subplots(figsize=(7, 3))
for k, (name, config) in enumerate(runs.items()):
    metrics = training.run(nclpp.build(config)).metrics
    axis.bar(
        np.arange(len(parts)) + 0.25 * (k - 1),
        [metrics[f"ensemble/{part}"] for part in parts],
        0.25,
        label=name,
    )
    print(f"{name}: " + ", ".join(f"{part} {metrics[f'ensemble/{part}']:.3f}" for part in parts))
axis.set_xticks(np.arange(len(parts)), parts)
axis.set_ylim(0, 1)
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Forgetting
#
# Five tasks of two classes each, one after the other, with 100 exemplars of the classes before and with none. Row $i$ is the
# accuracy after session $i$, column $j$ that on task $j$: what is below the diagonal was learned before.

# %%
count = TASKS.tasks.count
runs = {"100 exemplars": TASKS, "no exemplars": dataclasses.replace(TASKS, memory=0, learns="joint")}
figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 3.5))
for axis, (name, config) in zip(axes, runs.items(), strict=True):
    metrics = training.run(lifelong.build(config)).metrics
    matrix = np.array(
        [
            [metrics[f"session{i + 1}/class/task_{j}"] if j <= i else np.nan for j in range(count)]
            for i in range(count)
        ]
    )
    axis.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    for i, j in zip(*np.tril_indices(count), strict=True):
        axis.text(
            j,
            i,
            f"{matrix[i, j]:.2f}",
            ha="center",
            va="center",
            color="white" if matrix[i, j] < 0.6 else "black",
        )
    axis.set_title(name)
    axis.set_xlabel("task")
    axis.set_ylabel("after session")
    last = f"session{count}/class"
    print(
        f"{name}: accuracy {metrics[f'{last}/accuracy']:.3f}, forgetting {metrics[f'{last}/forgetting']:.3f}"
    )
plt.show()
