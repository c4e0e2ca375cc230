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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/detection.ipynb)
#
# # A detector, distilled and quantized
#
# A small RetinaNet learns from a larger one (`rm_pfi`): the order that its teacher gives to the anchors of an object, and features
# where the predictions of the two differ. Then a DETR of 4 bits learns from its float self (`qdetr`). Both see small scenes that
# are drawn here; what either is worth against its own baselines stands on the pages of the methods.

# %%
import dataclasses
import tempfile

import matplotlib.pyplot as plt

from experiments import configs
from experiments.launch import launch
from experiments.methods import qdetr, rm_pfi
from jaxface import inference, models
from jaxface.data.transforms.drawing import draw_boxes
from jaxface.models.detection.detr import detr_cost

RETINANETS = (600, 300)  # steps of the teacher and of the student; the recipe has 900 and 400
DETRS = (700, 200)  # 3000 and 1000
FOLDER = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Scenes
#
# Digits for the first, rectangles, discs and crosses for the second; one or two in a scene, and noise.

# %%
distilled = rm_pfi.Config(teacher_steps=RETINANETS[0], steps=RETINANETS[1])
quantized = qdetr.Config(
    detector=dataclasses.replace(qdetr.Config().detector, weight_bits=4, input_bits=4),
    teacher_steps=DETRS[0],
    steps=DETRS[1],
)
held_out = {
    name: config.data.evaluation_source(image_size=config.image_size, seed=0)
    for name, config in (("digits", distilled), ("shapes", quantized))
}
figure, axes = plt.subplots(2, 6, figsize=(10, 3.5))
for row, scenes in zip(axes, held_out.values(), strict=True):
    for k, axis in enumerate(row):
        axis.imshow(draw_boxes(scenes[k]["image"], scenes[k]["boxes"][scenes[k]["box_mask"]]))
        axis.axis("off")
plt.show()

# %% [markdown]
# ## Distilled
#
# On the command line: `python -m experiments.launch rm_pfi --workdir runs/rm-pfi`.

# %%
outcome = launch("rm_pfi", distilled, configs.Run(workdir=str(FOLDER / "distilled"), quiet=True))
for name in ("teacher/detection/ap", "student/detection/ap", "student/ranks/kendall", "student/ranks/top1"):
    print(f"{name}: {outcome.metrics[name]:.3f}")

# %%
student = inference.open_detector(FOLDER / "distilled")
teacher = dataclasses.replace(
    student, detector=distilled.teacher, variables=outcome.state.extra["added"]["teacher"]
)
for name, bundle in (("teacher", teacher), ("student", student)):
    print(f"{name}: {models.parameter_count(bundle.variables)} parameters")


def show(bundles, scenes):
    """Rows of detections in the first scenes, what is there in the first one."""
    images = [scenes[k]["image"] for k in range(6)]
    figure, axes = plt.subplots(1 + len(bundles), 6, figsize=(10, 1.75 * (1 + len(bundles))))
    for k, axis in enumerate(axes[0]):
        axis.imshow(draw_boxes(images[k], scenes[k]["boxes"][scenes[k]["box_mask"]]))
    axes[0, 0].set_title("there")
    for row, (name, bundle) in zip(axes[1:], bundles.items(), strict=True):
        detect = inference.PhotoDetector(bundle, threshold=0.4, longest=32)
        for axis, image, found in zip(row, images, detect(images), strict=True):
            axis.imshow(draw_boxes(image, found.boxes, classes=found.classes))
        row[0].set_title(name)
    for axis in axes.ravel():
        axis.axis("off")
    plt.show()


show({"teacher": teacher, "student": student}, held_out["digits"])

# %% [markdown]
# ## Quantized
#
# Weights and activations of 4 bits, attention of 8. On the command line: `python -m experiments.launch qdetr
# --detector.weight-bits 4 --detector.input-bits 4 --workdir runs/qdetr`. Boxes of so short a training are rough; the recipe
# trains four times as long.

# %%
outcome = launch("qdetr", quantized, configs.Run(workdir=str(FOLDER / "quantized"), quiet=True))
for name in ("teacher/detection/ap50", "student/detection/ap50"):
    print(f"{name}: {outcome.metrics[name]:.3f}")
few = inference.open_detector(FOLDER / "quantized")
float_network = qdetr.float_detector(few.detector)
for name, detector in (("float", float_network), ("4 bits", few.detector)):
    cost = detr_cost(detector, (32, 32))
    print(f"{name}: {cost.operations / 1e6:.2f} M operations, {cost.weight_bytes / 1e3:.0f} kB of weights")

# %%
whole = dataclasses.replace(few, detector=float_network, variables=outcome.state.extra["added"]["teacher"])
show({"float": whole, "4 bits": few}, held_out["shapes"])

# %% [markdown]
# `jaxface detect PHOTO… --detector RUN` draws the boxes of either run on files; `jaxface export` makes a bundle of it.
