"""Rate and distortion of codecs on whole photographs, by real files: `python -m experiments.programs.compression_report RUN…`.

RUN is the work directory of a run of edic, all of whose codecs are points of a curve, or the file of one codec; NAME=RUN names
the curve. Beside them stand JPEG, WebP and AVIF as Pillow writes them. Every picture is encoded, decoded and compared: bits per
pixel of the bytes, headers included, PSNR and MS-SSIM of the decoded bytes, means over the pictures, seconds to encode and to
decode one. Prints tables with BD-rates, and writes report.json and a figure for each measure of quality to the work directory.
"""

import dataclasses
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, features

from jaxface import inference, metrics, training
from jaxface.cli import console
from jaxface.data.sources.patches import BUNDLED_HELD_OUT, bundled_photograph, folder_photographs
from jaxface.errors import UserError
from jaxface.metrics.image.ms_ssim import WEIGHTS
from jaxface.paths import local_path
from jaxface.training import figures

QUALITIES: dict[str, tuple[int, ...]] = {
    "JPEG": (3, 6, 12, 25, 40, 60, 80, 92),
    "WEBP": (0, 5, 15, 30, 50, 70, 85, 95),
    "AVIF": (5, 15, 30, 45, 60, 75, 88, 96),
}
"""Settings of Pillow's encoders, from few bytes to many."""
_SMALLEST = 10 * 2 ** (len(WEIGHTS) - 1) + 1


@dataclasses.dataclass(frozen=True)
class Point:
    """A codec at one setting, means over pictures.

    Attributes:
      setting: λ or quality.
      bpp: bits per pixel of the files.
      psnr: dB.
      ms_ssim_db: -10 log10(1 - MS-SSIM), dB; NaN of pictures that are too small for it.
      encode_seconds, decode_seconds: of a picture.
    """

    setting: float
    bpp: float
    psnr: float
    ms_ssim_db: float
    encode_seconds: float
    decode_seconds: float


def pillow_codec(encoding: str, quality: int) -> tuple[Callable, Callable]:
    """(picture -> bytes, bytes -> picture) of an encoder of Pillow."""

    def encode(picture):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, encoding, quality=quality)
        return buffer.getvalue()

    def decode(data):
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    return encode, decode


def learned_codec(codec: inference.Codec) -> tuple[Callable, Callable]:
    """The same of a learned one."""
    return lambda picture: codec.encode(picture).data, codec.decode


_ms_ssim = jax.jit(lambda a, b: metrics.ms_ssim(a, b, peak=255.0))


def measure(
    setting: float, codec: tuple[Callable, Callable], pictures: Sequence[np.ndarray], *, timed: bool = False
) -> Point:
    """A codec's point; with `timed` every picture goes through twice, so that nothing is compiled while the clock runs."""
    encode, decode = codec
    rows = []
    for picture in pictures:
        if timed:
            decode(encode(picture))
        begun = time.perf_counter()
        data = encode(picture)
        written = time.perf_counter()
        decoded = decode(data)
        ended = time.perf_counter()
        error = np.mean((picture.astype(np.float64) - decoded) ** 2)
        similarity = np.nan
        if min(picture.shape[:2]) >= _SMALLEST:
            both = (jnp.asarray(image, jnp.float32)[None] for image in (picture, decoded))
            similarity = metrics.decibels(float(_ms_ssim(*both)[0]))
        pixels = picture.shape[0] * picture.shape[1]
        psnr = 10 * np.log10(255**2 / max(error, 1e-9))
        rows.append((8 * len(data) / pixels, psnr, similarity, written - begun, ended - written))
    return Point(setting, *(float(value) for value in np.mean(rows, axis=0)))


def increasing(points: Sequence[Point], quality: str) -> tuple[list[float], list[float]]:
    """(rates, qualities) of a curve, without points that another one beats in both."""
    kept: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: p.bpp):
        value = getattr(point, quality)
        if not kept or (value > kept[-1][1] and point.bpp > kept[-1][0]):
            kept.append((point.bpp, value))
    return [bpp for bpp, _ in kept], [value for _, value in kept]


def curves(
    runs: Mapping[str, str],
    pictures: Sequence[np.ndarray],
    *,
    timed: bool = False,
    say: Callable = lambda text: None,
) -> dict[str, list[Point]]:
    """Name of a codec -> its points."""
    measured: dict[str, list[Point]] = {}
    for encoding, qualities in QUALITIES.items():
        if encoding == "JPEG" or features.check(encoding.lower()):
            measured[encoding] = [measure(q, pillow_codec(encoding, q), pictures) for q in qualities]
    for name, run in runs.items():
        measured[name] = []
        for weight in sorted(inference.codec_weights(run)):
            codec = inference.open_codec(run, weight=weight)
            measured[name].append(measure(weight, learned_codec(codec), pictures, timed=timed))
            say(f"{name}, λ = {weight:g}: {measured[name][-1].bpp:.3f} bpp, {measured[name][-1].psnr:.2f} dB")
    return measured


def bd_rates(measured: Mapping[str, list[Point]], quality: str = "psnr") -> dict[str, dict[str, float]]:
    """What each curve takes more than each other, percent; curves that do not overlap, or have one point, are left out."""
    table: dict[str, dict[str, float]] = {}
    for test in measured:
        for anchor in measured:
            try:
                value = metrics.bd_rate(*(increasing(measured[name], quality) for name in (anchor, test)))
            except UserError:
                continue
            table.setdefault(test, {})[anchor] = value
    return table


def draw(measured: Mapping[str, list[Point]], quality: str, path: pathlib.Path) -> pathlib.Path:
    """Rate-distortion curves."""
    series = {}
    for name, points in measured.items():
        rates, values = increasing(points, quality)
        series[name] = (np.array(rates), np.array(values))
    label = {"psnr": "PSNR, dB", "ms_ssim_db": "MS-SSIM, dB"}[quality]
    return figures.save_training_curves(series, path, xlabel="bits per pixel", ylabel=label)


def _arguments(arguments: list[str]):
    parser = console.Arguments(
        prog="compression_report", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="work directory of a run of edic or file of a codec; NAME=RUN"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="folder of pictures, such as Kodak's; three bundled ones unless given"
    )
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="only the middle square of this side")
    parser.add_argument("--timed", action="store_true", help="encode and decode twice and time the second")
    parser.add_argument("--workdir", default="runs/compression", help="default: runs/compression")
    return parser.parse_args(arguments)


def middle(picture: np.ndarray, side: int | None) -> np.ndarray:
    """The middle square of a picture; all of it without a side."""
    if side is None:
        return picture
    height, width = picture.shape[:2]
    if not 0 < side <= min(height, width):
        raise UserError(f"crop: needs 1 to {min(height, width)} pixels for these pictures, got {side}")
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    options = _arguments(sys.argv[1:] if arguments is None else arguments)
    runs = {}
    for text in options.runs:
        name, equals, run = text.partition("=")
        runs[name if equals else pathlib.Path(text).name] = run if equals else text
    workdir = local_path("workdir", options.workdir)
    if options.images is None:
        named = {name: bundled_photograph(name) for name in BUNDLED_HELD_OUT}
    else:
        named = folder_photographs(options.images)
    pictures = [middle(picture, options.crop) for picture in named.values()]
    console.use_compilation_cache()
    for run in runs.values():
        if not inference.codec_weights(run):
            raise UserError(f"run: {run} holds no run of a codec, and is no file of one")
    workdir.mkdir(parents=True, exist_ok=True)
    measured = curves(runs, pictures, timed=options.timed, say=console.say)
    qualities = ["psnr"]
    if not any(np.isnan(point.ms_ssim_db) for points in measured.values() for point in points):
        qualities.append("ms_ssim_db")
    tables = {quality: bd_rates(measured, quality) for quality in qualities}
    for quality in qualities:
        draw(measured, quality, workdir / f"{quality}.png")
    points = {name: [dataclasses.asdict(point) for point in points] for name, points in measured.items()}
    record = {
        "pictures": list(named),
        "points": points,
        "bd_rate": tables,
        "device": jax.devices()[0].device_kind,
    }
    training.write_atomically(workdir / "report.json", json.dumps(record, indent=1) + "\n")
    rows = [
        [name, f"{p.setting:g}", f"{p.bpp:.3f}", f"{p.psnr:.2f}", f"{p.ms_ssim_db:.2f}",
         f"{p.encode_seconds:.2f}", f"{p.decode_seconds:.2f}"]
        for name, points in measured.items() for p in points
    ]  # fmt: skip
    columns = ["codec", "setting", "bpp", "PSNR", "MS-SSIM dB", "encode s", "decode s"]
    console.show_table(columns, rows, f"{len(pictures)} pictures")
    for quality, table in tables.items():
        names = list(measured)
        cells = [
            [test, *(f"{table.get(test, {}).get(anchor, np.nan):+.1f}" for anchor in names)] for test in names
        ]
        console.show_table(
            ["codec", *names], cells, f"BD-rate by {quality}, % against the codec of the column"
        )


if __name__ == "__main__":
    main()
