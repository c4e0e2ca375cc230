import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.data.transforms.alignment import (
    align_face,
    align_faces,
    estimate_similarity,
    five_from_68,
    named_template,
    template,
    umeyama,
    warp_affine,
)
from jaxface.errors import UserError

MEASURED = np.array([(30, 40), (70, 42), (52, 60), (35, 80), (66, 82)], np.float32)


def apply(matrix, points):
    return points @ np.asarray(matrix)[:, :2].T + np.asarray(matrix)[:, 2]


def rotated(points, angle, scale, shift):
    c, s = np.cos(angle), np.sin(angle)
    return (scale * points @ np.array([[c, s], [-s, c]]) + shift).astype(np.float32)


def test_template_sizes():
    base = template()
    np.testing.assert_allclose(base[0], (38.2946, 51.6963))
    np.testing.assert_allclose(base[4], (70.7299, 92.2041))
    np.testing.assert_allclose(
        template(112, 96)[:, 0], [30.2946, 65.5318, 48.0252, 33.5493, 62.7299], rtol=1e-6
    )
    np.testing.assert_allclose(template(112, 96)[:, 1], base[:, 1])
    np.testing.assert_allclose(template(224), base * 2, rtol=1e-6)
    np.testing.assert_allclose(template(128), base + (8, 0), rtol=1e-6)
    np.testing.assert_allclose(template(256), base * 2 + (16, 0), rtol=1e-6)


@pytest.mark.parametrize("size", [(100, None), (0, None), (-112, None), (96, 112), (112, 128), (64, None)])
def test_sizes_without_a_template(size):
    with pytest.raises(UserError, match="image_size") as caught:
        template(*size)
    assert "\n" not in str(caught.value)


def test_template_to_itself_is_the_identity():
    np.testing.assert_allclose(estimate_similarity(template(), template()), [[1, 0, 0], [0, 1, 0]], atol=1e-5)


def test_turned_scaled_shifted_template():
    src = rotated(template(), 0.3, 2.0, (10, 20))
    expected = [[0.477668, 0.147760, -7.731885], [-0.147760, 0.477668, -8.075764]]
    np.testing.assert_allclose(estimate_similarity(src, template()), expected, atol=2e-5)
    np.testing.assert_allclose(umeyama(src, template()), expected, atol=2e-5)


def test_measured_landmarks_and_residuals():
    expected = [[0.964128, 0.020713, 5.981957], [-0.020713, 0.964128, 14.329890]]
    matrix = estimate_similarity(MEASURED, template())
    np.testing.assert_allclose(matrix, expected, atol=2e-5)
    residuals = np.linalg.norm(apply(matrix, MEASURED) - template(), axis=1)
    np.testing.assert_allclose(residuals, [2.624578, 2.039297, 1.478058, 1.638761, 0.610926], atol=2e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_closed_form_is_umeyama_without_reflection(seed):
    rng = np.random.default_rng(seed)
    dst = rng.uniform(0, 112, (5, 2))
    src = rotated(dst, rng.uniform(-3, 3), rng.uniform(0.3, 3), rng.uniform(-50, 50, 2)) + rng.normal(
        0, 1, (5, 2)
    )
    np.testing.assert_allclose(estimate_similarity(src, dst), umeyama(src, dst), rtol=1e-3, atol=5e-3)


def test_reflected_points_need_umeyama_and_still_give_a_rotation():
    mirrored = template() * (-1, 1) + (112, 0)
    matrix = umeyama(mirrored, template())
    assert np.linalg.det(matrix[:, :2]) > 0
    residual = lambda m: ((apply(m, mirrored) - template()) ** 2).sum()  # noqa: E731
    rng = np.random.default_rng(0)
    best = residual(matrix)
    for _ in range(200):  # no other similarity nearby is better
        scale, angle = np.hypot(*matrix[:, 0]), np.arctan2(matrix[1, 0], matrix[0, 0])
        scale, angle = scale * (1 + 0.05 * rng.normal()), angle + 0.05 * rng.normal()
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shift = template().mean(0) - linear @ mirrored.mean(0)
        assert residual(np.c_[linear, shift]) >= best - 1e-6


def test_exchanged_sides_spoil_the_crop():
    # x wants to be mirrored and y to stay: the best similarity shrinks the face to a quarter.
    matrix = estimate_similarity(template()[[1, 0, 2, 4, 3]], template())
    np.testing.assert_allclose(np.asarray(matrix)[:, :2], 0.225317 * np.eye(2), atol=1e-4)


def test_vmap_jit_and_leading_axes_agree():
    rng = np.random.default_rng(0)
    src = jnp.asarray(rng.uniform(0, 112, (3, 4, 5, 2)), jnp.float32)
    whole = estimate_similarity(src, template())
    mapped = jax.jit(jax.vmap(jax.vmap(lambda p: estimate_similarity(p, template()))))(src)
    assert whole.shape == (3, 4, 2, 3)
    np.testing.assert_allclose(whole, mapped, rtol=1e-4, atol=1e-4)


def test_coincident_landmarks():
    same = np.full((5, 2), 50.0, np.float32)
    for estimate in (estimate_similarity, umeyama):
        with pytest.raises(ValueError, match="coincide"):
            estimate(same, template())
    with pytest.raises(ValueError, match="finite"):
        estimate_similarity(same * np.nan, template())
    matrix = jax.jit(estimate_similarity)(same, template())
    gradient = jax.jit(jax.grad(lambda p: estimate_similarity(p, template()).sum()))(same)
    assert np.isfinite(matrix).all() and np.isfinite(gradient).all()
    assert not np.asarray(warp_affine(jnp.ones((8, 8, 1)), matrix, (4, 4))).any()
    for shape in ((4, 2), (5, 3)):
        with pytest.raises(ValueError, match=r"dst|src"):
            estimate_similarity(np.zeros(shape, np.float32), template())


def test_warp_matches_opencv():
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.uniform(0, 255, (60, 50, 3)).astype(np.float32), (0, 0), 1.5)
    matrix = np.array([[0.9, 0.2, -3.3], [-0.2, 0.9, 7.7]], np.float32)
    ours = np.asarray(jax.jit(warp_affine, static_argnums=2)(image, matrix, (48, 64)))
    theirs = cv2.warpAffine(image, matrix, (64, 48), flags=cv2.INTER_LINEAR, borderValue=0)
    assert ours.shape == (48, 64, 3)
    assert (theirs == 0).any() and (theirs > 0).mean() > 0.5  # the case has both inside and outside
    # OpenCV may round its coordinates to 1/32 of a pixel.
    assert np.abs(ours - theirs).max() < 4.0 and np.abs(ours - theirs).mean() < 0.25


def test_warp_by_whole_pixels_is_exact():
    image = np.arange(5 * 6 * 2, dtype=np.uint8).reshape(5, 6, 2)
    moved = np.asarray(warp_affine(jnp.asarray(image), jnp.array([[1.0, 0, 2], [0, 1, 1]]), (5, 6)))
    np.testing.assert_array_equal(moved[1:, 2:], image[:-1, :-2])
    assert not moved[0].any() and not moved[:, :2].any()
    theirs = cv2.warpAffine(image, np.float32([[1, 0, 2], [0, 1, 1]]), (6, 5))
    np.testing.assert_array_equal(moved, theirs)
    with pytest.raises(ValueError, match="image"):
        warp_affine(jnp.zeros((5, 6)), jnp.zeros((2, 3)), (5, 6))


def test_align_face_brings_landmarks_to_the_template():
    points = rotated(template(), -0.2, 1.4, (40, 10))
    image = np.zeros((240, 240, 3), np.uint8)
    for x, y in points:
        cv2.circle(image, (round(float(x)), round(float(y))), 3, (255, 255, 255), -1)
    for size in (112, (112, 96), 224):
        crop = align_face(image, points, size)
        height, width = (size, size) if isinstance(size, int) else size
        assert crop.shape == (height, width, 3) and crop.dtype == np.uint8
        for x, y in template(height, width):
            assert crop[round(float(y)), round(float(x))].min() > 200
    host = align_face(image, points).astype(np.float32)
    device = warp_affine(jnp.asarray(image), estimate_similarity(points, template()), (112, 112))
    assert np.abs(host - device).mean() < 0.5


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.zeros((4, 2)), np.full((5, 2), np.nan)])
def test_align_face_refuses(points):
    with pytest.raises(UserError, match="landmarks"):
        align_face(np.zeros((20, 20, 3), np.uint8), points)


def test_five_from_68():
    points = np.random.default_rng(0).uniform(0, 99, (2, 68, 2)).astype(np.float32)
    five = five_from_68(points)
    np.testing.assert_allclose(five[:, 0], (points[:, 36] + points[:, 39]) / 2)
    np.testing.assert_allclose(five[:, 1], (points[:, 42] + points[:, 45]) / 2)
    np.testing.assert_array_equal(five[:, 2:], points[:, [30, 48, 54]])
    np.testing.assert_allclose(jax.jit(five_from_68)(points), five, rtol=1e-6)
    with pytest.raises(ValueError, match="points"):
        five_from_68(points[:, :60])


def test_many_faces_at_once_are_those_one_by_one():
    """The same crops as on the host, but for OpenCV's places of 1/32 pixel; what is padded counts as outside."""
    rng = np.random.default_rng(2)
    images = cv2.resize(
        rng.integers(0, 256, (12, 16, 6), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC
    )
    images = np.stack([images[..., :3], images[..., 3:]])
    sizes, ids = np.array([[120, 160], [90, 100]]), np.array([1, 0, 0])
    points = np.stack(
        [
            rotated(template(), 0.4, 0.6, (30, 10)),
            rotated(template(), -0.2, 0.9, (40, 10)),
            template() * 1.4 - 20,
        ]
    ).astype(np.float32)
    crops = jax.jit(align_faces, static_argnames="size")(
        images, ids, points, template(), size=(112, 112), valid_size=sizes
    )
    for crop, image_id, landmarks in zip(np.asarray(crops), ids, points, strict=True):
        height, width = sizes[image_id]
        host = align_face(np.ascontiguousarray(images[image_id, :height, :width]), landmarks)
        difference = np.abs(crop - host)
        assert difference.max() <= 8 and difference.mean() < 0.6
        exact = warp_affine(
            jnp.asarray(images[image_id, :height, :width]),
            estimate_similarity(landmarks, template()),
            (112, 112),
        )
        np.testing.assert_allclose(crop, exact, atol=2e-2)
    assert not np.asarray(align_faces(images, ids[:1], np.ones((1, 5, 2)), template(), (8, 8))).any()


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("arcface", (112, 112), template()),
        ("arcface", (48, 48), template() * 48 / 112),
        ("arcface_128", (256, 256), template(256)),
        ("sphereface", (112, 96), template(112, 96)),
    ],
)
def test_templates_by_name(name, size, expected):
    np.testing.assert_allclose(named_template(name, size), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("faces", (112, 112), "alignment: needs one of arcface"),
        ("arcface", (112, 96), "needs crops of 112:112"),
    ],
)
def test_templates_that_there_are_not(name, size, words):
    with pytest.raises(UserError, match=words):
        named_template(name, size)
