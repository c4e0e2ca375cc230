"""Puts people into a gallery: a sub-folder of photographs per person, or one photograph named for each.

    jaxface enroll --gallery people.gallery PHOTOS --bundle RECOGNIZER --detector DETECTOR

PHOTOS/Ada/1.jpg, PHOTOS/Ada/2.jpg and PHOTOS/Grace.jpg enroll Ada with two photographs and Grace with one. A photograph needs
one face; one with none or with several is reported and left out, unless --largest takes the largest of several. Of several
photographs of a person the gallery keeps the mean of the embeddings, or each with --templates all. A person who is there already
is replaced by what the folder holds, so that the same command twice makes the same gallery; --keep adds to it instead. The
gallery is written at the end, whole or not at all.
"""

import json
import os
import pathlib
import sys

from jaxface.cli.console import command_parser, exit_on_user_error, one_line, say, use_compilation_cache
from jaxface.cli.photos import open_landmarks, open_pipeline, photograph_arguments, read_photographs
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text


def _arguments(arguments: list[str]):
    parser = command_parser("enroll", __doc__)
    parser.add_argument("folder", metavar="PHOTOS", help="folder of people")
    parser.add_argument("--gallery", required=True, metavar="FILE", help="made where it does not exist")
    parser.add_argument(
        "--templates",
        choices=("mean", "all"),
        default="mean",
        help="what stands for a person: the mean of the embeddings (default), or all of them",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the templates that people of these names have already"
    )
    parser.add_argument(
        "--largest", action="store_true", help="of several faces in a photograph take the largest"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    photograph_arguments(parser)
    return parser.parse_args(arguments)


def people_of(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Name of each person -> photographs: those of the sub-folder of that name, or the file of that name.

    Raises:
      UserError: no such folder, or no image in it.
    """
    from jaxface.data.sources.images import SUFFIXES
    from jaxface.data.sources.listing import contents, images_by_class, natural_key, unreadable

    try:
        people = images_by_class(folder)
        files = [path for path in contents(folder).files if path.suffix.lower() in SUFFIXES]
    except OSError as error:
        raise UserError(f"photos: needs a folder of people, {unreadable(error, folder)}") from None
    for path in sorted(files, key=lambda path: natural_key(path.name)):
        people.setdefault(name_text(path.stem), []).append(path)
    if not people:
        raise UserError(f"photos: no image in {folder} or its sub-folders")
    return people


def _check_writable(path: pathlib.Path) -> None:
    """Raises UserError where the gallery could not be written, before anything is computed."""
    if path.is_dir():
        raise UserError(f"gallery: needs a file, got the folder {path}")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"gallery: cannot write to {nearest}")


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Embeds every photograph, then writes the gallery."""
    options = _arguments(arguments)
    path = local_path("gallery", options.gallery)
    _check_writable(path)
    people = people_of(local_path("photos", options.folder))
    use_compilation_cache()
    import numpy as np

    from jaxface.inference import Gallery

    pipeline = open_pipeline(options)
    recognizer = pipeline.recognizer
    if path.exists():
        gallery = Gallery.load(path)
        gallery.check_network(recognizer.identity)
    else:
        gallery = Gallery(recognizer.identity, recognizer.dim, source=recognizer.source)
    owners = {photo: name for name, photos in people.items() for photo in photos}
    embeddings: dict[str, list[np.ndarray]] = {}
    skipped = []
    for photo, image, faces in read_photographs(list(owners), pipeline, open_landmarks(options)):
        if image is None:
            reason = faces
        elif len(faces.boxes) == 0 or (len(faces.boxes) > 1 and not options.largest):
            reason = (
                "no face in it" if not len(faces.boxes) else f"{len(faces.boxes)} faces in it, one is meant"
            )
        else:
            embeddings.setdefault(owners[photo], []).append(faces.embeddings[faces.largest()])
            continue
        skipped.append({"photo": name_text(photo), "person": owners[photo], "reason": reason})
        sys.stderr.write(one_line(f"skipped {photo}: {reason}") + "\n")
    if not embeddings:
        raise UserError(f"photos: none of {len(owners)} can be used, {path} stays as it was")
    replaced = [name for name in embeddings if name in gallery]
    if not options.keep:
        gallery.remove(replaced)
    for name, rows in embeddings.items():
        templates = np.mean(rows, axis=0, keepdims=True) if options.templates == "mean" else np.stack(rows)
        gallery.add([name] * len(templates), templates)
    gallery.save(path)
    nobody = [name for name in people if name not in embeddings]
    if options.json:
        document = {
            "gallery": str(path),
            "bundle": name_text(recognizer.source),
            "network": gallery.identity,
            "enrolled": [
                {"name": name, "photographs": len(rows), "templates": gallery.people[name]}
                for name, rows in embeddings.items()
            ],
            "replaced": [] if options.keep else replaced,
            "without_a_photograph": nobody,
            "skipped": skipped,
            "people": len(gallery.people),
            "templates": len(gallery),
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    used = sum(map(len, embeddings.values()))
    say(
        f"{len(embeddings)} people of {used} photographs{f', {len(skipped)} left out' if skipped else ''}"
        f"{f', {len(replaced)} replaced' if replaced and not options.keep else ''}"
    )
    for name in nobody:
        say(f"not enrolled: {name}, no photograph of whom can be used")
    say(f"{len(gallery.people)} people, {len(gallery)} templates: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
