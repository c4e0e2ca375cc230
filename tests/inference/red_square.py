"""A detector whose answer is known: the extent of what is pure red, if that is not too wide, with a few of its points."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data import template
from jaxface.inference import DetectorBundle
from jaxface.models.detection import DETECTORS, Detections


class _Redness(nn.Module):
    @nn.compact
    def __call__(self, image, *, train=False):
        del train
        gain = self.param("gain", nn.initializers.ones, ())
        return gain * jnp.minimum(image[..., 0], -image[..., 1:].max(axis=-1))


@DETECTORS.register("red_square_of_tests")
@dataclasses.dataclass(frozen=True)
class RedSquare:
    widest: float = 1e9
    spread: float = 0.0  # of its points: 0 all at the corner, 1 those of a face that fills the extent
    num_classes = 1
    stride = 32

    @property
    def module(self):
        return _Redness()

    def detect(
        self, outputs, image_size, *, valid_size=None, score_threshold=0.5, iou_threshold=0.4, max_outputs=3
    ):
        del image_size, valid_size, iou_threshold

        def extent(any_red):
            return jnp.argmax(any_red), any_red.shape[0] - jnp.argmax(any_red[::-1])

        def of_image(redness):
            red = redness > 0.6
            (y0, y1), (x0, x1) = extent(red.any(axis=1)), extent(red.any(axis=0))
            box = jnp.array([y0, x0, y1, x1], jnp.float32)
            score = jnp.where(red.any() & (x1 - x0 <= self.widest), 0.9 + (x1 - x0) / 1e5, 0.0)
            corner = jnp.stack([x0, y0]).astype(jnp.float32)
            points = corner + self.spread * (x1 - x0) * template(112) / 112
            rows = jnp.arange(max_outputs) == 0
            zeros = jnp.zeros(max_outputs)
            return Detections(
                rows[:, None] * box,
                rows * score,
                zeros.astype(jnp.int32),
                rows[:, None, None] * points,
                rows & (score >= score_threshold),
            )

        return jax.vmap(of_image)(outputs)


def bundle(**fields) -> DetectorBundle:
    return DetectorBundle(
        detector=RedSquare(**fields), variables={"params": {"gain": np.ones((), np.float32)}}, image_size=128
    )


def photograph(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Gray, with a red rectangle (y0, x0, y1, x1)."""
    image = np.full((height, width, 3), 90, np.uint8)
    y0, x0, y1, x1 = box
    image[y0:y1, x0:x1] = 255, 0, 0
    return image
