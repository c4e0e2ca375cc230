"""What a command says: tables, and one line on a mistake of its user."""

import argparse
import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Mapping

from jaxface.errors import UserError


class Arguments(argparse.ArgumentParser):
    """An argument parser whose refusals are one line, as those of the rest of a program."""

    def error(self, message: str):
        raise UserError(message)


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
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(2) from None

    return wrapped


def show_metrics(metrics: Mapping[str, float], title: str) -> None:
    """A table of results on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user has set otherwise."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "jaxface"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
