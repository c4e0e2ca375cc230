"""Images per second of the input pipeline by worker processes, against bare loops of Pillow and OpenCV over the same JPEG bytes.

A RecordIO set in the page cache is read, decoded, augmented and batched; 0 workers are threads of this process. The loops
decode the same bytes out of memory, one after the other, and keep nothing. `per_core` divides by the CPU seconds of all
threads and worker processes, `ratio` is that rate over `cv2.imdecode`'s. Workers beyond the cores (`cpu_cores` in the JSON)
cannot add speed; they show what it costs to have them. Run with `python -m benchmarks.input_pipeline`.
"""

import argparse
import io
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from benchmarks import common
from jaxface import data
from jaxface.data.pipeline.batches import batches
from jaxface.data.sources.images import encode_image
from jaxface.data.sources.source import Source
from jaxface.data.transforms.augment import Augment

SETTINGS = {
    "no augmentation": None,
    "default augmentation": Augment(),
    "every change at a half": Augment(
        flip=0.5, crop=0.5, color=0.5, blur=0.5, jpeg=0.5, occlusion=0.5, low_resolution=0.5
    ),
}
THREADS_ONLY = {"every change at a half"}
PREFETCH = 2  # batches ahead, for each worker


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


def cpu_seconds() -> float:
    """CPU time of this process, its threads and its living worker processes."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        try:
            fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended, or there is no /proc here
            continue
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def measure(take: Callable[[], int], *, repeats: int, seconds: float) -> dict[str, float]:
    """Images per second of wall clock and of CPU time, medians over `repeats` of so many seconds.

    `take` gives the next images and returns how many.
    """
    wall, cores = [], []
    for _ in range(repeats):
        clock, cpu, images = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - clock < seconds:
            images += take()
        wall.append(images / (time.perf_counter() - clock))
        cores.append(images / (cpu_seconds() - cpu))
    return {"per_second": float(np.median(wall)), "per_core": float(np.median(cores)), "repeats": repeats}


def loop(decode: Callable[[bytes], np.ndarray], files: list[bytes]) -> Callable[[], int]:
    """All files once for each call."""

    def take() -> int:
        for encoded in files:
            decode(encoded)
        return len(files)

    return take


def stream(source: Source, augment: Augment | None, workers: int, arguments: argparse.Namespace) -> dict:
    """The pipeline with so many workers, once what it worked ahead while it started is used up."""
    ahead = PREFETCH if workers else common.cores()
    began = time.perf_counter()
    taken = batches(
        source,
        batch_size=arguments.batch_size,
        seed=0,
        augment=augment,
        workers=workers,
        prefetch=ahead,
    )
    next(taken)
    started = time.perf_counter() - began
    for _ in range(2 * ahead * max(workers, 1)):
        next(taken)
    row = measure(lambda: len(next(taken)["image"]), repeats=arguments.repeats, seconds=arguments.seconds)
    taken.close()
    return row | {"first_batch_seconds": started}


def run(arguments: argparse.Namespace) -> list[dict]:
    """One row per setting and number of workers; the first two are the loops."""
    files = photographs(arguments.count, arguments.size)
    bare = {
        "cv2.imdecode": lambda encoded: cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR),
        "Pillow": lambda encoded: np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")),
    }
    rows = []

    def add(row: dict) -> None:
        row["ratio"] = row["per_core"] / (rows[0] if rows else row)["per_core"]
        rows.append(row)
        how = (
            "a loop" if "workers" not in row else f"{row['workers']} workers" if row["workers"] else "threads"
        )
        started = f"  first batch after {row['first_batch_seconds']:4.1f} s" if "workers" in row else ""
        sys.stdout.write(
            f"{row['setting']:24s} {how:12s} {row['per_second']:7.0f} images/s  {row['per_core']:7.0f} per core"
            f"  {row['ratio']:5.2f} x OpenCV{started}\n"
        )
        sys.stdout.flush()

    for name, decode in bare.items():
        take = loop(decode, files)
        take()
        add({"setting": name} | measure(take, repeats=arguments.repeats, seconds=arguments.seconds))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "train.rec")
        with data.RecordWriter(path) as writer:
            for number, encoded in enumerate(files):
                writer.write(number // 32, encoded)
        source = data.RecordIOFaces(path)
        for name, augment in SETTINGS.items():
            for workers in [0] if name in THREADS_ONLY else arguments.workers:
                add({"setting": name, "workers": workers} | stream(source, augment, workers, arguments))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=512, help="images")
    parser.add_argument("--size", type=int, default=112, help="side of an image, pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each repeat")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16], help="worker processes; 0 for threads"
    )
    parser.add_argument(
        "--folder", type=common.folder_argument, help="where to write, instead of results/<device>"
    )
    arguments = parser.parse_args()
    if not 1 <= arguments.batch_size <= arguments.count or arguments.count < 64 or arguments.size < 16:
        parser.error("needs count >= 64, batch-size from 1 to count, and size >= 16")
    if min(arguments.workers) < 0 or arguments.repeats < 1 or arguments.seconds <= 0:
        parser.error("needs workers >= 0, repeats >= 1 and seconds > 0")
    cv2.setNumThreads(1)
    sys.stdout.write(f"on {common.cores()} cores\n")
    rows = run(arguments)
    options = {key: value for key, value in vars(arguments).items() if key != "folder"}
    path = common.write(
        "input_pipeline",
        {"options": options, "rows": rows},
        packages=("pillow", "opencv-python-headless", "grain"),
        folder=arguments.folder,
    )
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
