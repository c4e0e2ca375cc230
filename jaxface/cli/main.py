"""The console script: `jaxface COMMAND …`. Its help, and whatever a command can say without computing, comes without JAX."""

import ast
import importlib
import pathlib
import sys

import jaxface
from jaxface.cli.commands.where import descriptions
from jaxface.cli.console import exit_on_user_error
from jaxface.errors import UserError
from jaxface.registry import nearest

_COMMANDS = pathlib.Path(__file__).parent / "commands"


def commands() -> dict[str, str]:
    """Every command and the first line of its description, without importing any."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        for path in sorted(_COMMANDS.glob("*.py"))
        if path.stem != "__init__"
    }


def _table(descriptions: dict[str, str]) -> list[str]:
    width = max(map(len, descriptions))
    return [f"  {name:<{width}}  {line}".rstrip() for name, line in descriptions.items()]


def _usage() -> str:
    return "\n".join(
        [
            "usage: jaxface COMMAND [--help | arguments]",
            "",
            *_table(commands()),
            "",
            "jaxface --list lists the methods, jaxface --version prints the version.",
        ]
    )


def _methods() -> str:
    return "\n".join(
        [
            "methods; python -m experiments.launch METHOD trains one, jaxface where METHOD tells its files:",
            "",
            *_table(descriptions()),
        ]
    )


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage() + "\n")
        return
    if arguments[0] == "--list":
        sys.stdout.write(_methods() + "\n")
        return
    if arguments[0] == "--version":
        sys.stdout.write(f"jaxface {jaxface.__version__}\n")
        return
    name = arguments[0]
    if name not in commands():
        raise UserError(
            f"command: needs one of {', '.join(commands())}, got {name!r}{nearest(name, commands())}"
        )
    importlib.import_module(f"jaxface.cli.commands.{name}").main(arguments[1:])


if __name__ == "__main__":
    main()
