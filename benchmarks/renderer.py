"""Images per second of the face renderer, and its contact sheet.

python -m benchmarks.renderer
python -m benchmarks.renderer --contact-sheet docs/guides/renderer.png
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from jaxface.data.render import rendered
from jaxface.data.render.appearance import normalized_depth
from jaxface.data.render.face_model import EXPRESSION
from jaxface.data.render.face_parameters import FaceParameters
from jaxface.data.render.head_geometry import directional_light
from jaxface.data.render.presentation import CUTOUT, MASK, PRINT, REPLAY
from jaxface.data.render.renderer import render, to_uint8
from jaxface.data.render.variation import Variation


def _parameters(count: int, variation: Variation, *, seed: int = 0) -> FaceParameters:
    people = jnp.arange(count, dtype=jnp.int32)
    return rendered.draw_faces(np.uint32(seed), people, people * 0, variation=variation, aligned=True)


def measure(sizes: tuple[int, ...], batch: int, repeats: int) -> list[dict]:
    """One row per image size, set of outputs and kind of people."""
    plain, photographed = (_parameters(batch, kind) for kind in (Variation(), Variation.photographed()))
    rows = []
    for size in sizes:
        for people, faces, outputs, attacks in (
            ("plain", plain, ("image",), False),
            ("plain", plain, ("image", "infrared", "depth", "normals"), True),
            ("photographed", photographed, ("image",), False),
        ):
            times = common.seconds(
                lambda faces=faces, size=size, outputs=outputs, attacks=attacks: render(
                    faces, image_size=size, outputs=outputs, attacks=attacks
                ),
                repeats=repeats,
            )
            row = {
                "image_size": size,
                "batch": batch,
                "people": people,
                "outputs": outputs,
                "attacks": attacks,
            }
            rows.append(row | common.summary(times, items=batch))
            shown = f"{people} {'+'.join(outputs)}"
            print(f"{size:4d} px  {shown:46s} {rows[-1]['per_second']:9.1f} images/s")
    return rows


def contact_sheet(path: str, *, people: int = 6, size: int = 112) -> None:
    """Rows are people; columns show what varies, the attacks, depth and normals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ids = jnp.arange(people, dtype=jnp.int32)

    def shots(number, variation):
        return rendered.draw_faces(np.uint32(0), ids, ids * 0 + number, variation=variation, aligned=True)

    plain = shots(0, dataclasses.replace(Variation.none(), background=1.0))
    side = np.array([[0.8, 0.2, 0.5], [-0.8, 0.3, 0.5], [0.0, 0.9, 0.4]], np.float32)
    side = np.resize(side / np.linalg.norm(side, axis=1, keepdims=True), (people, 3))
    beta = np.eye(EXPRESSION, dtype=np.float32)[np.arange(people) % EXPRESSION] * 1.3
    attack = lambda kind: plain.replace(spoof=jnp.full((people,), kind, jnp.int32))  # noqa: E731
    columns = {
        "frontal": plain,
        "pose": shots(1, Variation(expression=0.0)),
        "profile": shots(2, Variation(expression=0.0, yaw=45.0)),
        "expression": plain.replace(expression=jnp.asarray(beta)),
        "light": plain.replace(
            ambient=jnp.full((people,), 0.1),
            light=jax.vmap(directional_light)(jnp.asarray(side), jnp.full((people,), 0.9)),
        ),
        "default": shots(3, Variation()),
        "hard": shots(4, Variation.hard()),
        "print": attack(PRINT),
        "replay": attack(REPLAY),
        "mask": attack(MASK),
        "cut-out": attack(CUTOUT),
    }
    pictures = {
        name: np.asarray(to_uint8(render(faces, image_size=size).image)) for name, faces in columns.items()
    }
    extra = render(columns["pose"], image_size=size, outputs=("infrared", "depth", "normals"))
    pictures["infrared"] = np.asarray(extra.infrared)
    pictures["depth"] = np.asarray(normalized_depth(extra.depth)) / 1.2
    pictures["normals"] = np.asarray(extra.normals * 0.5 + 0.5) * np.asarray(extra.mask)[..., None]
    figure, axes = plt.subplots(people, len(pictures), figsize=(len(pictures), people * 1.02 + 0.2))
    for column, (name, images) in enumerate(pictures.items()):
        axes[0, column].set_title(name, fontsize=8)
        for row in range(people):
            axes[row, column].imshow(images[row], cmap="gray", vmin=0, vmax=1)
            axes[row, column].axis("off")
    figure.subplots_adjust(0.002, 0.002, 0.998, 0.96, wspace=0.03, hspace=0.03)
    figure.savefig(path, dpi=size)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--contact-sheet", metavar="PNG", help="write the contact sheet there and time nothing"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 112])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.contact_sheet:
        contact_sheet(arguments.contact_sheet)
        print(arguments.contact_sheet)
    else:
        print(common.write("renderer", measure(tuple(arguments.sizes), arguments.batch, arguments.repeats)))


if __name__ == "__main__":
    main()
