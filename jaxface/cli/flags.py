"""Flags from dataclasses, through tyro, and data chosen by `--data KIND --data.FIELD …`."""

import contextlib
import dataclasses
import io
import re
from typing import Any

from jaxface.data.specs.base import KINDS, DataSpec
from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.registry import nearest

tyro = optional("tyro", "train")


def unset_data(kind: str) -> DataSpec:
    """Data of a kind with its defaults; what has none is to be given by a flag.

    Raises:
      UserError: no such kind.
    """
    spec = KINDS[kind]
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(spec)
        if field.default is field.default_factory is dataclasses.MISSING
    }
    return spec(**required)


def parse_data(kind: str, arguments: list[str], *, prog: str) -> DataSpec:
    """The data named by `--data KIND --data.FIELD …`."""

    @dataclasses.dataclass(frozen=True)
    class Flags:
        data: DataSpec

    return parse_flags(Flags, Flags(unset_data(kind)), arguments, prog=prog).data


def parse_flags(
    flags_class: type,
    default: Any,
    arguments: list[str],
    *,
    prog: str,
    description: str = "",
    nameless: tuple[str, ...] = (),
) -> Any:
    """`tyro.cli` whose refusals are one line.

    Args:
      flags_class: the dataclass. default: an instance.
      arguments: of the command line.
      prog, description: for `--help`.
      nameless: fields whose own fields are flags without their prefix.

    Raises:
      UserError: an unknown flag, a missing one, or a value of the wrong type.
      SystemExit: `--help` was asked for.
    """
    complaints = io.StringIO()
    try:
        # Help goes to stdout as it is; complaints go to stderr in a frame, of which the text is kept.
        with contextlib.redirect_stderr(complaints):
            flags, unknown = tyro.cli(
                flags_class,
                default=default,
                args=arguments,
                prog=prog,
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(_complaint(complaints.getvalue()) or "the arguments cannot be understood") from None
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise UserError(
            f"{flag}: no such option{nearest(flag, _flag_names(flags, nameless))}; --help lists all"
        )
    return flags


def _complaint(framed: str) -> str:
    """The sentence inside tyro's frame, which has a title above it and hints below.

    Tyro 1.0 has no public way to have it without the frame, so `setup.py` pins that version.
    """
    lines = [re.sub(r"[─│╭╮╰╯]|-{5,}", " ", line).strip() for line in framed.splitlines()]
    text = " ".join([line for line in lines if line][1:])
    return " ".join(re.split("Argument helptext:|For full helptext", text)[0].split())


def _flag_names(value: Any, nameless: tuple[str, ...], prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        name = prefix if not prefix and field.name in nameless else f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(inner):
            names += _flag_names(inner, nameless, f"{name}." if name else "")
        else:
            names.append(f"--{name}")
    return names
