"""Images per second that the host prepares for a detector, beside those that its training step takes.

Each row is a detector on data it is trained on: drawn scenes, and JPEG photographs of 640 x 640 in a COCO folder that is made for
the measurement, half of them mirrored. The host works by itself, with as many threads as a run has; the step is
timed on one batch that is there already. `host_over_step` above 1 says that the step never waits. Run with
`python -m benchmarks.detection_input`, with `--large` for RetinaNet-R50 and Faster R-CNN-R50 on photographs.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import numpy as np

from benchmarks import common
from benchmarks.input_pipeline import photographs
from experiments.recipes import detection
from jaxface import data
from jaxface.data.transforms.pixels import device_batch
from jaxface.models.detection import Detector, FasterRCNN, RetinaNet


def photograph_folder(folder: pathlib.Path, count: int) -> data.Coco:
    """A COCO folder of JPEG files with three boxes each."""
    rng = np.random.default_rng(0)
    files = photographs(count, 640)
    images, annotations = [], []
    for i, content in enumerate(files):
        (folder / f"{i}.jpg").write_bytes(content)
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 640, "width": 640})
        for x, y in rng.integers(0, 480, (3, 2)).tolist():
            row = {
                "id": len(annotations),
                "image_id": i,
                "category_id": 1,
                "bbox": [x, y, 150, 120],
                "area": 18_000,
            }
            annotations.append(row)
    text = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "objects.json").write_text(json.dumps(text))
    return data.Coco(annotations=str(folder / "objects.json"), max_objects=100)


def measure(recipe: detection.DetectorRecipe, detector: Detector, *, steps: int, seconds: float) -> dict:
    """Images per second of host and step."""
    split = detection.load(recipe)
    stage = detection.detection_stage("detector", recipe, split, detector, evaluate=False)
    state = jax.jit(lambda key: stage.init(key, None))(jax.random.key(0))
    step = jax.jit(lambda state, batch: stage.step(state, device_batch(batch)), donate_argnums=0)
    batches = iter(stage.batches(state))
    batch = jax.device_put(next(batches))
    taken, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        taken += recipe.batch_size
    host = taken / (time.perf_counter() - start)
    del batches
    state, _ = jax.block_until_ready(step(state, batch))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - start)
    of_step = recipe.batch_size / float(np.median(times))
    return {
        "host_per_second": host,
        "step_per_second": of_step,
        "host_over_step": host / of_step,
        "programs": step._cache_size(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of the host, for each row")
    parser.add_argument("--steps", type=int, default=30, help="of training, for each row")
    parser.add_argument("--large", action="store_true", help="add the R50 detectors on photographs")
    arguments = parser.parse_args()
    options = {"steps": arguments.steps, "seconds": arguments.seconds}
    rows = {}
    recipe = detection.DetectorRecipe()
    for name, detector in (("RetinaNet.small", RetinaNet.small()), ("FasterRCNN.small", FasterRCNN.small())):
        rows[f"{name}, digit scenes of 32²"] = measure(recipe, detector, **options)
    with tempfile.TemporaryDirectory() as folder:
        photos = detection.DetectorRecipe(
            data=photograph_folder(pathlib.Path(folder), 64),
            image_size=640,
            augment=data.ObjectAugment.flips(),
            batch_size=2,
        )
        small = RetinaNet.small(widths=(8, 16, 16, 16), steps=(2, 2, 2, 2), strides=(16,))
        rows["RetinaNet.small of stride 16, photographs of 640²"] = measure(photos, small, **options)
        if arguments.large:
            for name, detector in (
                ("RetinaNet-R50", RetinaNet(num_classes=1)),
                ("Faster R-CNN-R50", FasterRCNN(num_classes=1)),
            ):
                rows[f"{name}, photographs of 640²"] = measure(photos, detector, **{**options, "steps": 2})
    for name, row in rows.items():
        print(
            f"{name}: host {row['host_per_second']:.0f}, step {row['step_per_second']:.1f} images/s, "
            f"ratio {row['host_over_step']:.1f}"
        )
    print(common.write("detection_input", {"rows": rows}, packages=("flax", "optax", "grain")))


if __name__ == "__main__":
    main()
