"""Photos in, cloaked photos out: `python -m experiments.programs.cloak_images --run RUN --faces DIR --out DIR`.

Makes one mask for every person (sub-folder) on the network of a finished run, and writes the person's photos with the mask on as
PNG, under the same names. Photos are aligned squares of the network's size; `--fit` brings others to it. The originals are only
read. Stopped at any moment, the same command goes on; photos that were added or replaced since get the mask that is there.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import sys
import zlib

import jax
import numpy as np

from jaxface import attacks, data, inference, training
from jaxface.cli import console
from jaxface.cli.console import use_compilation_cache
from jaxface.data.sources.images import CorruptImage
from jaxface.data.sources.listing import images_by_class, unreadable
from jaxface.errors import UserError
from jaxface.paths import local_path

MASK = "{person}.npy"
"""Beside the person's folder: the mask, [H, W, 3] float32, for photos of later days."""
LONGEST_NAME = 240
"""Bytes of a file's name that leave room for an ending."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the masks depend on besides the photos."""

    run: str
    best: bool
    fit: str | None
    photos: int
    seed: int
    cloak: attacks.Cloak


def read(path: pathlib.Path, size: int, fit: str | None) -> np.ndarray:
    """A photo, [size, size, 3] uint8.

    Raises:
      UserError: it cannot be read, or has another size and no way to change that was options.
    """
    try:
        pixels = data.decode_image(path)
    except CorruptImage as error:
        raise UserError(f"faces: {path} cannot be read: {error}") from None
    if pixels.shape[:2] != (size, size) and fit is None:
        height, width = pixels.shape[:2]
        raise UserError(
            f"faces: {path} is {width}x{height}, the network takes aligned faces of {size}x{size}; align them, or give --fit"
        )
    return data.fit_square(pixels, size, fit=fit or "pad")


def cloaked_names(files: list[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Photo -> name of its cloaked picture, none twice: <stem>.png, and with the old suffix before it where that is taken."""
    names = {path: f"{path.stem}.png" for path in files}
    while True:
        counts = collections.Counter(names.values())
        shared = [path for path in files if counts[names[path]] > 1 and names[path] != f"{path.name}.png"]
        if not shared:
            return names
        names |= {path: f"{path.name}.png" for path in shared}


def people_of(faces: pathlib.Path, out: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Name -> photos of everybody in a folder.

    Raises:
      UserError: no such folder, nobody in it, a person whose photos may not be read, results that would lie among the
        originals, or names that leave no place for them.
    """
    try:
        people = images_by_class(faces, strict=True)
    except OSError as error:
        raise UserError(f"faces: needs a folder of images by person, {unreadable(error, faces)}") from None
    if not people:
        raise UserError(f"faces: no image in {faces}; needs {faces}/<person>/<image>")
    source, target = faces.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"out: needs a folder apart from the originals in {faces}, got {out}")
    folders = [files[0].parent.name for files in people.values()]
    written = collections.Counter(["config.json", *folders, *(MASK.format(person=name) for name in folders)])
    if taken := [name for name in folders if written[name] > 1]:
        raise UserError(f"faces: {faces / taken[0]} has a name that is needed in {out}; rename that folder")
    for path in (path for files in people.values() for path in files):
        if max(len(os.fsencode(name)) for name in (path.name, path.parent.name)) > LONGEST_NAME:
            raise UserError(f"faces: needs names of at most {LONGEST_NAME} bytes, got {path}")
    return people


@functools.partial(jax.jit, static_argnames=("model", "cloak"))
def _mask(model, variables, photos, rng, cloak):
    return attacks.make_cloak(attacks.surrogate(model, variables, dropout=cloak.dropout), photos, rng, cloak)


@functools.partial(jax.jit, static_argnames="model")
def _features(model, variables, images):
    return attacks.cloak_features(attacks.surrogate(model, variables), images, None, jax.random.key(0))


def cloak_images(
    settings: Settings, faces: pathlib.Path, out: pathlib.Path, *, say=console.say
) -> dict[str, float]:
    """Writes the cloaked photos of everybody in a folder.

    Args:
      settings: how.
      faces: <faces>/<person>/<image>. out: where to, a new folder or that of the same command.
      say: receives a line per person.

    Returns:
      person -> mean cosine between the surrogate's embeddings of a cloaked photo and of the photo itself.

    Raises:
      UserError: anything that would leave a photo without its mask; nothing has been computed then.
    """
    bundle = inference.open_recognizer(settings.run, best=settings.best)
    model, size, variables = bundle.module, bundle.image_size, dict(bundle.variables)
    bundle.check_plain("run")
    bundle.check_images((size, size, 3))
    people = people_of(faces, out)
    settings.cloak.check()
    for person, files in people.items():
        # Every photo is looked at first: one that proves unreadable after an hour would cost the hour.
        for path in files:
            read(path, size, settings.fit)
        if len(files) < 2:
            raise UserError(f"faces: needs at least 2 photos of a person, {faces / person} has {len(files)}")
        settings_for(settings.cloak, min(len(files), settings.photos))
    written = {
        "tool": "cloak_images",
        **dataclasses.asdict(settings),
        "run": str(local_path("run", settings.run).resolve()),
        "network": digest(variables),
    }
    out = training.open_workdir(out, written)
    report = {}
    for number, (person, files) in enumerate(people.items(), start=1):
        folder = out / files[0].parent.name
        images = [read(path, size, settings.fit) for path in files]
        mask = mask_of(out / MASK.format(person=folder.name), images, person, model, variables, settings)
        cloaked = [np.asarray(attacks.apply_cloak(image, mask)) for image in images]
        names = cloaked_names(files).values()
        for name, image in zip(names, cloaked, strict=True):
            save(folder / name, data.encode_image(image))
        alike = [
            float(
                np.sum(
                    np.prod(
                        np.asarray(_features(model, variables, np.stack(pair).astype(np.float32))), axis=0
                    )
                )
            )
            for pair in zip(images, cloaked, strict=True)
        ]
        report[person] = float(np.mean(alike))
        say(
            f"{number}/{len(people)}  {person}: {len(files)} photos, cosine to the originals {report[person]:.3f}"
        )
        if left := sorted({path.name for path in folder.glob("*.png")} - set(names)):
            say(f"{folder}: {len(left)} cloaked photos of earlier have no original now, such as {left[0]}")
    return report


def settings_for(cloak: attacks.Cloak, photos: int) -> attacks.Cloak:
    """The settings for a person with so many photos: batches hold no more than there are.

    Raises:
      UserError: a hull that so many photos do not span.
    """
    fitting = dataclasses.replace(cloak, batch=min(cloak.batch, photos))
    fitting.check(photos)
    return fitting


def mask_of(path: pathlib.Path, images, person: str, model, variables, settings: Settings) -> np.ndarray:
    """The person's mask, read where it was made before, else made and saved."""
    shape = images[0].shape
    if path.exists():
        try:
            mask = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            mask = np.zeros(0)
        if mask.shape != shape or mask.dtype != np.float32:
            raise UserError(
                f"out: {path} is no mask of {shape[0]}x{shape[1]} pixels; remove it, and it is made again"
            )
        return mask
    # Evenly over the person's photos, so that a series of alike ones at the beginning does not make the mask alone.
    count = min(len(images), settings.photos)
    spread = np.linspace(0, len(images) - 1, count).round().astype(int)
    photos = np.stack([images[i] for i in spread]).astype(np.float32)
    if not np.linalg.norm(np.asarray(_features(model, variables, photos)), axis=1).all():
        raise UserError(f"run: the network of {settings.run} gives a zero embedding for a photo of {person}")
    rng = jax.random.fold_in(jax.random.key(settings.seed), zlib.crc32(person.encode()))
    mask = np.asarray(_mask(model, variables, photos, rng, settings_for(settings.cloak, count)))
    if not np.isfinite(mask).all():
        raise UserError(f"run: the network of {settings.run} gives no finite gradient for {person}")
    buffer = io.BytesIO()
    np.save(buffer, mask)
    save(path, buffer.getvalue())
    return mask


def digest(variables) -> str:
    """Changes with any number of a network."""
    text = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        text.update(jax.tree_util.keystr(path).encode())
        text.update(np.ascontiguousarray(leaf).tobytes())
    return text.hexdigest()[:16]


def save(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all, unless that is what it holds; a UserError where it cannot."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        training.write_atomically(path, content)
    except OSError as error:
        raise UserError(f"out: cannot write {path}: {error.strerror}") from None


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    plain = attacks.Cloak()
    parser = console.Arguments(prog="cloak_images", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--run", required=True, help="work directory of a finished run: the network to make masks on"
    )
    parser.add_argument("--faces", required=True, help="folder of photos, one sub-folder per person")
    parser.add_argument(
        "--out", required=True, help="folder for the cloaked photos, apart from the originals"
    )
    parser.add_argument(
        "--fit", choices=("pad", "crop", "stretch"), help="bring photos of other sizes to the network's"
    )
    parser.add_argument(
        "--best", action="store_true", help="the run's best checkpoint by its metric, not the newest"
    )
    parser.add_argument(
        "--eps", type=float, default=plain.epsilon, help="largest change of a pixel, of 255 (default 8)"
    )
    parser.add_argument(
        "--step-size", type=float, help="change of a pixel per step, of 255 (default an eighth of --eps)"
    )
    parser.add_argument("--steps", type=int, default=plain.steps, help="steps of a mask (default 16)")
    parser.add_argument(
        "--photos", type=int, default=10, help="photos of a person to make the mask from (default 10)"
    )
    parser.add_argument(
        "--batch", type=int, default=plain.batch, help="photos in a gradient, 0 for all (default 2)"
    )
    parser.add_argument(
        "--accumulate", type=int, default=plain.accumulate, help="gradients in a step (default 20)"
    )
    parser.add_argument("--objective", choices=("opom", "fi_uap", "fi_uap_plus"), default=plain.objective)
    parser.add_argument("--hull", choices=("center", "affine", "convex", "reduced"), default=plain.hull)
    parser.add_argument(
        "--hull-high", type=float, default=plain.hull_high, help="reduced hull: largest coefficient"
    )
    parser.add_argument("--momentum", type=float, default=plain.momentum, help="0.9 with dropout (default 0)")
    parser.add_argument(
        "--dropout", type=float, default=plain.dropout, help="of the surrogate's features (default 0)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.photos < 2:
        raise UserError(f"photos: needs at least 2, got {options.photos}")
    if options.seed < 0:
        raise UserError(f"seed: needs a number from 0, got {options.seed}")
    cloak = attacks.Cloak(
        objective=options.objective,
        hull=options.hull,
        hull_high=options.hull_high,
        epsilon=options.eps,
        step_size=options.eps / 8 if options.step_size is None else options.step_size,
        steps=options.steps,
        batch=options.batch,
        accumulate=options.accumulate,
        momentum=options.momentum,
        dropout=options.dropout,
    )
    use_compilation_cache()
    settings = Settings(options.run, options.best, options.fit, options.photos, options.seed, cloak)
    faces, out = local_path("faces", options.faces), local_path("out", options.out)
    report = cloak_images(settings, faces, out)
    mean = np.mean(list(report.values()))
    console.say(
        f"{len(report)} people: {out}; mean cosine of a cloaked photo to its original {mean:.3f} on the surrogate"
    )


if __name__ == "__main__":
    main()
