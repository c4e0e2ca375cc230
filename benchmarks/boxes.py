"""Batched NMS, RoIAlign and the COCO evaluation, beside torchvision's where torch is installed and NumPy's where it is not.

NMS: 1,000 boxes × 16 images. RoIAlign: 512 regions of four levels of an 800 × 1344 image, 256 channels, 7 × 7 bins of 2 × 2
samples; its gradient beside JAX's transpose of the same gathers, at three sizes. COCO: 5,000 images × 100 detections, of 1 class
and of 80. Results are compared before anything is timed. Run with `python -m benchmarks.boxes`; `--only roi_gradient` is one of
them.
"""

import argparse
import functools
import importlib.util
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from jaxface.boxes import nms, roi_align, roi_levels
from jaxface.metrics import coco_evaluate

THRESHOLD = 0.5
STRIDES = (4, 8, 16, 32)


def _clusters(rng: np.random.Generator, count: int, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` boxes in groups that overlap, as a detector gives them before suppression, and their scores."""
    corner, side = rng.uniform(0, 600, (clusters, 2)), rng.uniform(16, 120, (clusters, 2))
    which = rng.integers(0, clusters, count)
    boxes = np.concatenate([corner, corner + side], axis=1)[which]
    boxes += rng.normal(0, 0.12, boxes.shape) * np.tile(side[which], 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return boxes.astype(np.float32), rng.uniform(size=count).astype(np.float32)


def _numpy_nms(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The greedy loop over boxes, each step one vector operation."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stays = []
    while order.size:
        best, rest = order[0], order[1:]
        stays.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        common_area = np.maximum(sides, 0).prod(axis=1)
        order = rest[common_area <= THRESHOLD * (area[best] + area[rest] - common_area)]
    return np.array(stays)


def measure_nms(images: int, count: int, clusters: int, repeats: int) -> dict:
    """One row: ours for all images at once, the peer image by image, as detectors call it."""
    rng = np.random.default_rng(0)
    sets = [_clusters(rng, count, clusters) for _ in range(images)]
    boxes, scores = (jnp.stack([s[i] for s in sets]) for i in (0, 1))
    ours = jax.jit(jax.vmap(functools.partial(nms, iou_threshold=THRESHOLD, max_outputs=count)))
    calls = {"jaxface": lambda: ours(boxes, scores)}
    peer = _peer()
    if peer == "torchvision":
        import torch
        import torchvision

        given = [tuple(torch.from_numpy(a).to(_torch_device()) for a in s) for s in sets]
        calls[peer] = lambda: _waited([torchvision.ops.nms(b, s, THRESHOLD) for b, s in given])
        stays = [np.asarray(kept.cpu()) for kept in calls[peer]()]
    else:
        calls[peer] = lambda: [_numpy_nms(*s) for s in sets]
        stays = calls[peer]()
    indices, valid = (np.asarray(value) for value in calls["jaxface"]())
    agreeing = [
        np.array_equal(indices[i][valid[i]], kept)
        or np.mean(np.isin(kept, indices[i][valid[i]]))
        > 0.99  # a tie at the threshold may be rounded either way
        for i, kept in enumerate(stays)
    ]
    if not all(agreeing):
        raise AssertionError(f"NMS differs from {peer} in {agreeing.count(False)} of {images} images")
    shape = {
        "images": images,
        "boxes": count,
        "clusters": clusters,
        "staying": float(valid.sum(axis=1).mean()),
    }
    return {"what": "nms", **shape, **_timed(calls, peer, repeats)}


def measure_roi_align(regions: int, channels: int, repeats: int) -> dict:
    """One row: forward pass over four levels."""
    rng = np.random.default_rng(0)
    shapes = [(-(-800 // stride), -(-1344 // stride)) for stride in STRIDES]
    maps = [rng.normal(size=(1, *shape, channels)).astype(np.float32) for shape in shapes]
    center = rng.uniform([0, 0], [800, 1344], (regions, 2))
    side = np.exp(rng.uniform(np.log(16), np.log(600), (regions, 2)))
    boxes = np.clip(np.concatenate([center - side / 2, center + side / 2], axis=1), 0, [800, 1344] * 2)
    boxes = jnp.asarray(boxes, jnp.float32)[None]
    levels = roi_levels(boxes)
    ours = jax.jit(functools.partial(roi_align, strides=STRIDES))
    device_maps = [jnp.asarray(m) for m in maps]
    calls = {"jaxface": lambda: ours(device_maps, boxes, levels)}
    peer = _peer()
    if peer == "torchvision":
        import torch
        import torchvision

        of_level = np.asarray(levels[0])
        xyxy = np.asarray(boxes[0])[:, [1, 0, 3, 2]]
        device = _torch_device()
        given = [
            (
                torch.from_numpy(m.transpose(0, 3, 1, 2).copy()).to(device),
                [torch.from_numpy(xyxy[of_level == level]).to(device)],
                1 / stride,
            )
            for level, (m, stride) in enumerate(zip(maps, STRIDES, strict=True))
        ]
        calls[peer] = lambda: _waited(
            [torchvision.ops.roi_align(m, b, 7, scale, 2, aligned=True) for m, b, scale in given]
        )
        expected = np.zeros((regions, 7, 7, channels), np.float32)
        for level, pooled in enumerate(calls[peer]()):
            expected[of_level == level] = pooled.cpu().numpy().transpose(0, 2, 3, 1)
    else:
        calls[peer] = functools.partial(_numpy_roi_align, maps, np.asarray(boxes[0]), np.asarray(levels[0]))
        expected = calls[peer]()
    error = float(np.abs(np.asarray(calls["jaxface"]())[0] - expected).max())
    if error > 1e-3:
        raise AssertionError(f"RoIAlign differs from {peer} by {error:g}")
    return {"what": "roi_align", "regions": regions, "channels": channels} | _timed(calls, peer, repeats)


def measure_roi_gradient(
    images: int, regions: int, channels: int, sides: tuple[int, ...], repeats: int
) -> dict:
    """One row: gradients by the maps, ours and those of JAX's transpose of the same forward pass."""
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.normal(size=(images, side, side, channels)), jnp.float32) for side in sides]
    strides = tuple(4 * sides[0] // side for side in sides)
    whole = 4.0 * sides[0]
    corner, side = (
        rng.uniform(0, whole / 2, (images, regions, 2)),
        rng.uniform(8, whole / 2, (images, regions, 2)),
    )
    boxes = jnp.asarray(np.concatenate([corner, corner + side], axis=-1), jnp.float32)
    levels = jnp.minimum(roi_levels(boxes, levels=4), len(sides) - 1)
    weights = jnp.asarray(rng.normal(size=(images, regions, 7, 7, channels)), jnp.float32)

    def gradient():
        return jax.jit(
            jax.grad(
                lambda maps: jnp.sum(weights * roi_align(maps, boxes, levels, strides=strides, output_size=7))
            )
        )

    ours, module = gradient(), sys.modules["jaxface.boxes.roi_align"]
    expected = ours(maps)
    transposed = gradient()
    with mock.patch.object(
        module, "_pooled", module._pooled.__wrapped__
    ):  # traced here, without its own derivative
        found = transposed(maps)
    error = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(found, expected, strict=True))
    if error > 1e-4:
        raise AssertionError(f"RoIAlign's gradient differs from JAX's transpose by {error:g} of the largest")
    calls = {"jaxface": lambda: ours(maps), "transpose": lambda: transposed(maps)}
    shape = {"images": images, "regions": regions, "channels": channels, "sides": list(sides)}
    return {"what": "roi_gradient"} | shape | _timed(calls, "transpose", repeats)


def _numpy_roi_align(maps: list[np.ndarray], boxes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Region by region: the four neighbors of every sample, weighted, then the mean over each bin."""
    result = np.empty((len(boxes), 7, 7, maps[0].shape[-1]), np.float32)
    steps = (np.arange(14) + 0.5) / 14
    for index, (box, level) in enumerate(zip(boxes, levels, strict=True)):
        cells = maps[level][0]
        first, last = box[:2] / STRIDES[level] - 0.5, box[2:] / STRIDES[level] - 0.5
        taps = []
        for axis, limit in enumerate(cells.shape[:2]):
            points = first[axis] + (last - first)[axis] * steps
            inside = (points >= -1) & (points <= limit)
            points = np.clip(points, 0, limit - 1)
            low = points.astype(int)
            taps.append((low, np.minimum(low + 1, limit - 1), points - low, inside))
        (top, bottom, v, in_y), (left, right, u, in_x) = taps
        v, u = v[:, None, None], u[None, :, None]
        samples = (1 - v) * ((1 - u) * cells[np.ix_(top, left)] + u * cells[np.ix_(top, right)])
        samples += v * ((1 - u) * cells[np.ix_(bottom, left)] + u * cells[np.ix_(bottom, right)])
        samples *= (in_y[:, None] & in_x)[..., None]
        result[index] = samples.reshape(7, 2, 7, 2, -1).mean(axis=(1, 3))
    return result


def measure_coco(images: int, detections: int, num_classes: int) -> dict:
    """One row, timed once: wall seconds of `coco_evaluate` and the AP that it found."""
    rng = np.random.default_rng(0)
    truth, predictions = [], []
    for _ in range(images):
        corner, side = rng.uniform(0, 500, (7, 2)), rng.uniform(10, 150, (7, 2))
        boxes, labels = np.concatenate([corner, corner + side], axis=1), rng.integers(0, num_classes, 7)
        which = rng.integers(0, 7, detections)
        near = boxes[which] + rng.normal(0, 10, (detections, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        right = rng.uniform(size=detections) < 0.5
        classes = np.where(right, labels[which], rng.integers(0, num_classes, detections))
        truth.append({"boxes": boxes, "labels": labels})
        predictions.append({"boxes": near, "scores": rng.uniform(size=detections), "classes": classes})
    began = time.perf_counter()
    scores = coco_evaluate(predictions, truth, num_classes=num_classes)
    row = {"what": "coco_evaluate", "images": images, "detections": detections, "classes": num_classes}
    return row | {"seconds": time.perf_counter() - began, "AP": scores["AP"]}


def _peer() -> str:
    return "torchvision" if importlib.util.find_spec("torchvision") else "numpy"


def _torch_device() -> str:
    return "cuda" if jax.devices()[0].platform == "gpu" else "cpu"


def _waited(tensors: list) -> list:
    if tensors[0].is_cuda:
        import torch

        torch.cuda.synchronize()
    return tensors


def _timed(calls: dict, peer: str, repeats: int) -> dict:
    times = {name: common.summary(values) for name, values in common.in_turns(calls, repeats=repeats).items()}
    return {
        "seconds": times,
        "ours": "jaxface",
        "peer": peer,
        "speedup": times[peer]["seconds_median"] / times["jaxface"]["seconds_median"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--images", type=int, default=5000, help="of the COCO evaluation")
    parser.add_argument(
        "--folder", type=common.folder_argument, help="where to write, instead of results/<device>"
    )
    parser.add_argument(
        "--only",
        choices=("nms", "roi_align", "roi_gradient", "coco"),
        help="measure this alone, and write nothing",
    )
    arguments = parser.parse_args()
    print(
        "peer: torchvision"
        if _peer() == "torchvision"
        else "peer: NumPy (torch and torchvision are not installed)"
    )
    repeats = arguments.repeats
    measurements = [("nms", lambda n=clusters: measure_nms(16, 1000, n, repeats)) for clusters in (20, 400)]
    measurements += [("roi_align", lambda: measure_roi_align(512, 256, repeats))]
    gradients = (8, 64, 32, (8, 4)), (2, 128, 64, (32, 16, 8, 4)), (1, 128, 256, (128, 64, 32, 16))
    measurements += [
        ("roi_gradient", lambda case=case: measure_roi_gradient(*case, repeats)) for case in gradients
    ]
    rows = []
    for name, measure in measurements:
        if arguments.only not in (None, name):
            continue
        row = measure()
        rows.append(row)
        ours, peer = (row["seconds"][row[key]]["seconds_median"] for key in ("ours", "peer"))
        print(
            f"{name:12s} {ours * 1e3:8.1f} ms, {row['peer']} {peer * 1e3:8.1f} ms, {row['speedup']:.2f}x"
            + (f" ({row['staying']:.0f} of {row['boxes']} stay)" if name == "nms" else "")
            + (
                f" (maps {row['sides']} x {row['channels']}, {row['images']} images)"
                if name == "roi_gradient"
                else ""
            )
        )
    for num_classes in (1, 80) if arguments.only in (None, "coco") else ():
        rows.append(measure_coco(arguments.images, 100, num_classes))
        print(f"coco_evaluate, {num_classes} classes: {rows[-1]['seconds']:.1f} s")
    if arguments.only is None:
        print(
            common.write(
                "boxes", rows, packages=("torch", "torchvision", "pycocotools"), folder=arguments.folder
            )
        )


if __name__ == "__main__":
    main()
