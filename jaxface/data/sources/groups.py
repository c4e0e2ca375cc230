"""Sources whose records say which group of people they belong to: `group` in a record, `groups` and `group_names` of a source."""

import pathlib
from collections.abc import Mapping

import numpy as np

from jaxface.checks import integer_array
from jaxface.data.sources.folder import FolderSource
from jaxface.data.sources.images import Fit
from jaxface.data.sources.listing import subfolders, unreadable
from jaxface.data.sources.source import Record, Source
from jaxface.errors import UserError
from jaxface.paths import user_path


class JoinedGroups:
    """Several sources as the groups of one: group g holds the records of the g-th, whose people are nobody else's.

    Attributes:
      labels: [N] int32, numbered on from one source to the next.
      class_names: "<group>/<name>".
      groups: [N] int32. group_names: one per group.
      image_shape: (H, W, C), the same for all.
    """

    def __init__(self, sources: Mapping[str, Source]):
        """`sources`: name of the group -> its records.

        Raises:
          UserError: fewer than two groups, or images of different shapes.
        """
        self._sources = list(sources.values())
        self.group_names = list(sources)
        if len(self._sources) < 2:
            raise UserError(f"groups: needs at least two, got {len(self._sources)}")
        shapes = {source.image_shape for source in self._sources}
        if len(shapes) > 1:
            raise UserError(f"groups: need images of one shape, got {sorted(shapes)}")
        (self.image_shape,) = shapes
        people = [len(source.class_names) for source in self._sources]
        sizes = [len(source) for source in self._sources]
        first = np.cumsum([0, *people[:-1]])
        self._starts = np.cumsum([0, *sizes])
        self.labels = np.concatenate(
            [
                integer_array("labels", source.labels) + k
                for source, k in zip(self._sources, first, strict=True)
            ]
        ).astype(np.int32)
        self.groups = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.class_names = [
            f"{group}/{name}"
            for group, source in zip(self.group_names, self._sources, strict=True)
            for name in source.class_names
        ]

    @property
    def record_names(self) -> list[str]:
        """[N] names of the records, source after source; an AttributeError where one of them has none."""
        return [str(name) for source in self._sources for name in source.record_names]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a source of {len(self)}")
        group = self.groups[index]
        record = self._sources[group][index - int(self._starts[group])]
        return {**record, "label": self.labels[index], "group": group}


def group_folders(root: str | pathlib.Path, *, image_size: int, fit: Fit = "pad") -> dict[str, FolderSource]:
    """The sub-folders of `root`, each a folder of photographs of one group: <root>/<group>/<person>/<image>.

    Raises:
      UserError: no such folder, fewer than two sub-folders, or one that `FolderSource` refuses.
    """
    root = user_path("root", root)
    try:
        groups = {folder.name: folder.path for folder in subfolders(root)}
    except OSError as error:
        raise UserError(f"root: needs a folder of groups, {unreadable(error, root)}") from error
    if len(groups) < 2:
        raise UserError(f"root: needs {root}/<group>/<person>/<image> with two groups, got {len(groups)}")
    return {name: FolderSource(path, image_size=image_size, fit=fit) for name, path in groups.items()}
