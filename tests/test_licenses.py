"""NOTICE names the license of every package that jaxface asks for; `python tests/test_licenses.py` writes it again."""

import importlib.metadata
import pathlib
import re
from unittest import mock

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
_NAMES = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-2.0",
}
_HEAD = """jaxface
Copyright the jaxface developers

Licensed under the Apache License, Version 2.0 (LICENSE). No code of another project is part of it. The packages that it asks
for are installed by their own terms, which their metadata name as follows; weights and data have licenses of their own, which
`jaxface weights import` and the pages of the sets name where they are known. The libraries of the extra `cuda` come under
NVIDIA's terms.

"""


def metadata() -> dict:
    """The arguments of `setup` in setup.py."""
    with mock.patch("setuptools.setup") as setup:
        path = ROOT / "setup.py"
        exec(
            compile(path.read_text("utf-8"), str(path), "exec"), {"__file__": str(path), "__name__": "setup"}
        )
    return setup.call_args.kwargs


def license_of(package: str) -> str:
    """The license of an installed package, by what its metadata say, or its license file."""
    distribution = importlib.metadata.distribution(package)
    about = distribution.metadata
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [
        line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if "License ::" in line
    ]
    if named := [_NAMES[name] for name in classifiers if name in _NAMES]:
        return named[0]
    text = about.get("License") or ""
    for file in distribution.files or ():
        if re.search(r"dist-info/(licenses/)?LICENSE[^/]*$", str(file)):
            text += file.locate().read_text("utf-8", "replace")[:2000]
    if re.search(r"Apache(-| License|,? Version)\s*,?(Version )?\s*2?", text):
        return "Apache-2.0"
    if "FreeBSD" in text:
        return "BSD-2-Clause"
    assert re.search(r"\bMIT\b", text), f"{package}: say here what its license is"
    return "MIT"


def notice() -> str:
    """The text of NOTICE."""
    about = metadata()
    packages = {}
    for extra in (
        "",
        "data",
        "train",
        "sets",
        "interop",
        "inference",
        "gallery",
        "detection",
        "tracking",
        "docs",
        "notebooks",
    ):
        for line in about["extras_require"][extra] if extra else about["install_requires"]:
            packages.setdefault(canonicalize_name(Requirement(line).name), extra or "always")
    rows = [(name, license_of(name), extra) for name, extra in packages.items()]
    return _HEAD + "".join(f"{name:<24} {license:<52} {extra}\n" for name, license, extra in rows)


def test_the_notice_names_every_license():
    assert (ROOT / "NOTICE").read_text("utf-8") == notice(), "python tests/test_licenses.py writes it again"


def test_every_license_may_be_combined_with_ours():
    """None of them asks that what is built with the package is published under its own terms."""
    for line in notice().removeprefix(_HEAD).splitlines():
        assert not re.search(r"\bA?GPL", line), line


if __name__ == "__main__":
    (ROOT / "NOTICE").write_text(notice(), encoding="utf-8")
