"""Says whether two photographs show one person: similarity, threshold, decision.

    jaxface verify A.jpg B.jpg --bundle RECOGNIZER --detector DETECTOR
    jaxface verify A.png B.png --bundle RECOGNIZER --aligned          both are aligned faces already

One person is where the cosine of the two embeddings is above the threshold: that of the bundle, or --threshold. Each photograph
needs one face; with --largest the largest of several is taken. The exit status is 0 for one person, 1 for two, 2 for a mistake.
"""

import json
import pathlib
import sys

from jaxface.cli.console import command_parser, exit_on_user_error, say, use_compilation_cache
from jaxface.cli.photos import (
    face_row,
    open_landmarks,
    open_pipeline,
    photograph_arguments,
    read_photographs,
)
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

_DRAWN_HEIGHT = 480  # pixels of the larger photograph of a drawing


def _arguments(arguments: list[str]):
    parser = command_parser("verify", __doc__)
    parser.add_argument("first", metavar="A", help="a photograph")
    parser.add_argument("second", metavar="B", help="another")
    photograph_arguments(parser)
    parser.add_argument("--threshold", type=float, help="cosine above which it is one person, -1 to 1")
    parser.add_argument(
        "--largest", action="store_true", help="of several faces in a photograph take the largest"
    )
    parser.add_argument("--out", metavar="FILE", help="PNG with both photographs and the faces drawn on them")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    return parser.parse_args(arguments)


def _face(path: pathlib.Path, faces, *, largest: bool) -> int:
    """Which of the faces of a photograph is meant."""
    count = len(faces.boxes)
    if count == 0:
        raise UserError(
            f"photo: {path} shows no face that the detector is sure of; a smaller --score finds more"
        )
    if count > 1 and not largest:
        raise UserError(f"photo: {path} shows {count} faces, one is needed; --largest takes the largest")
    return faces.largest()


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Detects, embeds, compares and says what came out."""
    options = _arguments(arguments)
    paths = [local_path("photo", text) for text in (options.first, options.second)]
    out = None if options.out is None else local_path("out", options.out)
    use_compilation_cache()
    from jaxface.checks import Cosine, check_number

    if options.threshold is not None:
        check_number("threshold", options.threshold, Cosine)
    pipeline = open_pipeline(options)
    threshold = {"value": options.threshold}
    if options.threshold is None:
        if (recommended := pipeline.recognizer.threshold) is None:
            raise UserError("threshold: the bundle recommends none; needs --threshold, a cosine from -1 to 1")
        threshold = {"value": recommended.value, "far": recommended.far, "set": recommended.set}
    rows, images, boxes, embeddings = [], [], [], []
    landmarks = open_landmarks(options)
    for path in paths:  # one by one: both may be the same file
        ((_, image, faces),) = read_photographs([path], pipeline, landmarks)
        if image is None:
            raise UserError(f"photo: {path} cannot be read: {faces}")
        number = _face(path, faces, largest=options.largest)
        row = {"photo": name_text(path), "width": image.shape[1], "height": image.shape[0]}
        rows.append(row | {"faces": len(faces.boxes), "face": face_row(faces, number)})
        images.append(image)
        boxes.append(faces.boxes[number])
        embeddings.append(faces.embeddings[number])
    similarity = float(embeddings[0] @ embeddings[1])
    same = similarity > threshold["value"]
    verdict = "one person" if same else "two people"
    if out is not None:
        _draw(out, images, boxes, f"{verdict} {similarity:.2f}", same)
    if options.json:
        document = {
            "similarity": round(similarity, 6),
            "threshold": threshold,
            "same": same,
            "bundle": name_text(pipeline.recognizer.source),
            "network": pipeline.recognizer.identity,
            "photographs": rows,
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        known = f" (FAR {threshold['far']:g} on {threshold['set']})" if "far" in threshold else ""
        say(f"{verdict}: similarity {similarity:.4f}, threshold {threshold['value']:.4f}{known}")
    if not same:
        raise SystemExit(1)


def _draw(out: pathlib.Path, images: list, boxes: list, label: str, same: bool) -> None:
    """Both photographs beside each other, the faces that were compared in green or red."""
    import cv2
    import numpy as np

    from jaxface.data.sources.images import encode_image
    from jaxface.data.transforms.drawing import draw_boxes
    from jaxface.training import write_atomically

    height = min(_DRAWN_HEIGHT, max(image.shape[0] for image in images))
    sides = []
    for image, box in zip(images, boxes, strict=True):
        scale = height / image.shape[0]
        size = max(round(image.shape[1] * scale), 1), height
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(image, size, interpolation=method)
        sides.append(draw_boxes(resized, box[None] * scale, labels=[label], classes=[3 if same else 0]))
    gap = np.full((height, max(height // 60, 2), 3), 255, np.uint8)
    try:
        write_atomically(out, encode_image(np.concatenate([sides[0], gap, sides[1]], axis=1)))
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror or error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
