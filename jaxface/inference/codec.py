"""Codecs of pictures from wherever they are: a run's work directory, or the file of one."""

import contextlib
import dataclasses
import pathlib
from typing import Any

from jaxface.errors import UserError
from jaxface.models.compression import Codec, CodecSpec, codec_bytes, make_codec, read_codec
from jaxface.models.compression.networks import from_description
from jaxface.models.compression.video import VideoSpec, video_from_description
from jaxface.models.compression.video_codec import VideoCodec, make_video_codec
from jaxface.paths import local_path, reaching
from jaxface.training import restore_params, write_atomically
from jaxface.training.workdir import read_descriptions

CODEC = "codec-{weight}.safetensors"
"""File in the work directory of a run, written when its codec is first opened: its tables are made once."""


def codec_description(spec: CodecSpec, weight: float, *, origin: str | None = None) -> dict[str, Any]:
    """What a run's stage says of the codec that it trained."""
    return {
        "format": 1,
        "kind": "codec",
        "network": dataclasses.asdict(spec),
        "weight": weight,
        "origin": origin,
    }


def video_description(
    spec: VideoSpec, intra: CodecSpec, weight: float, *, origin: str | None = None
) -> dict[str, Any]:
    """What a run's stage says of the video codec that it trained."""
    return {
        "format": 1,
        "kind": "video codec",
        "network": dataclasses.asdict(spec),
        "intra": dataclasses.asdict(intra),
        "weight": weight,
        "origin": origin,
    }


def open_codec(path: str | pathlib.Path, *, weight: float | None = None) -> Codec:
    """A trained codec.

    Args:
      path: the work directory of a run, or a file that `save_codec` wrote.
      weight: λ of the codec, where the run trained several; the last one unless given.

    Returns:
      The codec. That of a run is written beside its checkpoints the first time, and read from there from then on, so that its
      tables are made once.

    Raises:
      UserError: neither of them, another λ, or a damaged one.
    """
    place = local_path("run", path)
    with reaching(place):
        if place.is_file():
            codec = read_codec(place)
            if weight is not None and codec.weight != weight:
                raise UserError(
                    f"weight: the codec of {place} was trained with {codec.weight:g}, not {weight:g}"
                )
            return codec
    folders = _trained(place)
    if not folders:
        raise UserError(f"run: {place} holds no run of a codec, and is no file of one")
    by_weight = {described["weight"]: (folder, described) for folder, described in folders}
    if weight is not None and weight not in by_weight:
        raise UserError(
            f"weight: {place} has codecs of {', '.join(f'{w:g}' for w in by_weight)}, not {weight:g}"
        )
    folder, described = by_weight[weight] if weight is not None else folders[-1]
    file = place / CODEC.format(weight=f"{described['weight']:g}")
    if file.is_file():
        return read_codec(file)
    params = restore_params(folder)["params"]
    if "codec" not in params:
        raise UserError(f"run: the checkpoint in {folder} has no codec, only {sorted(params)}")
    codec = make_codec(from_description(described["network"]), params["codec"], described["weight"])
    with contextlib.suppress(UserError):  # a run that is only read has its tables made again
        save_codec(file, codec)
    return codec


def codec_weights(path: str | pathlib.Path) -> list[float]:
    """λ of every codec of a run, in the order of their training; of a file its own."""
    place = local_path("run", path)
    if place.is_file():
        return [read_codec(place).weight]
    return [described["weight"] for _, described in _trained(place)]


def open_video_codec(path: str | pathlib.Path) -> VideoCodec:
    """The video codec of a run.

    Its tables are made of the run's weights; a file that was written with others is refused by its checksum.

    Raises:
      UserError: no run of a video codec.
    """
    place = local_path("run", path)
    folders = _trained(place, "video codec")
    if not folders:
        raise UserError(f"run: {place} holds no run of a video codec; edic trains one with --preset video")
    folder, described = folders[-1]
    saved = restore_params(folder)
    if "video" not in saved["params"] or "codec" not in saved["extra"]:
        raise UserError(f"run: the checkpoint in {folder} has no video codec, only {sorted(saved['params'])}")
    intra = make_codec(from_description(described.get("intra")), saved["extra"]["codec"], described["weight"])
    return make_video_codec(video_from_description(described.get("network")), saved["params"]["video"], intra)


def _trained(run: pathlib.Path, kind: str = "codec") -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """(folder of checkpoints, description) of every stage that trained a codec of a kind."""
    return [
        (folder, described)
        for folder, described in read_descriptions(run)
        if described.get("kind") == kind and folder.is_dir() and any(folder.iterdir())
    ]


def save_codec(path: str | pathlib.Path, codec: Codec) -> None:
    """Writes a codec to one file, whole or not at all: network, weights and tables.

    Raises:
      UserError: it cannot be written.
    """
    place = local_path("out", path)
    try:
        write_atomically(place, codec_bytes(codec))
    except OSError as error:
        raise UserError(f"out: cannot write {place}: {error.strerror or error}") from None
