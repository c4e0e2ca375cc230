"""Encodes a picture or the frames of a video with a trained codec, and decodes them again.

    jaxface compress encode IN.png OUT.edic --run RUN      the picture as bytes
    jaxface compress decode IN.edic OUT.png --run RUN      the picture that they are of
    jaxface compress encode FOLDER OUT.edvc --run RUN      the frames in a folder, in the order of their names
    jaxface compress decode IN.edvc FOLDER --run RUN       the frames, as PNG files of a new folder
    jaxface compress info IN.edic                          what a file says of itself

RUN is the work directory of a run of edic, or the file of a codec, such as codec-512.safetensors in that directory. Pictures have
8 bits a channel, RGB or gray; their sides may be of any length from the network's stride. Only the codec that wrote a file
decodes it, on any machine.
"""

import pathlib
import shutil
import sys
import tempfile

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


def _info(source: pathlib.Path) -> None:
    from jaxface.models.compression import bitstream, video_codec

    data, frames = _bytes_of(source), ""
    if data[:4] == video_codec.MAGIC:
        count, data, _ = video_codec.unpack_video(data, None)
        frames = f"{count} frames of "
    header = bitstream.read_header(data)
    color = "gray" if header.gray else "RGB"
    say(
        f"{frames}{header.width}x{header.height} {color}, λ = {header.weight:g}, codec {header.model:08x}: {source}"
    )


def _encode(options, source: pathlib.Path, out: pathlib.Path, run: pathlib.Path) -> None:
    from jaxface.data.sources.pictures import frame_files, read_picture

    # Refused before anything compiles.
    frames = [read_picture(path) for path in (frame_files(source) if source.is_dir() else [source])]
    use_compilation_cache()
    from jaxface import inference

    if source.is_dir():
        if options.weight is not None:
            raise UserError("weight: a run has one video codec")
        data = inference.open_video_codec(run).encode(frames)
    else:
        data = inference.open_codec(run, weight=options.weight).encode(frames[0]).data
    _write(out, data)
    pixels = frames[0].shape[0] * frames[0].shape[1] * len(frames)
    of = f" for {len(frames)} frames" if source.is_dir() else ""
    say(f"{len(data):,} bytes{of}, {8 * len(data) / pixels:.4f} bits per pixel: {out}")


def _decode(options, source: pathlib.Path, out: pathlib.Path, run: pathlib.Path) -> None:
    from jaxface.data.sources.images import encode_image
    from jaxface.models.compression import video_codec

    data = _bytes_of(source)
    video = data[:4] == video_codec.MAGIC
    if not video and out.suffix != ".png":
        raise UserError(f"out: needs a file that ends in .png, got {str(out)!r}")
    if video and out.exists():
        raise UserError(f"out: needs a new folder for the frames, got {out}")
    use_compilation_cache()
    from jaxface import inference

    if not video:
        decoded = inference.open_codec(run, weight=options.weight).decode(data)
        _write(out, encode_image(decoded))
        say(f"{decoded.shape[1]}x{decoded.shape[0]} from {len(data):,} bytes: {out}")
        return
    codec = inference.open_video_codec(run)
    temporary, count = None, 0
    try:
        temporary = pathlib.Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
        for count, frame in enumerate(codec.decode(data), start=1):
            (temporary / f"{count:06d}.png").write_bytes(encode_image(frame))
        temporary.chmod(0o755)
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    say(f"{count} frames from {len(data):,} bytes: {out}")


@exit_on_user_error
def main(arguments: list[str]) -> None:
    """Encodes or decodes, and says how large the file is."""
    options = _arguments(arguments)
    source = local_path("in", options.source)
    if options.action == "info":
        _info(source)
        return
    out, run = local_path("out", options.out), local_path("run", options.run)
    if not out.absolute().parent.is_dir():
        raise UserError(f"out: needs a folder that exists, got {out}")
    (_encode if options.action == "encode" else _decode)(options, source, out, run)


if __name__ == "__main__":
    main(sys.argv[1:])
