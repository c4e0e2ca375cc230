"""Seconds from the bytes of a picture to its latents: EDIC's parallel entropy decoder beside an auto-regressive one, in one run.

python -m benchmarks.codec_decoding
python -m benchmarks.codec_decoding --height 256 --width 256

Both have the published widths (128 and 192 channels, three components), weights that were not trained, and the same symbols;
whole numbers throughout, on the host. The networks that make pixels of latents are the same in both and are left out.
"""

import argparse
import time

import jax
import numpy as np

from benchmarks import common
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


def measure(height: int, width: int, repeats: int, live: float) -> list[dict]:
    """One row per entropy model: seconds to decode, and the bytes."""
    rows = []
    for entropy in ENTROPIES:
        codec, rng = _codec(entropy), np.random.default_rng(1)
        spec = codec.spec
        y = np.rint(_SPREAD * rng.normal(size=(height // 16, width // 16, spec.latents)))
        y[..., rng.random(spec.latents) > live] = 0  # channels without symbols, as trained codecs have
        z = np.rint(rng.normal(size=(height // 64, width // 64, spec.channels)))
        coded = codec.encode_symbols(y, z, (height, width, 3))
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            _, symbols, _ = codec.decode_symbols(coded.data)
            times.append(time.perf_counter() - begun)
        assert (symbols == coded.y).all()
        row = {"entropy": entropy, "height": height, "width": width, "live": live, "bytes": len(coded.data)}
        rows.append(row | common.summary(times, items=1))
        print(f"{entropy:15s} {rows[-1]['seconds_median']:8.2f} s, {len(coded.data):,} bytes")
    ratio = rows[1]["seconds_median"] / rows[0]["seconds_median"]
    print(f"auto-regressive / mixture: {ratio:.1f}x")
    return [{**row, "ratio": ratio} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--live", type=float, default=0.5, help="share of the channels that have symbols")
    options = parser.parse_args()
    print(
        common.write("codec_decoding", measure(options.height, options.width, options.repeats, options.live))
    )


if __name__ == "__main__":
    main()
