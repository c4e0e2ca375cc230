"""A procedural morphable head: mean shape, identity, expression and skin bases, all from closed-form fields.

No scanned or licensed model is used. The head is a grid over the azimuth and elevation of an ellipsoid, with bumps
for the features (design). As in the Basel face model, shape is linear:

    S = S_mean + B_id α + B_exp β        S [N, 3] mm, x right (of the image), y up, z towards the camera

with α ~ N(0, I) one standard deviation per unit, and skin is a tone times a smooth field T γ.
"""

import dataclasses
import functools

import numpy as np

GRID = 57  # vertices along azimuth and along elevation
AZIMUTH = (-100.0, 100.0)  # degrees
ELEVATION = (-78.0, 88.0)  # degrees; nearly closed at the crown, which a lowered head shows
AXES = (74.0, 104.0, 88.0)  # mm, half axes of the ellipsoid
IDENTITY, EXPRESSION, ALBEDO = 24, 6, 8  # lengths of alpha, beta, gamma
WAVES = 6  # cosines per direction in the skin fields
EXPRESSIONS = ("neutral", "smile", "jaw open", "brow raise", "frown", "pucker", "cheek puff")
LANDMARKS = (
    (-31, 24),
    (31, 24),
    (0, -10),
    (-20, -44),
    (20, -44),
)  # mm: eyes, nose tip, mouth corners, left to right
SKIN = (
    (0.93, 0.78, 0.69),
    (0.86, 0.67, 0.55),
    (0.72, 0.52, 0.39),
    (0.53, 0.36, 0.26),
    (0.36, 0.24, 0.17),
    (0.24, 0.16, 0.12),
)
_SEMANTIC_SCALE = 0.6  # keeps ±3 standard deviations plausible


@dataclasses.dataclass(frozen=True)
class FaceModel:
    """The fixed arrays of the head, N = GRID² vertices in row-major order (rows = elevation upwards).

    Attributes:
      mean: [N, 3] float32, mm.
      identity: [N, 3, 24] float32, mm per standard deviation; columns orthogonal, ordered by size.
      expression: [N, 3, 6] float32, mm per unit; EXPRESSIONS[1:] names the columns.
      triangles: [2(GRID-1)², 3] int32, counter-clockwise seen from outside.
      landmarks: [5] int32, vertices nearest to LANDMARKS.
      skin_waves: [8, 6, 6] float32, cosine amplitudes (over V, over U) of the skin fields T; each field has RMS 1.
    """

    mean: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray
    skin_waves: np.ndarray


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """(U, V), each [GRID, GRID] in [-1, 1]: U runs along columns with azimuth, V along rows with elevation."""
    line = np.linspace(-1.0, 1.0, GRID)
    return np.meshgrid(line, line)


def ellipsoid(u, v, xp=np):
    """X, Y, Z mm of the bare ellipsoid at grid coordinates in [-1, 1]; `xp` is numpy or jax.numpy."""
    azimuth, elevation = (
        np.float32(np.deg2rad(0.5 * (low + high))) + np.float32(np.deg2rad(0.5 * (high - low))) * at
        for (low, high), at in ((AZIMUTH, u), (ELEVATION, v))
    )
    a, b, c = AXES
    return (
        a * xp.cos(elevation) * xp.sin(azimuth),
        b * xp.sin(elevation),
        c * xp.cos(elevation) * xp.cos(azimuth),
    )


class _Fields:
    """Bumps and ramps over the front of the ellipsoid, from which every displacement is made."""

    def __init__(self):
        self.u, self.v = _grid()
        self.x, self.y, self.z = ellipsoid(self.u, self.v)
        self.front = self.z > 0
        # All columns meet at the crown: what differs between them must fade there.
        self.below_crown = np.clip(np.hypot(self.x / AXES[0], self.z / AXES[2]) / 0.4, 0, 1)

    def bump(self, x0, y0, sx, sy):
        return np.exp(-0.5 * (((self.x - x0) / sx) ** 2 + ((self.y - y0) / sy) ** 2)) * self.front

    def pair(self, x0, y0, sx, sy):
        return self.bump(x0, y0, sx, sy) + self.bump(-x0, y0, sx, sy)

    def apart(self, x0, y0, sx, sy):
        return self.bump(x0, y0, sx, sy) - self.bump(-x0, y0, sx, sy)

    def ramp(self, width):
        return np.tanh(self.x / width)

    def move(self, dx=0.0, dy=0.0, dz=0.0):
        return np.stack([np.broadcast_to(d, self.x.shape) for d in (dx, dy, dz)], -1).reshape(-1)


def _mean(f: _Fields) -> np.ndarray:
    relief = (
        26 * f.bump(0, -10, 9, 9)
        + 12 * f.bump(0, 8, 6, 22)
        + 6 * f.pair(11, -13, 6, 5)
        + 5 * f.pair(30, 38, 18, 6)
        - 9 * f.pair(31, 24, 13, 8)
        + 5 * f.pair(31, 24, 8, 5)
        + 4 * f.pair(42, -5, 16, 16)
        + 7 * f.bump(0, -40, 18, 4)
        + 6 * f.bump(0, -50, 15, 4)
        - 4 * f.bump(0, -45, 16, 1.8)
        + 9 * f.bump(0, -78, 16, 12)
    )
    return np.stack([f.x, f.y, f.z + relief], -1).reshape(-1, 3)


def _identity(f: _Fields, rng: np.random.Generator) -> np.ndarray:
    semantic = [
        f.move(dx=6 * f.x / 74),  # width
        f.move(dy=6 * f.y / 104),  # length
        f.move(dz=5 * f.bump(0, -10, 9, 10)),  # nose out
        f.move(dx=4 * f.ramp(12) * f.bump(0, -12, 16, 10)),  # nose width
        f.move(dy=5 * f.bump(0, -8, 14, 14)),  # nose length
        f.move(dz=3 * f.pair(30, 38, 18, 7)),  # brow ridge
        f.move(dx=4 * f.apart(31, 24, 14, 9)),  # eye spacing
        f.move(dy=3 * f.pair(31, 28, 16, 14)),  # eye height
        f.move(dx=6 * f.ramp(20) * f.bump(0, -65, 60, 22)),  # jaw width
        f.move(dy=-5 * f.bump(0, -82, 26, 14), dz=3 * f.bump(0, -82, 18, 12)),  # chin
        f.move(dz=4 * f.pair(44, -4, 16, 16)),  # cheek bones
        f.move(dx=4 * f.ramp(18) * f.bump(0, -45, 24, 8)),  # mouth width
        f.move(dz=3 * f.bump(0, -45, 16, 8)),  # lip fullness
    ]
    smooth = []
    for k in range(IDENTITY - len(semantic)):
        axes = []
        for wave in (np.sin, np.cos, np.cos):  # dx odd and dy, dz even in U: faces stay mirror-symmetric
            axis = np.zeros_like(f.u)
            for i in range(1, 5):
                for j in range(5):
                    axis += (
                        rng.standard_normal()
                        / np.hypot(i, j)
                        * np.cos(np.pi * j * (f.v + 1) / 2)
                        * wave(np.pi * i * f.u / 2)
                    )
            axes.append(axis)
        field = f.move(*(axis * f.below_crown for axis in axes))
        smooth.append(field * (3 / (1 + 0.25 * k)) / np.sqrt(np.mean(field**2)))
    directions, sizes, _ = np.linalg.svd(np.stack(semantic + smooth, 1), full_matrices=False)
    # The sign of a singular vector is the solver's choice: fix it, so that a seed means one face everywhere.
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    return _SEMANTIC_SCALE * directions * sizes * signs


def _expression(f: _Fields) -> np.ndarray:
    return np.stack(
        [
            f.move(dx=7 * f.ramp(10) * f.bump(0, -43, 22, 9), dy=6 * f.pair(20, -43, 8, 8)),
            f.move(dy=-14 * f.bump(0, -62, 24, 16), dz=-4 * f.bump(0, -47, 12, 6)),
            f.move(dy=7 * f.pair(30, 38, 20, 8)),
            f.move(dx=-5 * f.apart(22, 36, 12, 8), dy=-4 * f.pair(20, 36, 12, 8)),
            # The ramp is wide enough that the strongest pucker does not fold the lips over themselves.
            f.move(dx=-6 * f.ramp(18) * f.bump(0, -45, 20, 9), dz=6 * f.bump(0, -45, 12, 8)),
            f.move(dz=5 * f.pair(42, -25, 14, 14)),
        ],
        1,
    )


def _triangles() -> np.ndarray:
    corner = (np.arange(GRID - 1)[:, None] * GRID + np.arange(GRID - 1)).reshape(-1)
    lower = np.stack([corner, corner + 1, corner + GRID], 1)
    upper = np.stack([corner + 1, corner + GRID + 1, corner + GRID], 1)
    return np.stack([lower, upper], 1).reshape(-1, 3).astype(np.int32)


def _skin_waves(f: _Fields, rng: np.random.Generator) -> np.ndarray:
    order = np.arange(WAVES)
    norm = np.hypot(*np.meshgrid(order, order))
    norm[0, 0] = np.inf  # no constant: the tone has that
    waves = rng.standard_normal((ALBEDO, WAVES, WAVES)) / norm
    along_v = np.cos(np.pi * order * (f.v[:, :1] + 1) / 2)  # [GRID, WAVES]
    along_u = np.cos(np.pi * order * f.u[0][:, None])
    fields = np.einsum("vj,kji,ui->kvu", along_v, waves, along_u)
    return waves / np.sqrt(np.mean(fields**2, axis=(1, 2)))[:, None, None]


@functools.cache
def face_model(seed: int = 0) -> FaceModel:
    """The head whose random fields come from `seed` (design; the semantic fields are the same for every seed).

    Returns:
      FaceModel, read-only and cached.
    """
    f = _Fields()
    rng = np.random.default_rng(seed)
    mean = _mean(f)
    at = np.stack([f.x, f.y], -1).reshape(-1, 2)
    distance = np.linalg.norm(at[:, None] - np.asarray(LANDMARKS, float), axis=-1)
    distance[~f.front.reshape(-1)] = np.inf
    model = FaceModel(
        mean=mean.astype(np.float32),
        identity=_identity(f, rng).reshape(-1, 3, IDENTITY).astype(np.float32),
        expression=_expression(f).reshape(-1, 3, EXPRESSION).astype(np.float32),
        triangles=_triangles(),
        landmarks=distance.argmin(0).astype(np.int32),
        skin_waves=_skin_waves(f, rng).astype(np.float32),
    )
    for field in dataclasses.fields(model):
        getattr(model, field.name).flags.writeable = False
    return model
