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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/face_detector.ipynb)
#
# # A face detector on a photograph
#
# A RetinaFace with MobileNetV1-0.25 learns from rendered scenes and looks at a photograph. A minute of training is enough to see it work;
# the whole recipe (2,400 steps, four minutes on two CPU cores) finds 0.94 of the faces of unseen scenes. Published weights load, too.

# %%
import dataclasses
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from skimage import data as photographs

from experiments import configs
from experiments.launch import launch
from experiments.methods import cassod
from jaxface import data, inference
from jaxface.data.transforms.drawing import draw_boxes

DETECTOR = None  # work directory of a finished run, a bundle, or RetinaFace_mobilenet025.pth
STEPS = 200  # 2400 is the recipe

# %% [markdown]
# ## Scenes to learn from: several faces, clutter, exact boxes

# %%
config = dataclasses.replace(cassod.Config.detector(), context="ssh", steps=STEPS)
fewer = dataclasses.replace(config.data, scenes=8 * STEPS, people=32, held_out_scenes=32, held_out_people=8)
config = dataclasses.replace(config, data=fewer)
scenes = config.data.source(image_size=config.image_size, seed=0)
figure, axes = plt.subplots(2, 5, figsize=(10, 4))
for k, axis in enumerate(axes.ravel()):
    scene = scenes[k]
    axis.imshow(draw_boxes(scene["image"], scene["boxes"][scene["box_mask"]]))
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Train
#
# On the command line: `python -m experiments.launch cassod --preset detector --context ssh --workdir runs/faces`.

# %%
if DETECTOR is None:
    DETECTOR = pathlib.Path(tempfile.mkdtemp()) / "faces"
    outcome = launch("cassod", config, configs.Run(workdir=str(DETECTOR), quiet=True))
    print({name: round(value, 3) for name, value in outcome.metrics.items()})

# %% [markdown]
# ## Detect
#
# In an unseen scene, and in a photograph of 512 x 512. `jaxface detect PHOTO… --run RUN` does this for files.

# %%
detect = inference.PhotoDetector(inference.open_detector(DETECTOR), threshold=0.5, longest=256)
images = [config.data.source(image_size=96, seed=1)[3]["image"], photographs.astronaut()]
figure, axes = plt.subplots(1, 2, figsize=(10, 5))
for axis, image, found in zip(axes, images, detect(images), strict=True):
    axis.imshow(draw_boxes(image, found.boxes, scores=found.scores, landmarks=found.landmarks))
    axis.set_title(f"{len(found.boxes)} faces, highest score {np.max(found.scores, initial=0):.2f}")
    axis.axis("off")
plt.show()

# %% [markdown]
# A detector that has never seen a photograph finds what is no face in one. `docs/guides/detection.md` says how many, and how published
# weights are loaded.
