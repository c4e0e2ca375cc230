"""Seconds from the bytes of a picture to its latents: EDIC's parallel entropy decoder beside an auto-regressive one, in one run.

python -m benchmarks.codec_decoding
python -m benchmarks.codec_decoding --sizes 256x256 --repeats 1

Both have the published widths (128 and 192 channels, three components), weights that were not trained, and the same symbols;
whole numbers throughout, on the host. The networks that make pixels of latents are the same in both and are left out. In one
thread, by the processor's time: products of a vector and a matrix, which the auto-regressive decoder is made of, are slower in
several wherever a core is busy. It takes a turn for every latent position, so that the ratio grows with the picture.
"""

import argparse
import time

import jax
import numpy as np

from benchmarks import common
from jaxface.extras import optional
from jaxface.models.compression import EDIC, CodecSpec, make_codec

ENTROPIES = ("mixture", "autoregressive")
_SPREAD = 1.5  # of the symbols


def _codec(entropy: str):
    """A codec with small random weights; only its shapes matter here."""
    spec = CodecSpec(attention=None, enhance=False, entropy=entropy)
    network = EDIC(spec)
    image = np.zeros((1, spec.multiple, spec.multiple, 3), np.float32)
    shapes = jax.eval_shape(lambda key: network.init(key, image), jax.random.key(0))["params"]
    rng = np.random.default_rng(0)

    def leaf(shape):
        fan = max(int(np.prod(shape.shape[:-1])), 1)
        return rng.normal(0, fan**-0.5 if len(shape.shape) > 1 else 0.01, shape.shape).astype(np.float32)

    return make_codec(spec, jax.tree.map(leaf, shapes), 2048.0)


def measure(sizes: list[tuple[int, int]], repeats: int, live: float) -> list[dict]:
    """Two rows per size, one of each entropy model: CPU-seconds to decode, the bytes, and the ratio of the two medians."""
    codecs = {entropy: _codec(entropy) for entropy in ENTROPIES}
    rows = []
    for height, width in sizes:
        pair = []
        for entropy, codec in codecs.items():
            spec, rng = codec.spec, np.random.default_rng(1)
            y = np.rint(_SPREAD * rng.normal(size=(height // 16, width // 16, spec.latents)))
            y[..., rng.random(spec.latents) > live] = 0  # channels without symbols, as trained codecs have
            z = np.rint(rng.normal(size=(height // 64, width // 64, spec.channels)))
            coded = codec.encode_symbols(y, z, (height, width, 3))
            times = []
            for _ in range(repeats):
                begun = time.process_time()
                _, symbols, _ = codec.decode_symbols(coded.data)
                times.append(time.process_time() - begun)
            assert (symbols == coded.y).all()
            row = {"entropy": entropy, "height": height, "width": width, "live": live}
            pair.append(row | {"bytes": len(coded.data)} | common.summary(times, items=1))
        ratio = pair[1]["seconds_median"] / pair[0]["seconds_median"]
        rows += [{**row, "ratio": ratio} for row in pair]
        seconds = " and ".join(f"{row['entropy']} {row['seconds_median']:.2f} s" for row in pair)
        print(f"{width}x{height}: {seconds}, {ratio:.1f}x", flush=True)
    return rows


def _size(text: str) -> tuple[int, int]:
    """(height, width) of `768x512`."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()) or min(int(width), int(height)) < 64:
        raise argparse.ArgumentTypeError(f"needs WIDTHxHEIGHT of at least 64, got {text!r}")
    if int(width) % 64 or int(height) % 64:
        raise argparse.ArgumentTypeError(f"needs multiples of 64, got {text!r}")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=_size, nargs="+", default=[(128, 128), (256, 256), (512, 768)], metavar="WxH"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--live", type=float, default=0.5, help="share of the channels that have symbols")
    options = parser.parse_args()
    with optional("threadpoolctl", "sets").threadpool_limits(1):
        rows = measure(options.sizes, options.repeats, options.live)
    print(common.write("codec_decoding", rows))


if __name__ == "__main__":
    main()
