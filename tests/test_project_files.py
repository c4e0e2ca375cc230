"""Files about the project: each is well-formed, and says what the package says."""

import datetime
import pathlib
import re
import subprocess

import pytest
import yaml

import jaxface

ROOT = pathlib.Path(__file__).parents[1]
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "SHELL", "STOPSIGNAL",
    "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) of every instruction, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(*line.split(" ", 1),) for line in lines if line.strip()]


def test_the_dockerfile_is_well_formed_and_its_files_exist():
    steps = dockerfile()
    assert (
        {step[0] for step in steps} <= INSTRUCTIONS
        and steps[0][0] == "FROM"
        and all(len(s) == 2 for s in steps)
    )
    assert re.fullmatch(r"python:3\.12[\w.-]*", steps[0][1])  # the version that the project asks for
    assert (ROOT / ".python-version").read_text().strip() == "3.12"
    for step, arguments in steps:
        if step == "COPY":
            *sources, target = arguments.split()
            missing = [source for source in sources if not (ROOT / source).exists()]
            assert not missing and (len(sources) == 1 or target.endswith("/"))
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = {source for step, arguments in steps if step == "COPY" for source in arguments.split()[:-1]}
    assert not copied & set(ignored)
    for step, arguments in steps:
        if step == "RUN":
            subprocess.run(["sh", "-n", "-c", arguments], check=True, timeout=10)


def test_extras_that_the_files_name_exist():
    known = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text("utf-8"), re.MULTILINE))
    texts = [ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for path in texts:
        for names in re.findall(r"(?:jaxface|'\.)\[([\w,]+)\]", path.read_text("utf-8")):
            assert set(names.split(",")) <= known, f"{path.name}: {names}"


def test_the_changelog_keeps_its_form():
    """Keep a Changelog 1.1.0: versions from the newest, dates, the six kinds of changes, no empty section."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert text.startswith("# Changelog\n") and "keepachangelog.com/en/1.1.0" in text and "semver.org" in text
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]" and len(set(versions)) == len(versions)
    released = []
    for version in versions[1:]:
        number, date = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", version).groups()
        released.append((datetime.date.fromisoformat(date), tuple(map(int, number.split(".")))))
    assert released == sorted(released, reverse=True)
    kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert headings and set(headings) <= set(kinds) and len(set(headings)) == len(headings)
        parts = re.split(r"^### .+$", section, flags=re.MULTILINE)[1:]
        assert all(re.match(r"\n\n- ", part) for part in parts)


def test_the_citation_is_valid():
    """The fields of the Citation File Format 1.2.0 that it has, by their types."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    known = {
        "abstract", "authors", "cff-version", "date-released", "doi", "identifiers", "keywords", "license", "message",
        "repository-code", "title", "type", "url", "version",
    }  # fmt: skip
    assert {"authors", "cff-version", "message", "title"} <= citation.keys() <= known
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == jaxface.__version__ and citation["license"] == "Apache-2.0"
    assert all(author.keys() & {"name", "family-names"} for author in citation["authors"])
    assert len(set(citation["keywords"])) == len(citation["keywords"])
    assert f'_HOME = "{citation["repository-code"]}"' in (ROOT / "setup.py").read_text("utf-8")


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert form.keys() == {"name", "description", "labels", "body"} and form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) >= 2
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown") and field["attributes"]["label"]
        assert set(field) <= {"type", "id", "attributes", "validations"}


def test_constraints_pin_what_is_installed():
    """Every package once, and the extras' packages among them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines) == len({name.lower().replace("_", "-") for name in pins})
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())


def test_the_version_is_one():
    setup = (ROOT / "setup.py").read_text("utf-8")
    assert re.search(r'version="([^"]+)"', setup)[1] == jaxface.__version__
