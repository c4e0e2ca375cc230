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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/rendered_people.ipynb)
#
# # Rendered people: train, verify, look at the errors
#
# No data set of faces is downloaded here. The library renders people who do not exist, trains a small recognizer on some of them and
# verifies others. The run is a tenth of `make demo`'s, so that it takes a minute; its errors are worth looking at for that.

# %%
import json
import tempfile

import matplotlib.pyplot as plt
import numpy as np

from experiments import configs
from experiments.launch import launch
from experiments.methods import sface
from jaxface import data, inference

# %% [markdown]
# ## Four people, six photographs each

# %%
people = data.RenderedSource(4, 6, image_size=48)
figure, axes = plt.subplots(4, 6, figsize=(9, 6))
for k, axis in enumerate(axes.ravel()):
    axis.imshow(people[k]["image"])
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Train
#
# A configuration is a dataclass; `launch` runs it in a work directory, from the beginning or from where it was interrupted. The same on
# the command line: `python -m experiments.launch sface --steps 200 --data.identities 128 …`.

# %%
workdir = pathlib.Path(tempfile.mkdtemp()) / "sface"
config = sface.Config(data=data.RenderedFaces(identities=64, held_out_identities=30), steps=120)
outcome = launch("sface", config, configs.Run(workdir=str(workdir), quiet=True))
outcome.metrics

# %%
lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
training_lines = [line for line in lines if line["kind"] == "train"]
plt.plot([line["step"] for line in training_lines], [line["loss"] for line in training_lines])
plt.xlabel("step")
plt.ylabel("loss")
plt.show()

# %% [markdown]
# ## What the run left: the ROC curve, and the similarities of pairs

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4))
for axis, name in zip(axes, ("roc.png", "similarity.png"), strict=True):
    axis.imshow(plt.imread(workdir / name))
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Errors
#
# The held-out people again, through the trained network: the two photographs of one person that are least alike for it, and the two
# people it takes for one most surely.

# %%
recognizer = inference.open_recognizer(workdir)
unseen = data.load(config.data, image_size=config.image_size, seed=config.data_seed).held_out
embeddings = recognizer.embed_source(unseen, unit=True)
cosines = embeddings @ embeddings.T
same = unseen.labels[:, None] == unseen.labels
pairs = {
    "one person, least alike": np.where(same, cosines, np.inf).argmin(),
    "two people, most alike": np.where(same, -np.inf, cosines).argmax(),
}
figure, axes = plt.subplots(2, 2, figsize=(5, 5))
for row, (title, index) in zip(axes, pairs.items(), strict=True):
    pair = np.unravel_index(index, cosines.shape)
    for axis, k in zip(row, pair, strict=True):
        axis.imshow(unseen[int(k)]["image"])
        axis.axis("off")
    row[0].set_title(f"{title}: {cosines[pair]:.2f}", fontsize=9, loc="left")
plt.show()

# %% [markdown]
# Longer, and with more people: `make demo` (2 minutes on two CPU cores, accuracy 0.977).
