"""The console script: what it says, and what it says it without."""

import os
import subprocess
import sys

import pytest

import jaxface
from jaxface.cli import main as cli
from jaxface.cli.commands import where as where_command
from jaxface.cli.commands.where import methods_line, root, slugs, where


def test_help_lists_every_command_with_a_line(capsys):
    cli.main(["--help"])
    shown = capsys.readouterr().out
    width = max(map(len, cli.commands()))
    for name, line in cli.commands().items():
        assert f"  {name:<{width}}  {line}" in shown and len(line.split()) > 3
    assert {"detect", "where"} <= cli.commands().keys()


def test_every_method_is_listed_with_a_line(capsys):
    cli.main(["--list"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(slugs())
    assert all(len(line.split()) > 3 for line in lines)


def test_without_the_experiments_methods_are_what_modules_say(monkeypatch, tmp_path, capsys):
    for name, text in (
        ("losses/ida.py", "Discrepancy, aligned."),
        ("metrics/far.py", "Far.\n\nMethods: ida"),
    ):
        path = tmp_path / "jaxface" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""{text}"""\n')
    for function in (where_command.root, where_command._modules):
        function.cache_clear()
    monkeypatch.setattr(where_command.jaxface, "__file__", str(tmp_path / "jaxface" / "__init__.py"))
    try:
        cli.main(["--list"])
    finally:
        for function in (where_command.root, where_command._modules):
            function.cache_clear()
    assert capsys.readouterr().out.splitlines()[2:] == ["  ida  Discrepancy, aligned."]


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


ANSWERS = [
    ["jaxface.cli.main", "--help"],
    ["jaxface.cli.main", "--list"],
    ["jaxface.cli.main", "where", "ida"],
    *(["jaxface.cli.main", name, "--help"] for name in cli.commands()),
    ["experiments.launch", "--list"],
]


def test_answers_come_without_jax():
    code = (
        "import contextlib, io, runpy, sys\n"
        f"for command in {ANSWERS!r}:\n"
        "    sys.argv, said = command, io.StringIO()\n"
        "    with contextlib.redirect_stdout(said):\n"
        "        try:\n"
        "            runpy.run_module(command[0], run_name='__main__')\n"
        "        except SystemExit as asked:\n"
        "            assert not asked.code, command\n"
        "    assert said.getvalue().count('\\n') > 2, command\n"
        "    heavy = {'jax', 'numpy', 'cv2', 'PIL', 'tyro', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, (command, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=root(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("answer", ["--help", "--list"])
def test_answers_come_within_a_second(answer):
    """In time of the processor, whatever else it does."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "jaxface.cli.main", answer], cwd=root(), check=True, capture_output=True
    )
    after = os.times()
    seconds = sum(
        getattr(after, part) - getattr(before, part) for part in ("children_user", "children_system")
    )
    assert seconds < 1


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
        ("Distances.\n\nMethods: lrfr,\ncckd\n", ("lrfr", "cckd")),
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
