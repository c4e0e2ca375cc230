import dataclasses
import json
import re
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import configs, launch, methods
from experiments.methods import sface
from jaxface import data, training
from jaxface.cli import flags
from jaxface.errors import UserError

KINDS = {name: data.KINDS[name] for name in data.KINDS.names()}
EXAMPLES = [
    data.RenderedFaces(identities=8, variation=data.Variation(yaw=5.0, ambient=(0.2, 0.3))),
    data.Folder(root="photographs", swap=True, fit="crop"),
    data.RgbdFolder(root="photographs"),
    data.Tfds(name="faces", data_dir="there"),
    data.RecordIO(path="ms1mv3", verification="lfw.bin"),
    data.Bin(path="lfw.bin"),
    data.Olivetti(held_out=0.25),
    data.Lfw(min_faces=3),
    data.LfwPatches(held_out=0.2),
    data.Scenes(scenes=7, variation=data.SceneVariation(faces=(1, 3))),
    data.WiderFace(root="wider", max_objects=9, aspects=(1.0, 0.5)),
    data.Fddb(root="fddb", held_out_folds=(1, 2)),
    data.Coco(annotations="instances.json", categories=("person",)),
    data.Voc(root="VOC2007"),
    data.Procedural(identities=7),
    data.ProceduralImages(identities=7),
    data.TonedFaces(identities=(7, 3)),
    data.GroupFolders(root="photographs"),
    data.Crowd(identities=7),
    data.EmbeddingFile(embeddings="faces.npz"),
    data.Ellipses(images=7),
]  # some of them with other fields than the defaults


def required(kind):
    """Fields without a default: paths."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is missing]


UNSET = [kind(**dict.fromkeys(required(kind), "x")) for kind in KINDS.values()]
DATA = [*EXAMPLES, *(spec for spec in UNSET if type(spec) not in map(type, EXAMPLES))]
PRESETS = [sface.Config, *(getattr(sface.Config, name) for name in configs.presets(sface.Config))]


def written(config, run=None):
    return json.loads(json.dumps(configs.to_dict("sface", config, run or configs.Run())))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("spec", [None, *DATA], ids=lambda s: type(s).__name__)
def test_a_config_is_read_back_as_it_was(preset, spec):
    config = preset() if spec is None else dataclasses.replace(preset(), data=spec)
    assert configs.from_dict(written(config)) == ("sface", config, configs.Run())


real = st.floats(allow_nan=False, allow_infinity=False)
CONFIGS = st.builds(
    sface.Config,
    data=st.sampled_from(DATA),
    loss=st.sampled_from(["sface", "softmax", "cosface", "arcface"]),
    scale=real | st.integers(0, 99).map(float),
    bfloat16=st.booleans(),
    steps=st.integers(),
    ema_decay=st.none() | real,
    init_from=st.none() | st.text(),
    optimizer=st.builds(
        training.Optimizer,
        name=st.sampled_from(["sgd", "adam", "adamw"]),
        rates=st.lists(st.text(), max_size=2).map(tuple),
        decay_at=st.lists(real, max_size=4).map(tuple),
        clip_norm=st.none() | real,
    ),
)


@settings(max_examples=40, deadline=None)
@given(config=CONFIGS, every=st.integers(), shards=st.integers())
def test_any_values_are_read_back_as_they_were(config, every, shards):
    run = configs.Run(model_shards=shards, cadence=training.Cadence(log_every=every), parallel="pmap")
    assert configs.from_dict(written(config, run)) == ("sface", config, run)


def test_the_folder_and_the_bar_are_no_part_of_a_configuration():
    run = configs.Run(workdir="somewhere", shard="fsdp", quiet=True)
    assert written(sface.Config(), run) == written(sface.Config())


def changed(tree, path, value):
    """A copy of nested dictionaries with `value` at `a.b.c`."""
    head, _, rest = path.partition(".")
    return {**tree, head: changed(tree[head], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("config.shininess", 3, "shininess"),
        ("config.optimizer.speed", 3, "speed"),
        ("run.where", "there", "where"),
        ("config.steps", "many", "steps"),
        ("config.steps", "100", "steps"),
        ("config.steps", 3.7, "expected int @ $.steps"),
        ("config.steps", True, "steps"),
        ("config.bfloat16", "no", "bfloat16"),
        ("config.scale", "64", "scale"),
        ("config.backbone", 18, "backbone"),
        ("config.unsampled", "leave", "unsampled"),
        ("config.optimizer", None, "optimizer"),
        ("config.optimizer.decay_at", [0.5, "later"], "decay_at"),
        ("config.ema_decay", [1], "ema_decay"),
        ("config.augment.flip", 7, "flip"),
        ("config.data", {"kind": "Passports"}, "Passports"),
        ("config.data", {"identities": 3}, "data"),
        ("config.data", 5, "data"),
        ("config.data.identities", "x", "identities"),
        ("run.cadence.log_every", 0.5, "log_every"),
        ("run.parallel", "threads", "parallel"),
        ("config", [], "config"),
        ("method", "sfce", "did you mean 'sface'"),
    ],
)
def test_a_written_config_that_is_wrong(path, value, words):
    with pytest.raises(UserError) as caught:
        configs.from_dict(changed(written(sface.Config()), path, value))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_that_is_no_object():
    for whole in ([1, 2], {"method": "sface", "config": 3}, None):
        with pytest.raises(UserError, match="needs an object"):
            configs.from_dict(whole)


def test_an_integer_stands_for_a_float():
    config = configs.from_dict(changed(written(sface.Config()), "config.scale", 32))[1]
    assert config.scale == 32.0 and isinstance(config.scale, float)


def test_config_of_a_run_by_folder_or_by_file(tmp_path, refusal):
    config = dataclasses.replace(sface.Config.digits(), steps=7, loss="arcface")
    run = configs.Run(cadence=training.Cadence(keep=5))
    training.open_workdir(tmp_path / "run", configs.to_dict("sface", config, run))
    copy = tmp_path / "kept.json"
    copy.write_text((tmp_path / "run/config.json").read_text())
    (tmp_path / "config.json").write_text("{}")  # beside the copy, and not what was asked for
    for where in (tmp_path / "run", tmp_path / "run/config.json", copy):
        assert configs.parse("sface", ["--config", str(where)]) == (config, run)
    again, _ = configs.parse("sface", ["--config", str(tmp_path / "run"), "--steps", "9"])
    assert again == dataclasses.replace(config, steps=9)
    copy.write_text("{")
    assert "cannot be read as JSON" in refusal(launch.main, ["sface", "--config", copy])
    copy.write_text('{"method": "launch"}')
    assert "method: 'launch' is unknown" in refusal(launch.main, ["sface", "--config", copy])
    assert "holds no config.json" in refusal(launch.main, ["sface", "--config", tmp_path / "nothing.json"])


def test_presets_and_kinds_of_data():
    assert configs.presets(sface.Config) == ["paper", "photographs", "digits"]
    assert configs.parse("sface", []) == (sface.Config(), configs.Run())
    assert configs.parse("sface", ["--preset", "paper"])[0] == sface.Config.paper()
    config = configs.parse(
        "sface", ["--preset=digits", "--data=folder", "--data.root", "here", "--seed", "3"]
    )[0]
    assert config == dataclasses.replace(sface.Config.digits(), data=data.Folder(root="here"), seed=3)
    for name, kind in KINDS.items():
        paths = [text for field in required(kind) for text in (f"--data.{field}", "x")]
        assert type(configs.parse("sface", ["--data", name, *paths])[0].data) is kind
    assert flags.parse_data("folder", ["--data.root", "x"], prog="p") == data.Folder(root="x")


def leaves(value, prefix=""):
    """(flag without dashes, type, value) of every field."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{name}.")
        else:
            yield name, hints[field.name], inner


def another(hint, value):
    """A value of the same type that differs, small enough for every check."""
    if typing.get_origin(hint) is types.UnionType:
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
        value = hint(0.5) if value is None and hint in (int, float) else value
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if typing.get_origin(hint) is tuple:
        value = [kind(0) for kind in typing.get_args(hint)] if value is None else value
        return tuple(another(type(item), item) for item in value)
    return {
        bool: lambda: not value,
        int: lambda: value + 1,
        float: lambda: value / 2 + 0.01,
        str: lambda: f"{value}-b",
    }[hint]()


def at(value, path):
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("spec", DATA, ids=lambda s: type(s).__name__)
def test_every_field_has_a_flag(spec):
    kind = data.KINDS.name_of(type(spec))
    flags, expected = ["--data", kind], {}
    start = dataclasses.replace(sface.Config(), data=type(spec)(**dict.fromkeys(required(type(spec)), "x")))
    for base, part in enumerate((start, configs.Run())):
        for path, hint, value in leaves(part):
            expected[base, path] = wanted = another(hint, value)
            flag = path.replace("_", "-")
            if isinstance(wanted, bool):
                parent, _, name = flag.rpartition(".")
                flags.append(f"--{flag}" if wanted else f"--{parent}{'.' if parent else ''}no-{name}")
            else:
                flags += [f"--{flag}", *map(str, wanted if isinstance(wanted, tuple) else [wanted])]
    parts = configs.parse("sface", flags)
    assert {(base, path): at(parts[base], path) for base, path in expected} == expected
    assert len(expected) > 40


@pytest.mark.parametrize("spec", DATA, ids=lambda s: type(s).__name__)
def test_help_names_and_documents_every_field(spec, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    kind = data.KINDS.name_of(type(spec))
    with pytest.raises(SystemExit) as caught:
        launch.main(["sface", "--data", kind, "--help"])
    assert caught.value.code == 0
    lines = [line.strip("│|─ ") for line in capsys.readouterr().out.splitlines()]
    shown = next(line for line in lines if line.startswith("--data {"))
    assert set(re.findall(r"\w+", shown.partition("{")[2])) & set(data.KINDS.names())
    # "--flag KIND explanation (default: …)", up to the next flag
    rows = re.findall(r"(?m)^--(\S+?),? (.*(?:\n(?!--).*)*)", "\n".join(lines))
    help_of = {
        flag: re.sub(r"(?s)\(default:.*?\)|[A-Z{][A-Z{}|a-z,]*(?= |$)", "", text) for flag, text in rows
    }
    for part in (dataclasses.replace(sface.Config(), data=spec), configs.Run()):
        for path, *_ in leaves(part):
            text = help_of[path.replace("_", "-")]
            assert len(re.findall("[a-z]+", text)) >= 1, (path, text)


def test_methods_are_listed_without_being_imported():
    known = methods.descriptions()
    assert known["sface"] == sface.__doc__.splitlines()[0]
    assert not {"launch", "configs", "evaluate", "reproduce", "real_faces", "__init__"} & set(known)
    assert configs.method_module("sface") is sface
