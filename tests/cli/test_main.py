"""The console script: what it says, and what it says it without."""

import subprocess
import sys

import pytest

import jaxface
from jaxface.cli import main as cli
from jaxface.cli.commands.where import methods_line, root, slugs, where


def test_help_lists_every_command_with_a_line(capsys):
    cli.main(["--help"])
    shown = capsys.readouterr().out
    width = max(map(len, cli.commands()))
    for name, line in cli.commands().items():
        assert f"  {name:<{width}}  {line}" in shown and len(line.split()) > 3
    assert {"detect", "where"} <= cli.commands().keys()


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxface {jaxface.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["wehre"], f"command: needs one of {', '.join(cli.commands())}, got 'wehre'; did you mean 'where'?"),
        (["where"], "required: slug"),
        (["where", "sfce"], "got 'sfce'; did you mean 'sface'?"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1 and words in said


@pytest.mark.parametrize(
    "command",
    [
        ["jaxface.cli.main", "--help"],
        ["jaxface.cli.main", "where", "ida"],
        ["jaxface.cli.main", "detect", "--help"],
        ["experiments.launch", "--list"],
    ],
)
def test_answers_come_without_jax(command):
    code = (
        "import runpy, sys\n"
        f"sys.argv = {command!r}\n"
        "try:\n"
        "    runpy.run_module(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as asked:\n"
        "    assert not asked.code\n"
        "assert 'jax' not in sys.modules, sorted(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 2


def test_where_a_method_lives(capsys):
    cli.main(["where", "ida"])
    shown = capsys.readouterr().out.split("\n\n")
    alone, shared = (part.split() for part in (shown[0], shown[1].removeprefix("shared:")))
    assert {
        "jaxface/losses/ida.py",
        "experiments/methods/ida.py",
        "experiments/studies/ida.py",
        "tests/experiments/methods/test_ida.py",
        "docs/methods/ida.md",
        "docs/studies/ida/crowded.json",
    } <= set(alone)
    assert "jaxface/metrics/analysis/discrepancy.py" in shared
    assert "experiments/methods/ida.py" not in shared


def test_a_line_of_methods_is_the_last_of_a_docstring(tmp_path):
    cases = [
        ("Distances.\n\nMethods: lrfr, cckd\n", ("lrfr", "cckd")),
        ("Distances.\n\nMethods: lrfr.", ("lrfr",)),
        ("Methods: lrfr\n\nDistances.", None),
        ("Distances.", None),
    ]
    for number, (docstring, slugs_of_it) in enumerate(cases):
        module = tmp_path / f"module{number}.py"
        module.write_text(f'"""{docstring}"""\n')
        assert methods_line(module) == slugs_of_it


def test_every_method_has_its_files():
    assert len(slugs()) >= 9
    for slug in slugs():
        alone, _ = where(slug)
        paths = [path.as_posix() for path in alone]
        for path in (
            f"experiments/methods/{slug}.py",
            f"experiments/studies/{slug}.py",
            f"tests/experiments/methods/test_{slug}.py",
            f"docs/methods/{slug}.md",
        ):
            assert path in paths, f"{slug} has no {path}"
