"""Detection, alignment and embedding of photographs beside the same networks under onnxruntime with OpenCV's alignment.

Sixteen photographs of 640 x 480 with one face each go through `jaxface.inference.Pipeline` and, in turns in one process, through
onnxruntime: the detector's graph, anchors decoded and suppressed in NumPy and OpenCV, `cv2.warpAffine`, the recognizer's graph.
Both have RetinaFace with MobileNetV1-0.25 and MobileFaceNet, of random weights whose detector is made to be sure of one face in
each photograph. Both see uint8 images and end in unit embeddings, which are compared. Besides, each step is timed alone.
Run with `python -m benchmarks.inference`; needs onnxruntime and jax2onnx.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import cv2
import jax
import numpy as np

from benchmarks import common
from jaxface import data, inference, interop, models
from jaxface.inference.photo_detector import detect_at_scales
from jaxface.models.detection import RetinaFace
from jaxface.models.detection.retinaface import STDS

HEIGHT, WIDTH, CROP, THRESHOLD, IOU = 480, 640, 112, 0.8, 0.4


def random_variables(module, shape, seed: int) -> dict:
    """Variables whose activations keep their size from layer to layer: He's normal kernels, norms that do nothing."""
    rng = np.random.default_rng(seed)
    image = jax.ShapeDtypeStruct((1, *shape), np.float32)
    tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)

    def leaf(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (rng.standard_normal(leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        return np.full(leaf.shape, 0.25 if name == "slope" else 0.0, np.float32)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def photographs(count: int) -> np.ndarray:
    """[N, 480, 640, 3] uint8: smooth light with noise in it."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 12, 16, 3), np.uint8)
    large = [cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for image in coarse]
    noise = rng.integers(0, 24, (count, HEIGHT, WIDTH, 3), np.uint8)
    return np.clip(np.stack(large).astype(np.int16) + noise - 12, 0, 255).astype(np.uint8)


def sure_detector(images: np.ndarray) -> inference.DetectorBundle:
    """A detector that finds a face in each image, with landmarks where a face of the anchor's size has them."""
    detector = RetinaFace()
    variables = random_variables(detector.module, (HEIGHT, WIDTH, 3), seed=2)
    params = variables["params"]
    points = (data.named_template("arcface", (CROP, CROP)) / CROP - 0.5) / STDS[0]
    for level in (1, 2, 3):
        head = params[f"point_deltas{level}"]
        head["kernel"] *= 0.01
        head["bias"] = np.tile(points.astype(np.float32).ravel(), len(head["bias"]) // 10)
        params[f"box_deltas{level}"]["kernel"] *= 0.01
    apply = jax.jit(
        lambda v, x: detector.module.apply(v, (x.astype("float32") - 127.5) / 127.5)["class_logits"]
    )
    margins = np.concatenate([np.diff(np.asarray(apply(variables, image[None])))[..., 0] for image in images])
    # Twenty places of each photograph, as many as there are around a face, are surer than the threshold.
    spread = np.sort(margins, axis=1)[:, -20].mean()
    for level in (1, 2, 3):
        head = params[f"class_logits{level}"]
        head["bias"] = head["bias"] + np.tile(
            np.float32([0, np.log(THRESHOLD / (1 - THRESHOLD)) - spread]), len(head["bias"]) // 2
        )
    return inference.DetectorBundle(detector=detector, variables=variables, image_size=640)


class Peer:
    """The same networks under onnxruntime: `detect`, `align` and `embed` are its three steps."""

    def __init__(
        self, detector: inference.DetectorBundle, recognizer: inference.RecognizerBundle, folder: Path
    ):
        import onnxruntime

        interop.save_onnx(folder / "d.onnx", detector.detector.module, detector.variables, (HEIGHT, WIDTH, 3))
        interop.save_onnx(folder / "r.onnx", recognizer.module, recognizer.variables, recognizer.image_shape)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        open_session = functools.partial(
            onnxruntime.InferenceSession, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self.detector, self.recognizer = open_session(folder / "d.onnx"), open_session(folder / "r.onnx")
        self.anchors = detector.detector.anchors((HEIGHT, WIDTH)).astype(np.float32)
        self.target = data.named_template("arcface", (CROP, CROP)).astype(np.float64)

    @staticmethod
    def blob(images: np.ndarray) -> np.ndarray:
        """[B, 3, H, W] float32 in [-1, 1]."""
        return cv2.dnn.blobFromImages(list(images), 1 / 127.5, mean=(127.5, 127.5, 127.5))

    def detect(self, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(boxes [N, 4], landmarks [N, 5, 2]) of each image."""
        # In the order of the names: box_deltas, class_logits, point_deltas.
        outputs = self.detector.run(None, {"data": self.blob(images)})
        return [self._decoded(*(rows[i] for rows in outputs)) for i in range(len(images))]

    def _decoded(self, boxes, logits, points):
        margin = logits[:, 1] - logits[:, 0]
        sure = np.flatnonzero(margin >= np.log(THRESHOLD / (1 - THRESHOLD)))
        low, high = self.anchors[sure, :2], self.anchors[sure, 2:]
        size, center = (high - low)[:, ::-1], ((low + high) / 2)[:, ::-1]  # (x, y)
        middle = center + boxes[sure, :2] * STDS[0] * size
        extent = size * np.exp(boxes[sure, 2:] * STDS[2])
        scores = 1 / (1 + np.exp(-margin[sure]))
        corner = middle - extent / 2
        rows = np.concatenate([corner, extent], axis=1)
        best = np.asarray(cv2.dnn.NMSBoxes(rows.tolist(), scores.tolist(), THRESHOLD, IOU), np.int64)[:1]
        marks = center[best, None] + points[sure][best].reshape(-1, 5, 2) * STDS[0] * size[best, None]
        return np.concatenate([corner, corner + extent], axis=1)[best][:, [1, 0, 3, 2]], marks

    def align(self, images: np.ndarray, found) -> np.ndarray:
        """[F, 112, 112, 3] uint8."""
        crops = [
            cv2.warpAffine(image, data.umeyama(face, self.target), (CROP, CROP))
            for image, (_, faces) in zip(images, found, strict=True)
            for face in faces
        ]
        return np.stack(crops)

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """[F, D] float32 of length 1."""
        (embeddings,) = self.recognizer.run(None, {"data": self.blob(crops)})
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self.embed(self.align(images, self.detect(images)))


def measure(batch: int, repeats: int, budget: float) -> dict:
    """Both ways in turns, and each step of both alone."""
    images = photographs(batch)
    detector = sure_detector(images)
    module, shape = models.create("mobilefacenet"), (CROP, CROP, 3)
    recognizer = inference.RecognizerBundle(
        module=module, variables=random_variables(module, shape, seed=3), image_shape=shape
    )
    pipeline = inference.Pipeline(
        recognizer, detector, threshold=THRESHOLD, iou_threshold=IOU, max_faces=1, batch_size=batch
    )
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(detector, recognizer, Path(folder))
    photos = list(images)
    ours, theirs = pipeline(photos), peer(images)
    assert [len(faces.boxes) for faces in ours] == [1] * batch, "the detector found no face"
    cosine = np.sum(np.concatenate([faces.embeddings for faces in ours]) * theirs, axis=1)
    found = peer.detect(images)
    crops = peer.align(images, found)
    boxed = [inference.letterbox(image, 640) for image in photos]
    stacked = np.stack([image.image for image in boxed])
    sizes = np.array([image.valid_size for image in boxed], np.int32)
    options = dict(
        detector=detector.detector,
        trained_size=640,
        score_threshold=THRESHOLD,
        iou_threshold=IOU,
        max_outputs=1,
    )
    detect = jax.jit(functools.partial(detect_at_scales, **options))
    network = jax.jit(lambda v, x: detector.detector.module.apply(v, (x.astype("float32") - 127.5) / 127.5))
    landmarks = np.stack([faces.landmarks[0] for faces in ours])
    align = jax.jit(functools.partial(data.align_faces, size=(CROP, CROP)))
    embed = jax.jit(recognizer.network)
    on_device = jax.device_put((dict(detector.variables), dict(recognizer.variables)))
    blob, crop_blob = peer.blob(images), peer.blob(crops)
    calls = {
        "jaxface": lambda: pipeline(photos),
        "onnxruntime": lambda: peer(images),
        "jaxface, letterboxing": lambda: [inference.letterbox(image, 640) for image in photos],
        "jaxface, detector and its boxes": lambda: detect(on_device[0], stacked, sizes),
        "jaxface, detector": lambda: network(on_device[0], stacked),
        "jaxface, alignment": lambda: align(stacked, np.arange(batch), landmarks, peer.target),
        "jaxface, recognizer": lambda: embed(on_device[1], crops),
        "onnxruntime, detector and its boxes": lambda: peer.detect(images),
        "onnxruntime, detector": lambda: peer.detector.run(None, {"data": blob}),
        "onnxruntime, alignment": lambda: peer.align(images, found),
        "onnxruntime, recognizer": lambda: peer.recognizer.run(None, {"data": crop_blob}),
    }
    times = common.in_turns(calls, repeats=repeats, warmup=1, budget=budget)
    seconds = {name: common.summary(values, items=batch) for name, values in times.items()}
    return {
        "batch": batch,
        "image": [HEIGHT, WIDTH],
        "networks": ["retinaface mobilenet_025", "mobilefacenet"],
        "cosine_of_both": {"smallest": float(cosine.min()), "mean": float(cosine.mean())},
        "seconds": seconds,
        "speed_of_onnxruntime": seconds["onnxruntime"]["seconds_median"]
        / seconds["jaxface"]["seconds_median"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for all timed calls")
    parser.add_argument(
        "--out", type=common.folder_argument, help="folder for the JSON; benchmarks/results/<device>"
    )
    options = parser.parse_args()
    measured = measure(options.batch, options.repeats, options.budget)
    for name, row in measured["seconds"].items():
        print(f"{name:40s} {1e3 * row['seconds_median']:9.1f} ms   {row['per_second']:7.1f} photographs/s")
    print(
        f"{measured['speed_of_onnxruntime']:.2f} of onnxruntime's speed; cosine of both {measured['cosine_of_both']}"
    )
    path = common.write("inference", measured, packages=("onnxruntime", "jax2onnx"), folder=options.out)
    print(path)


if __name__ == "__main__":
    main()
