"""Photographs with captions, as a table of paths and texts names them.

Methods: intern
"""

import numpy as np

from jaxface.data.sources.annotated import read_lines
from jaxface.data.sources.images import Fit
from jaxface.data.sources.listed_faces import check_names
from jaxface.data.sources.listed_images import Listed, ListedImages, need_some, told
from jaxface.data.sources.source import Record
from jaxface.data.transforms.text import caption_bytes
from jaxface.paths import local_path, name_text


class CaptionedFiles(ListedImages):
    """Photographs and their captions; records have `caption` besides, [C] uint8, that of the photograph that is shown.

    Attributes:
      captions: [N] strings. record_names: [N] names of files. labels: zeros, of one class.
    """

    _OF = "of the table"

    def __init__(self, listed: Listed, captions: list[str], *, image_size: int, fit: Fit = "crop"):
        super().__init__(listed, image_size=image_size, fit=fit)
        self.captions = captions

    def _read(self, index: int) -> Record:
        return {**super()._read(index), "caption": caption_bytes(self.captions[index])}


def captioned_files(
    root: str, table: str, *, held_out: float, image_size: int, seed: int, fit: Fit = "crop"
) -> tuple[CaptionedFiles, CaptionedFiles]:
    """Both parts of a table of "path<TAB>caption" lines in UTF-8, divided at random by file.

    Raises:
      UserError: a table that cannot be read or names less than two photographs, or a path that leaves the folder.
    """
    folder = local_path("root", root)
    path = folder / table
    names, captions, skipped = [], [], 0
    for _, line in read_lines("table", path):
        name, _, caption = (part.strip() for part in line.partition("\t"))
        if name and caption:
            names.append(name)
            captions.append(caption)
        else:
            skipped += 1
    files = list(dict.fromkeys(names))  # the captions of one photograph stay together
    need_some(files[1:], "two photographs, each with a path, a tab and a caption,", path)
    check_names("table", names, name_text(path))
    order = np.random.default_rng([seed, 20]).permutation(len(files))
    count = min(max(round(held_out * len(files)), 1), len(files) - 1)
    chosen = {files[i] for i in order[:count]}
    parts = []
    for wanted in (False, True):
        rows = [i for i, name in enumerate(names) if (name in chosen) == wanted]
        listed = Listed(
            folder, [names[i] for i in rows], [0] * len(rows), ["image"], skipped=0 if wanted else skipped
        )
        made = told(listed, path) if not wanted else listed
        parts.append(CaptionedFiles(made, [captions[i] for i in rows], image_size=image_size, fit=fit))
    return parts[0], parts[1]
