"""What goes to the terminal, and where compiled programs go."""

import jax
import pytest

from jaxface.cli import console
from jaxface.errors import UserError


def test_names_of_files_cannot_break_a_line_or_speak_to_the_terminal(capsys):
    @console.exit_on_user_error
    def main():
        raise UserError("root: nothing in a\nb\r\x1b[2J\u2028 \udce9")

    with pytest.raises(SystemExit):
        main()
    shown = r"root: nothing in a\nb\r\x1b[2J\u2028 \xe9"
    assert capsys.readouterr().err == f"error: {shown}\n"
    console.say("Zoë नमस्ते\udcff")
    console.show_metrics({"tar@gr\udcfcn": 0.5}, "run \udce9")
    said = capsys.readouterr().out
    assert said.startswith("Zoë नमस्ते\\xff\n") and r"run \xe9" in said and r"tar@gr\xfcn" in said


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """`cache(**environment)`: the folder that is chosen, a home being there."""
    chosen = {}
    monkeypatch.setattr(jax.config, "update", chosen.__setitem__)

    def choose(**environment):
        chosen.clear()
        for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"HOME": str(tmp_path)} | environment).items():
            monkeypatch.setenv(name, value)
        console.use_compilation_cache()
        return chosen.get("jax_compilation_cache_dir")

    return choose


def test_compiled_programs_go_where_the_environment_says(cache, tmp_path):
    default = str(tmp_path / ".cache" / "jaxface")
    assert cache() == default
    assert cache(XDG_CACHE_HOME="/var/cache") == "/var/cache/jaxface"
    assert cache(XDG_CACHE_HOME="~/programs") == str(tmp_path / "programs" / "jaxface")
    # Neither is a folder below the current one.
    assert cache(XDG_CACHE_HOME="") == cache(XDG_CACHE_HOME="cache") == default
    assert cache(JAX_COMPILATION_CACHE_DIR="") == default
    assert cache(JAX_COMPILATION_CACHE_DIR="~/jax") == str(tmp_path / "jax")
    for given in ("/var/jax", "gs://bucket/jax"):  # JAX reads it itself
        assert cache(JAX_COMPILATION_CACHE_DIR=given) is None


def test_without_a_home_nothing_is_cached(cache, monkeypatch):
    monkeypatch.setattr(console.os.path, "expanduser", lambda path: path)
    assert cache() is None
