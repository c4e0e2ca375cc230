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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/photographs.ipynb)
#
# # Your photographs: fine-tune, verify, build a gallery
#
# Put your own folder into `FACES`: one sub-folder per person with some photographs of the face in each. Without one the notebook makes
# such a folder of rendered people, so that it runs anywhere.

# %%
import dataclasses
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiments import configs
from experiments.launch import launch
from experiments.methods import sface
from jaxface import data, inference, training

FACES = None  # "/content/drive/MyDrive/faces"
work = pathlib.Path(tempfile.mkdtemp())

if FACES is None:
    FACES = work / "faces"
    stand_ins = data.RenderedSource(16, 6, image_size=32, seed=7)
    for k in range(len(stand_ins)):
        person = FACES / f"person-{stand_ins.labels[k]:02d}"
        person.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stand_ins[k]["image"]).save(person / f"{k % 6}.jpg", quality=92)

# %% [markdown]
# ## Convert
#
# A folder can be trained on as it is. One file that reads faster, and that other libraries read too, is made by the converter; damaged
# photographs are counted and left out.

# %%
subprocess.run(
    [sys.executable, "-m", "experiments.programs.convert", str(FACES), str(work / "faces.rec")],
    cwd=checkout,
    check=True,
)

# %% [markdown]
# ## A network to start from, then fine-tuning
#
# First a short run on rendered people, then the photographs of three people in four; the last quarter is kept to verify.

# %%
start = sface.Config(data=data.RenderedFaces(identities=40, held_out_identities=12), steps=80, image_size=32)
launch("sface", start, configs.Run(workdir=str(work / "start"), quiet=True))

tuned = dataclasses.replace(
    start,
    data=data.Folder(root=str(FACES), held_out=0.25),
    init_from=str(work / "start"),
    augment=data.Augment(flip=0.5, crop=0.5, color=0.5),
    optimizer=training.sgd(0.02, decay_at=(0.6,)),
    batch_size=32,
    steps=40,
)
outcome = launch("sface", tuned, configs.Run(workdir=str(work / "tuned"), quiet=True))
outcome.metrics

# %% [markdown]
# ## A bundle
#
# One folder with all that the network needs to be used: what it is, which images it takes, its weights, and the threshold that was
# measured on the people kept back. On the command line: `jaxface export RUN --bundle DIR`.

# %%
bundle = inference.open_recognizer(work / "tuned")
inference.save_bundle(work / "bundle", bundle)
threshold = bundle.threshold.value if bundle.threshold else 0.5
bundle.threshold

# %% [markdown]
# ## Verify two photographs
#
# `Pipeline` detects, aligns and embeds. These photographs are cut around the face already, so there is no detector to give; for whole
# scenes: `Pipeline.load(bundle, detector=…)`. On the command line: `jaxface verify A.jpg B.jpg --bundle DIR`.

# %%
pipeline = inference.Pipeline.load(work / "bundle")
folders = sorted(path for path in pathlib.Path(FACES).iterdir() if path.is_dir())
photographs = {folder.name: sorted(folder.iterdir()) for folder in folders}


def embedding(path):
    (faces,) = pipeline([data.decode_image(path)])
    return faces.embeddings[0]


names = list(photographs)
first, second = photographs[names[0]][:2]
other = photographs[names[1]][0]
figure, axes = plt.subplots(1, 3, figsize=(7, 2.6))
for axis, path in zip(axes, (first, second, other), strict=True):
    axis.imshow(Image.open(path))
    axis.set_title(f"{embedding(first) @ embedding(path):.2f}")
    axis.axis("off")
plt.show()

# %% [markdown]
# ## A gallery
#
# Half of each person's photographs are enrolled, the others asked about. Two people are not enrolled at all: for them *unknown* is the
# right answer. On the command line: `jaxface enroll --gallery G FOLDER`, `jaxface identify --gallery G PHOTO…`.

# %%
gallery = inference.Gallery(bundle.identity, bundle.dim)
enrolled, strangers = names[:-2], names[-2:]
for name in enrolled:
    half = photographs[name][: len(photographs[name]) // 2]
    gallery.add([name] * len(half), np.stack([embedding(path) for path in half]))
gallery.save(work / "gallery")


def share(people, is_right):
    queries = [(name, path) for name in people for path in photographs[name][len(photographs[name]) // 2 :]]
    answers = gallery.search(np.stack([embedding(path) for _, path in queries]), k=1, threshold=threshold)
    return np.mean(
        [is_right(name, answer) for (name, _), answer in zip(queries, answers.identities, strict=True)]
    )


print(f"enrolled people, named rightly: {share(enrolled, lambda name, answer: answer == name):.2f}")
print(f"strangers, answered unknown:    {share(strangers, lambda name, answer: answer is None):.2f}")

# %% [markdown]
# A few seconds of training do not make a recognizer to deploy; the guide on photographs says what more data brings.
