"""What a command says: tables, and one line on a mistake of its user."""

import argparse
import contextlib
import functools
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.paths import local_path, name_text

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Arguments(argparse.ArgumentParser):
    """An argument parser whose refusals are one line, as those of the rest of a program."""

    def error(self, message: str):
        raise UserError(message)


def command_parser(name: str, description: str | None) -> Arguments:
    """The parser of `jaxface NAME`, whose help is the docstring of its module as it stands."""
    return Arguments(
        prog=f"jaxface {name}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def one_line(text: object) -> str:
    """Text for the terminal, which may have names of files in it: what would break the line, move the cursor or be no
    Unicode becomes visible."""
    return _CONTROL.sub(lambda letter: ascii(letter[0])[1:-1], name_text(str(text)))


def say(text: object) -> None:
    """Writes a line on what was done to the terminal."""
    sys.stdout.write(f"{one_line(text)}\n")


def exit_on_user_error(main):
    """Lets a program end with one line and status 2 on a mistake of its user."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        # orbax and grain say much through absl that is no news to a user; what we have to say goes through our own logger.
        with contextlib.suppress(ImportError):
            import absl.logging

            absl.logging.set_verbosity(absl.logging.ERROR)
        try:
            return main(*args, **kwargs)
        except UserError as error:
            sys.stderr.write(f"error: {one_line(error)}\n")
            raise SystemExit(2) from None

    return wrapped


def show_metrics(metrics: Mapping[str, float], title: str) -> None:
    """A table of results on the terminal."""
    show_table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in metrics.items()], title)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """A table on the terminal, names in the first column and numbers in the others."""
    table = optional("rich.table", "train").Table(title=one_line(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(one_line(column), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(one_line, row))
    optional("rich.console", "train").Console().print(table)


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user has set otherwise."""
    import jax

    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        if given.startswith("~"):  # JAX would make a folder of that name
            cache = local_path("JAX_COMPILATION_CACHE_DIR", given)
            jax.config.update("jax_compilation_cache_dir", str(cache))
        return
    # As the specification of XDG has it, an empty or relative path is as none. Without a home there is no cache.
    for given in (os.environ.get("XDG_CACHE_HOME", ""), "~/.cache"):
        cache = pathlib.Path(os.path.expanduser(given)) / "jaxface"
        if cache.is_absolute():
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
            return
