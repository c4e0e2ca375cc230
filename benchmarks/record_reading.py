"""Images per second per core out of RecordIO sets and `.bin` packs, against bare `cv2.imdecode` of the same JPEG bytes.

All run in turns in one process, over files in the page cache. `per_core` divides by CPU seconds; `slower` is the CPU time over
OpenCV's in the same turn, 1.3 at most is the aim. `--fuzz N` then damages N files of each kind and reads what is left of
them: crashes, the slowest case, and how much memory the process took at its peak over what it had before.
Run with `python -m benchmarks.record_reading --fuzz 100000`.
"""

import argparse
import collections
import contextlib
import io
import logging
import os
import pathlib
import pickle
import resource
import sys
import tempfile
import time

import cv2
import numpy as np
from PIL import Image

from benchmarks import common
from benchmarks.input_pipeline import photographs
from jaxface import data
from jaxface.data.sources import packs
from jaxface.data.sources.images import decode_image, encode_image
from jaxface.errors import UserError


def run(*, count: int, size: int, repeats: int) -> list[dict]:
    """One row per way of reading; the first is OpenCV alone."""
    files = photographs(count, size)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        with data.RecordWriter(path / "train.rec") as writer:
            for number, encoded in enumerate(files):
                writer.write(number // 32, encoded)
        data.write_bin(path / "pairs.bin", files, [pair % 2 == 0 for pair in range(count // 2)])
        records = data.RecordIOFaces(path)
        pack = data.PackSource(path / "pairs.bin", image_size=size)

        def opencv(encoded: bytes) -> np.ndarray:
            return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)

        def pillow(encoded: bytes) -> np.ndarray:
            return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))

        ways = {
            "cv2.imdecode (BGR)": lambda index: opencv(files[index]),
            "cv2.imdecode and cv2.cvtColor": lambda index: cv2.cvtColor(
                opencv(files[index]), cv2.COLOR_BGR2RGB
            ),
            "Pillow": lambda index: pillow(files[index]),
            "jaxface.data.decode_image": lambda index: decode_image(files[index]),
            "RecordIOFaces": records.__getitem__,
            "PackSource": pack.__getitem__,
            "RecordIOFaces.encoded, no decoding": records.encoded,
        }
        order = np.random.default_rng(0).permutation(count).tolist()
        wall, core = ({name: [] for name in ways} for _ in range(2))
        for turn in range(repeats + 1):  # in turns, so that a busy machine meets them all; the first warms up
            for name, read in ways.items():
                clock, cpu = time.perf_counter(), time.process_time()
                for index in order:
                    read(index)
                if turn:
                    wall[name].append(time.perf_counter() - clock)
                    core[name].append(time.process_time() - cpu)
        bare = np.array(next(iter(core.values())))
        rows = [
            {
                "way": name,
                "per_second": count / float(np.median(wall[name])),
                "per_core": count / float(np.median(core[name])),
                "slower": float(np.median(np.array(core[name]) / bare)),
                "repeats": repeats,
            }
            for name in ways
        ]
        began = time.perf_counter()
        images, _ = data.read_bin(path / "pairs.bin")
        rows.append(
            {"way": "read_bin, no decoding", "per_second": len(images) / (time.perf_counter() - began)}
        )
    return rows


def _damaged(rng: np.random.Generator, whole: bytes) -> bytes:
    changed = bytearray(whole)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(len(changed)))
        if rng.random() < 0.5:
            changed[at] ^= 1 << int(rng.integers(8))
        else:
            changed[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
    if rng.random() < 0.15:
        del changed[int(rng.integers(len(changed))) :]
    return bytes(changed)


class _Sets:
    """RecordIO sets of six small images with something damaged in the records or the index."""

    def __init__(self, folder: pathlib.Path, files: list[bytes]):
        with data.RecordWriter(folder / "train.rec") as writer:
            for number, encoded in enumerate(files):
                writer.write(number // 3, encoded)
        self._rec, self._idx = folder / "train.rec", folder / "train.idx"
        self._records, self._lines = self._rec.read_bytes(), self._idx.read_bytes()

    def damage(self, rng: np.random.Generator) -> None:
        index = rng.random()
        self._rec.write_bytes(_damaged(rng, self._records) if index < 0.8 else self._records)
        if 0.2 < index < 0.5:
            self._idx.unlink(missing_ok=True)
        else:
            self._idx.write_bytes(_damaged(rng, self._lines) if index > 0.7 else self._lines)

    def read(self) -> str:
        try:
            source = data.RecordIOFaces(self._rec)
        except UserError:
            return "refused"
        for index in range(len(source)):
            source[index]
        return "with something left out or replaced" if source.corrupt or source.left_out else "whole"


class _Packs:
    """Packs of four small images, of every pickle protocol, bytes and arrays, with some bytes damaged."""

    def __init__(self, files: list[bytes]):
        arrays = [np.frombuffer(encoded, np.uint8) for encoded in files[:4]]
        self._written = [
            pickle.dumps((bins, [True, False]), protocol)
            for bins in (files[:4], arrays)
            for protocol in range(6)
        ]

    def damage(self, rng: np.random.Generator) -> None:
        self._pack = _damaged(rng, self._written[int(rng.integers(len(self._written)))])

    def read(self) -> str:
        try:
            images, _ = packs.parse_bin(self._pack)
        except packs.Refused:
            return "refused"
        outcome = "whole"
        for encoded in images:
            with contextlib.suppress(data.CorruptImage):
                decode_image(encoded)
                continue
            outcome = "with images that do not decode"
        return outcome


class _Images:
    """Small images of every format that is read, with some bytes damaged."""

    def __init__(self, files: list[bytes]):
        self._written = list(files)
        for kind in ("PNG", "BMP", "WEBP", "PPM"):
            buffer = io.BytesIO()
            Image.fromarray(decode_image(files[0])).save(buffer, kind)
            self._written.append(buffer.getvalue())

    def damage(self, rng: np.random.Generator) -> None:
        self._encoded = _damaged(rng, self._written[int(rng.integers(len(self._written)))])

    def read(self) -> str:
        try:
            decode_image(self._encoded)
        except data.CorruptImage:
            return "refused"
        return "decoded"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(cases: int, *, seed: int) -> list[dict]:
    """Reads so many damaged files of each kind; one row each."""
    files = [encode_image(decode_image(encoded)[:16, :16], encoding="jpeg") for encoded in photographs(6, 32)]
    logging.getLogger("jaxface.data").setLevel(logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for name, reader in (
            ("RecordIOFaces", _Sets(pathlib.Path(folder), files)),
            ("read_bin", _Packs(files)),
            ("decode_image", _Images(files)),
        ):
            rng, outcomes, crashes = np.random.default_rng(seed), collections.Counter(), []
            reader.damage(rng)
            reader.read()
            before, slowest, spent = _peak(), 0.0, 0.0
            for case in range(cases):
                reader.damage(rng)
                began = time.perf_counter()
                try:
                    outcomes[reader.read()] += 1
                except Exception as error:
                    crashes.append(f"case {case}: {type(error).__name__}: {error}"[:200])
                took = time.perf_counter() - began
                slowest, spent = max(slowest, took), spent + took
            rows.append(
                {
                    "reader": name,
                    "cases": cases,
                    "crashes": len(crashes),
                    "first_crashes": crashes[:3],
                    "outcomes": dict(outcomes),
                    "mean_seconds": spent / cases,
                    "slowest_seconds": slowest,
                    "peak_bytes_over_start": _peak() - before,
                }
            )
    return rows


@contextlib.contextmanager
def _quiet_codecs():
    """libjpeg says of every damaged image what is wrong with it, to the standard error and past Python."""
    sys.stderr.flush()
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=512, help="images, an even number")
    parser.add_argument("--size", type=int, default=112, help="side of an image, pixels")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--fuzz", type=int, nargs="?", const=100_000, default=0, help="damaged files of each kind"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument(
        "--folder", type=common.folder_argument, help="where to write, instead of results/<device>"
    )
    arguments = parser.parse_args()
    if arguments.count < 64 or arguments.count % 2 or arguments.size < 16 or arguments.fuzz < 0:
        parser.error("needs an even count >= 64, size >= 16, and fuzz >= 0")
    cv2.setNumThreads(1)
    options = {key: value for key, value in vars(arguments).items() if key != "folder"}
    rows = run(count=arguments.count, size=arguments.size, repeats=arguments.repeats)
    for row in rows:
        core = (
            f"{row['per_core']:8.0f} per core {row['slower']:6.2f} x OpenCV's time" if "slower" in row else ""
        )
        print(f"{row['way']:36s} {row['per_second']:8.0f} images/s {core}")
    measurements = {"options": options, "rows": rows}
    if arguments.fuzz:
        with _quiet_codecs():
            measurements["fuzz"] = fuzz(arguments.fuzz, seed=arguments.seed)
        for row in measurements["fuzz"]:
            print(
                f"{row['reader']}: {row['cases']} cases, {row['crashes']} crashes, slowest {row['slowest_seconds']:.3f} s, "
                f"peak {row['peak_bytes_over_start'] / 2**20:.1f} MiB, {row['outcomes']}"
            )
    path = common.write(
        "record_reading",
        measurements,
        packages=("opencv-python-headless", "pillow"),
        folder=arguments.folder,
    )
    print(path)


if __name__ == "__main__":
    main()
