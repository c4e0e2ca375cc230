"""Does a detector find the faces of real photographs? `python -m experiments.programs.contact_sheet FOLDER --detector RUN`.

Portraits of a folder, one face in each, are pasted at random sizes on synthetic clutter, and the detector looks for them. A face
is found where the middle of a detection lies in the middle half of its photograph, and the detection covers 0.15 to 1.2 of the
photograph's area; every other detection is false. Writes the sheets with what was detected, and results.json.
"""

import json
import pathlib
import sys
from typing import NamedTuple

import cv2
import numpy as np

from jaxface import inference
from jaxface.checks import AtLeast, check_number
from jaxface.cli import console
from jaxface.data.render import clutter
from jaxface.data.sources.images import SUFFIXES, CorruptImage, decode_image, encode_image
from jaxface.data.transforms.drawing import draw_boxes
from jaxface.errors import UserError
from jaxface.paths import local_path
from jaxface.training import write_atomically

AREAS = (0.15, 1.2)  # of a detection, as a share of the photograph's


class Sheet(NamedTuple):
    """A picture and where the photographs are in it."""

    image: np.ndarray  # [H, W, 3] uint8
    places: np.ndarray  # [N, 4] float32 (y0, x0, y1, x1)


def make_sheet(
    rng: np.random.Generator,
    photographs: list[np.ndarray],
    *,
    size: tuple[int, int] = (480, 640),
    sides: tuple[int, int] = (24, 200),
) -> Sheet:
    """Photographs on clutter, apart from each other; those that find no place after a hundred tries are left out.

    Args:
      rng: source of randomness.
      photographs: [H, W, 3] uint8 each.
      size: (height, width) of the sheet.
      sides: least and greatest longer side of a photograph, pixels, log-uniform.
    """
    image = clutter.background(rng, *size)
    clutter.shapes(rng, image, int(rng.integers(8, 40)))
    places = []
    for photograph in photographs:
        side = np.exp(rng.uniform(*np.log(sides)))
        height, width = (
            max(round(edge * side / max(photograph.shape[:2])), 1) for edge in photograph.shape[:2]
        )
        if height > size[0] or width > size[1]:
            continue
        for _ in range(100):
            y, x = rng.integers(0, (size[0] - height + 1, size[1] - width + 1))
            if all(y + height <= a or c <= y or x + width <= b or d <= x for a, b, c, d in places):
                image[y : y + height, x : x + width] = cv2.resize(
                    photograph, (width, height), interpolation=cv2.INTER_AREA
                )
                places.append((y, x, y + height, x + width))
                break
    return Sheet(image, np.array(places, np.float32).reshape(-1, 4))


def judge(boxes: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, int]:
    """([N] bool, which photographs' faces are found; how many detections are false).

    Args:
      boxes: [D, 4] detections, the best first. places: [N, 4] of the photographs.
    """
    found, false = np.zeros(len(places), bool), 0
    for y0, x0, y1, x1 in boxes:
        y, x, area = (y0 + y1) / 2, (x0 + x1) / 2, (y1 - y0) * (x1 - x0)
        for i, (top, left, bottom, right) in enumerate(places):
            height, width = bottom - top, right - left
            middle = abs(y - (top + bottom) / 2) <= height / 4 and abs(x - (left + right) / 2) <= width / 4
            if middle and not found[i] and AREAS[0] <= area / (height * width) <= AREAS[1]:
                found[i] = True
                break
        else:
            false += 1
    return found, false


def read_photographs(folder: pathlib.Path) -> list[np.ndarray]:
    """Every image of a folder and its sub-folders that can be read.

    Raises:
      UserError: there is none.
    """
    photographs = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            photographs.append(decode_image(path))
        except CorruptImage as error:
            sys.stderr.write(f"skipped {console.one_line(path)}: {console.one_line(error)}\n")
    if not photographs:
        raise UserError(f"folder: no image in {folder} that can be read")
    return photographs


def contact_sheets(
    detector: inference.PhotoDetector,
    photographs: list[np.ndarray],
    out: pathlib.Path,
    *,
    thresholds: tuple[float, ...],
    sheets: int = 10,
    per_sheet: int = 12,
    seed: int = 0,
) -> dict[str, float]:
    """Makes sheets, looks for the faces, and writes both.

    Args:
      detector: at the lowest threshold. photographs: to choose from.
      out: folder for the sheets, with what is detected at the first threshold and, in green, what is not.
      thresholds: of the score.
      sheets, per_sheet, seed: how many sheets, of how many photographs, drawn how.

    Returns:
      `faces` in all sheets; at each threshold the recall of them, and the false positives of a sheet; at the first one the recall
      of photographs by their height.
    """
    rng = np.random.default_rng(seed)
    found, heights, false = {t: [] for t in thresholds}, [], dict.fromkeys(thresholds, 0)
    for number in range(sheets):
        chosen = rng.choice(len(photographs), min(per_sheet, len(photographs)), replace=False)
        sheet = make_sheet(rng, [photographs[i] for i in chosen])
        (detections,) = detector([sheet.image])
        heights.append(sheet.places[:, 2] - sheet.places[:, 0])
        for threshold in thresholds:
            hit, wrong = judge(detections.boxes[detections.scores >= threshold], sheet.places)
            found[threshold].append(hit)
            false[threshold] += wrong
        good = detections.scores >= thresholds[0]
        drawn = draw_boxes(
            sheet.image,
            detections.boxes[good],
            scores=detections.scores[good],
            landmarks=None if detections.landmarks is None else detections.landmarks[good],
        )
        drawn = draw_boxes(drawn, sheet.places[~found[thresholds[0]][-1]], color=(64, 220, 96))
        write_atomically(out / f"sheet-{number:02d}.png", encode_image(drawn))
    hits, height = {t: np.concatenate(of_sheets) for t, of_sheets in found.items()}, np.concatenate(heights)
    report = {"faces": float(len(height))}
    for threshold in thresholds:
        report[f"recall at {threshold:g}"] = float(hits[threshold].mean())
        report[f"false positives at {threshold:g}"] = false[threshold] / sheets
    for low, high in ((0, 40), (40, 80), (80, 1000)):
        those = hits[thresholds[0]][(height >= low) & (height < high)]
        if len(those):
            report[f"recall of heights {low} to {high}"] = float(those.mean())
    return report


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="contact_sheet", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", help="portraits, one face in each; sub-folders count")
    parser.add_argument("--detector", required=True, help="a run, a bundle, or published weights")
    parser.add_argument("--out", default="contact_sheets", help="folder for the sheets and results.json")
    parser.add_argument("--sheets", type=int, default=10, help="how many")
    parser.add_argument("--per-sheet", type=int, default=12, help="photographs on each")
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=[0.8, 0.5, 0.9, 0.95],
        help="smallest scores to report; the first one's detections are drawn",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sheets")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    for name in ("sheets", "per_sheet"):
        check_number(name, getattr(options, name), AtLeast(1))
    console.use_compilation_cache()
    photographs = read_photographs(local_path("folder", options.folder))
    bundle = inference.open_detector(options.detector)
    thresholds = tuple(options.thresholds)
    detector = inference.PhotoDetector(bundle, threshold=min(thresholds))
    out = local_path("out", options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        report = contact_sheets(
            detector,
            photographs,
            out,
            thresholds=thresholds,
            sheets=options.sheets,
            per_sheet=options.per_sheet,
            seed=options.seed,
        )
        results = {"detector": bundle.source, "options": vars(options), "metrics": report}
        write_atomically(out / "results.json", json.dumps(results, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"out: cannot write to {out}: {error.strerror or error}") from None
    console.show_metrics(report, f"{bundle.source} on {options.sheets} sheets: {out}")


if __name__ == "__main__":
    main()
