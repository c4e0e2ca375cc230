"""MegaFace's challenge 1 as InsightFace hands it out: FaceScrub probes, distractors, and which of either are wrong.

<root>/facescrub_lst                   <person>/<image>, of facescrub_images/
<root>/megaface_lst                    <folder>/<album>/<image>, of megaface_images/
<root>/facescrub_noises.txt            <image>, probes that show somebody else
<root>/megaface_noises.txt             <folder>/<album>/<image>, distractors that show one of the probes' people
"""

import os
import pathlib

import numpy as np

from jaxface.data.sources.annotated import read_lines
from jaxface.data.sources.listed_faces import ListedFaces, check_names, readable
from jaxface.errors import UserError
from jaxface.metrics.recognition.benchmarks import megaface_report, refined_probes
from jaxface.paths import name_text, user_path

_PROBES, _DISTRACTORS = "facescrub_images", "megaface_images"


class MegaFaceSource(ListedFaces):
    """Probes, then distractors; the label of a probe is its person, that of every distractor the one after.

    Attributes:
      num_probes: how many records are probes.
      noisy: [N] bool, on which images another person is than the lists say; nobody where the set is taken as it is.
    """

    def __init__(self, root: str | os.PathLike, *, image_size: int = 112, refined: bool = True):
        """Opens the lists; no image is read yet.

        Args:
          root: the folder of the set.
          image_size: side of every image, pixels; those of the set are aligned and have 112.
          refined: use the lists of wrong images, as results of InsightFace and most papers since do. Results with and without
            them are 15 points of rank-1 apart.

        Raises:
          UserError: a list that is missing, empty or names an image outside of its folder, fewer than ten distractors, nobody
            with two probes, or a person all of whose probes are wrong.
        """
        root = user_path("root", root)
        probes = _names(root / "facescrub_lst", 2)
        distractors = _names(root / "megaface_lst", 3)
        people, labels = np.unique([name.split("/")[-2] for name in probes], return_inverse=True)
        if np.bincount(labels).max() < 2:
            raise UserError(f"root: needs a person with two images in {name_text(root / 'facescrub_lst')}")
        if len(distractors) < 10:
            raise UserError(
                f"root: needs at least 10 distractors, {name_text(root / 'megaface_lst')} has {len(distractors)}"
            )
        names = [f"{_PROBES}/{name}" for name in probes] + [f"{_DISTRACTORS}/{name}" for name in distractors]
        super().__init__(
            root,
            names,
            np.concatenate([labels, np.full(len(distractors), len(people))]),
            [*people, "distractor"],
            image_size=image_size,
        )
        self.num_probes, self.noisy = len(probes), np.zeros(len(names), bool)
        if refined:
            wrong = set(_noises(root / "facescrub_noises.txt"))
            wrong_distractors = set(_noises(root / "megaface_noises.txt"))
            self.noisy[:] = [name.rpartition("/")[2] in wrong for name in probes] + [
                "/".join(name.split("/")[-3:]) in wrong_distractors for name in distractors
            ]
            lost = np.setdiff1d(labels, labels[~self.noisy[: len(probes)]])
            if lost.size:
                raise UserError(
                    f"root: facescrub_noises.txt lists every image of {people[lost[0]]}, who needs a good one"
                )

    def report(self, features, weights) -> dict[str, float]:
        """The challenge's numbers (`jaxface.metrics.megaface_report`), and how many images could not be read.

        A wrong probe is replaced by what is known of its person (`jaxface.metrics.refined_probes`), a wrong distractor can match
        nobody and is left out.

        Args:
          features: [N, D] float, of the records, not normalized. weights: [N], 0 for an image that could not be read.

        Raises:
          UserError: too few images that can be read.
        """
        features, good = np.asarray(features), readable(weights, what="MegaFace")
        probe = np.arange(len(good)) < self.num_probes
        labels, noisy = self.labels[probe & good], self.noisy[probe & good]
        clean = np.isin(labels, labels[~noisy])  # somebody whose good images all are damaged is left out, too
        probes = refined_probes(features[probe & good][clean], labels[clean], noisy[clean])
        report = megaface_report(probes, labels[clean], features[~probe & good & ~self.noisy])
        return report | {"data/left_out": float((~good).sum() + (~clean).sum())}


def _names(path: pathlib.Path, depth: int) -> list[str]:
    """The images of a list, the last `depth` parts of each line."""
    names = ["/".join(line.split("/")[-depth:]) for _, line in read_lines("root", path)]
    if not names or any(name.count("/") != depth - 1 for name in names):
        raise UserError(
            f"root: {name_text(path)} needs lines of {depth} parts, such as {'a/' * (depth - 1)}b.png"
        )
    check_names("root", names, name_text(path))
    return names


def _noises(path: pathlib.Path) -> list[str]:
    """Names of a list of wrong images: `#` starts a remark, and what stands before a tab is a number."""
    return [line.split("\t")[-1] for _, line in read_lines("root", path) if not line.startswith("#")]
