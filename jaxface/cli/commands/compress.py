"""Encodes a picture with a trained codec, and decodes it again.

    jaxface compress encode IN.png OUT.edic --run RUN      the picture as bytes
    jaxface compress decode IN.edic OUT.png --run RUN      the picture that they are of
    jaxface compress info IN.edic                          what a file says of itself

RUN is the work directory of a run of edic, or the file of a codec, such as codec-512.safetensors in that directory. Pictures have
8 bits a channel, RGB or gray; their sides may be of any length from the network's stride. Only the codec that wrote a file
decodes it, on any machine.
"""

import pathlib
import sys

from jaxface.cli.console import command_parser, exit_on_user_error, say, use_compilation_cache
from jaxface.errors import UserError
from jaxface.paths import local_path

_ACTIONS = ("encode", "decode", "info")
_LARGEST_FILE = 1 << 28  # bytes


def _arguments(arguments: list[str]):
    parser = command_parser("compress", __doc__)
    parser.add_argument("action", choices=_ACTIONS, help="what to do")
    parser.add_argument("source", metavar="IN", help="picture to encode, or file to decode")
    parser.add_argument("out", metavar="OUT", nargs="?", help="file to write; a picture is a .png")
    parser.add_argument(
        "--run", metavar="RUN", help="work directory of a run of edic, or the file of a codec"
    )
    parser.add_argument(
        "--weight", type=float, metavar="LAMBDA", help="of the codecs of a run that of this λ, not the last"
    )
    options = parser.parse_args(arguments)
    if options.action == "info":
        if options.out is not None or options.run is not None:
            raise UserError("info: needs a file alone")
        return options
    if options.out is None:
        raise UserError(f"out: {options.action} needs a file to write")
    if options.run is None:
        raise UserError(f"run: {options.action} needs --run RUN, the codec")
    if options.action == "decode" and not options.out.endswith(".png"):
        raise UserError(f"out: needs a file that ends in .png, got {options.out!r}")
    return options


def _bytes_of(path: pathlib.Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"in: cannot read {path}: {error.strerror or error}") from None
    if len(data) > _LARGEST_FILE:
        raise UserError(f"in: {path} has more than {_LARGEST_FILE} bytes")
    return data


def _write(path: pathlib.Path, data: bytes) -> None:
    from jaxface.training import write_atomically

    try:
        write_atomically(path, data)
    except OSError as error:
        raise UserError(f"out: cannot write {path}: {error.strerror or error}") from None


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Encodes or decodes, and says how large the file is."""
    options = _arguments(arguments)
    source = local_path("in", options.source)
    if options.action == "info":
        from jaxface.models.compression import bitstream

        header = bitstream.read_header(_bytes_of(source))
        color = "gray" if header.gray else "RGB"
        say(
            f"{header.width}x{header.height} {color}, λ = {header.weight:g}, codec {header.model:08x}: {source}"
        )
        return
    out, run = local_path("out", options.out), local_path("run", options.run)
    if not out.absolute().parent.is_dir():
        raise UserError(f"out: needs a folder that exists, got {out}")
    from jaxface.data.sources.images import encode_image
    from jaxface.data.sources.pictures import read_picture

    picture = read_picture(source) if options.action == "encode" else None  # refused before anything compiles
    data = b"" if picture is not None else _bytes_of(source)
    use_compilation_cache()
    from jaxface import inference

    codec = inference.open_codec(run, weight=options.weight)
    if picture is not None:
        coded = codec.encode(picture)
        _write(out, coded.data)
        pixels = picture.shape[0] * picture.shape[1]
        say(f"{len(coded.data):,} bytes, {8 * len(coded.data) / pixels:.4f} bits per pixel: {out}")
        return
    decoded = codec.decode(data)
    _write(out, encode_image(decoded))
    say(f"{decoded.shape[1]}x{decoded.shape[0]} from {len(data):,} bytes: {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
