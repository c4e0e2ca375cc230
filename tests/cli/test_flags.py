import dataclasses
import re
from typing import Literal

import pytest
import tyro

from jaxface.cli.flags import parse_flags
from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 3
    """How large it is, in pixels of the image that was read from the file that was named on the command line before."""


@dataclasses.dataclass(frozen=True)
class Flags:
    name: str
    """A name."""
    steps: int = 1
    """Steps."""
    span: tuple[float, float] = (0.0, 1.0)
    """Both ends."""
    kind: Literal["plain", "fancy"] = "plain"
    """Which."""
    inner: Inner = Inner()
    """More."""


def parse(*arguments):
    return parse_flags(Flags, Flags(tyro.MISSING), list(arguments), prog="prog")


def test_flags_make_the_dataclass():
    assert parse("--name", "x", "--inner.size", "4") == Flags("x", inner=Inner(4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--name", "x", "--steps", "many"), r"--steps: .*'many'"),
        (("--name", "x", "--inner.size", "3.5"), r"--inner\.size: .*'3\.5'"),
        (("--name", "x", "--kind", "odd"), r"odd.*--kind"),
        (("--name", "x", "--span", "1"), r"--span"),
        ((), r"--name"),
        (("--name", "x", "--stesp", "3"), r"^--stesp: no such option; did you mean '--steps'\?; --help lists all$"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_clean_sentence(arguments, words):
    """Read out of tyro's frame: a version that draws another one fails here."""
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    said = str(caught.value)
    assert re.search(words, said), said
    assert len(said) < 200 and "  " not in said and said == said.strip()
    assert not re.search(r"[\n─│╭╮╰╯]|-{3,}|helptext|Value error|Parsing error|How large", said), said
    assert said != "the arguments cannot be understood"
