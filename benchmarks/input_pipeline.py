"""Images per second of the input pipeline, against plain Pillow decoding of the same JPEG bytes.

Both run in turn in one process, on the same bytes in memory. `per_core` divides by the CPU seconds of all threads, not by the
wall clock; `ratio` is that rate over Pillow's. Run with `python -m benchmarks.input_pipeline`.
"""

import argparse
import functools
import io
import os
import pathlib
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from benchmarks import common
from jaxface.data.augment import Augment
from jaxface.data.images import decode_image, encode_image
from jaxface.data.pipeline import Batches, batches
from jaxface.data.sources import Record

SETTINGS = {
    "decode and batch": None,
    "decode, flip, batch": Augment(),
    "decode, every change at a half, batch": Augment(
        flip=0.5, crop=0.5, color=0.5, blur=0.5, jpeg=0.5, occlusion=0.5, low_resolution=0.5
    ),
}


class EncodedSource:
    """JPEG bytes in memory, of 16 people, decoded when asked for: as `FolderSource`, without the disk."""

    def __init__(self, files: list[bytes]):
        self._files = files
        self.image_shape = decode_image(files[0]).shape
        self.labels = (np.arange(len(files)) % 16).astype(np.int32)
        self.class_names = [f"person-{k}" for k in range(16)]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        return {"image": decode_image(self._files[index]), "label": self.labels[index]}


def photographs(count: int, size: int) -> list[bytes]:
    """Smooth noise as JPEG, about as many bytes each as photographs of faces have."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = rng.uniform(0, 255, (size // 8, size // 8, 3)).astype(np.float32)
        pixels = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC) + rng.normal(
            0, 4, (size, size, 3)
        )
        files.append(encode_image(np.clip(pixels, 0, 255).astype(np.uint8), encoding="jpeg", quality=90))
    return files


def measure(function: Callable[[], int], repeats: int) -> dict[str, float]:
    """Images per second of wall clock and of CPU time, medians over `repeats`; `function` returns how many it made."""
    function()
    wall, cores = [], []
    for _ in range(repeats):
        clock, cpu = time.perf_counter(), time.process_time()
        images = function()
        wall.append(images / (time.perf_counter() - clock))
        cores.append(images / (time.process_time() - cpu))
    return {"per_second": float(np.median(wall)), "per_core": float(np.median(cores)), "repeats": repeats}


def run(*, count: int, size: int, batch_size: int, repeats: int, workers: int) -> list[dict]:
    """One row per setting; the first is Pillow."""
    files = photographs(count, size)
    source = EncodedSource(files)

    def pillow() -> int:
        for encoded in files:
            np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        return count

    def ours(stream: Batches) -> int:
        return sum(len(next(stream)["image"]) for _ in range(count // batch_size))

    rows = [{"setting": "Pillow", "threads": 1, "bytes_per_image": sum(map(len, files)) // count}]
    rows[0] |= measure(pillow, repeats)
    for name, augment in SETTINGS.items():
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            stream = batches(source, batch_size=batch_size, seed=0, augment=augment, prefetch=threads)
            row = {"setting": name, "threads": threads} | measure(functools.partial(ours, stream), repeats)
            rows.append(row | {"ratio": row["per_core"] / rows[0]["per_core"]})
            stream.close()
    if workers:
        stream = batches(source, batch_size=batch_size, seed=0, augment=augment, prefetch=2, workers=workers)
        row = measure(functools.partial(ours, stream), repeats)
        del row["per_core"]  # the CPU time of other processes is not this one's
        rows.append({"setting": name, "processes": workers} | row)
        stream.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=512, help="images")
    parser.add_argument("--size", type=int, default=112, help="side of an image, pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0, help="also time this many worker processes")
    parser.add_argument(
        "--folder", type=pathlib.Path, default=None, help="where to write, instead of results/<device>"
    )
    arguments = parser.parse_args()
    if not 1 <= arguments.batch_size <= arguments.count or arguments.count < 32 or arguments.size < 16:
        parser.error("needs count >= 32, batch-size from 1 to count, and size >= 16")
    options = {k: v for k, v in vars(arguments).items() if k != "folder"}
    rows = run(**options)
    for row in rows:
        how = f"{row.get('threads') or row.get('processes') or 1} {'processes' if 'processes' in row else 'threads'}"
        core = f"{row['per_core']:8.0f} per core" if "per_core" in row else ""
        ratio = f"{row['ratio']:6.2f} x Pillow" if "ratio" in row else ""
        sys.stdout.write(f"{row['setting']:40s} {how:12s} {row['per_second']:8.0f} images/s {core} {ratio}\n")
    path = common.write(
        "input_pipeline",
        {"options": options, "rows": rows},
        packages=("pillow", "opencv-python-headless", "grain"),
        folder=arguments.folder,
    )
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
