"""Tables that fill themselves: a thing is registered where it is defined, and no list elsewhere knows its name."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping

from jaxface.errors import UserError

_MOST_LISTED = 50  # names in an error; of more, the nearest is told where there is one


def nearest(word: str, names) -> str:
    """`; did you mean 'x'?` for the name most like `word`, or nothing."""
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


class Registry[T]:
    """Names of things of one kind, each registered by the module that defines it.

    The modules of `package` are imported when a name is first asked for; what is defined elsewhere, such as in a
    user's program, is registered as soon as its module is imported.

    Args:
      argument: what the names are called in an error, such as "model".
      package: dotted name of the package whose modules register.
    """

    def __init__(self, argument: str, package: str):
        self._argument, self._package = argument, package
        self._entries: dict[str, T] = {}
        self._names: dict[int, str] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files what it decorates under `name`.

        Raises:
          ValueError: another thing has that name.
        """

        def file(entry: T) -> T:
            self.update({name: entry})
            return entry

        return file

    def update(self, entries: Mapping[str, T]) -> None:
        """Registers several at once: a table beside their definition.

        Raises:
          ValueError: another thing has one of the names.
        """
        for name, entry in entries.items():
            if name in self._entries:
                raise ValueError(f"{self._argument} {name!r} is registered twice")
            self._entries[name] = entry
            self._names[id(entry)] = name

    def names(self) -> tuple[str, ...]:
        """Every name, in the order of the modules and of each module."""
        self._import()
        return tuple(self._entries)

    def name_of(self, entry: T) -> str:
        """The name of what is registered."""
        self._import()
        return self._names[id(entry)]

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> T:
        """What is registered under `name`.

        Raises:
          UserError: nothing is; names the nearest.
        """
        names = self.names()
        if name not in names:
            near = nearest(name, names)
            listed = ", ".join(names)
            if near and len(names) > _MOST_LISTED:
                listed = f"{len(names)} known names"
            raise UserError(f"{self._argument}: needs one of {listed}, got {name!r}{near}")
        return self._entries[name]

    def _import(self) -> None:
        if not self._complete:
            package = importlib.import_module(self._package)
            for module in sorted(
                info.name for info in pkgutil.walk_packages(package.__path__, f"{self._package}.")
            ):
                importlib.import_module(module)
            self._complete = True
