import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.data.render import (
    appearance,
    face_parameters,
    head_geometry,
    presentation,
    rasterize,
    rendered,
    renderer,
    sampling,
)
from jaxface.data.render.face_model import face_model
from jaxface.data.render.renderer import render
from jaxface.data.render.variation import MODERATE, Variation
from jaxface.data.transforms import alignment
from jaxface.errors import UserError


def draw(count, variation=MODERATE, *, seed=0, aligned=True):
    people = jnp.arange(count, dtype=jnp.int32)
    return rendered.draw_faces(np.uint32(seed), people, people * 0, variation=variation, aligned=aligned)


def attacked(faces, kind):
    return faces.replace(spoof=jnp.full_like(faces.spoof, kind))


everything = {"image_size": 32, "outputs": renderer.OUTPUTS}


def test_rotation():
    angles = jnp.deg2rad(jnp.array([10.0, 30.0, 20.0]))
    rotation = head_geometry.rotation_matrix(angles)
    np.testing.assert_allclose(rotation[:, 2], [0.522099, 0.005236, 0.852869], atol=1e-6)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(head_geometry.rotation_matrix(jnp.zeros(3)), np.eye(3))


def test_projections():
    rotation = head_geometry.rotation_matrix(jnp.deg2rad(jnp.array([10.0, 30.0, 20.0])))
    point = head_geometry.project(
        rotation @ jnp.array([10.0, 20.0, 30.0]), 0.2, jnp.array([1.0, -2.0]), 64, 64
    )
    np.testing.assert_allclose(point, [36.739248, 25.555738, 23.593731], atol=1e-4)
    seen = head_geometry.project_pinhole(jnp.array([0.1, 0.2, 0.5]), 1015.0, 112.0, 10.0)
    # The check value has v pointing up: 112 + 1015 * 0.2 / 9.5.
    np.testing.assert_allclose([seen[0], 224 - seen[1]], [122.684211, 133.368421], rtol=1e-6)


def test_directional_light_closed_form():
    towards = jnp.array([1.0, 2.0, 2.0]) / 3
    for normal, expected in (
        (towards, 1.0625),
        (jnp.array([2.0, -1.0, 0.0]) / jnp.sqrt(5.0), 0.09375),
        (-towards, 0.0625),
        (jnp.array([0.0, 0.0, 1.0]), 0.635417),
    ):
        light = head_geometry.directional_light(towards, jnp.float32(0.7))
        np.testing.assert_allclose(head_geometry.shading(normal, 0.2, light), 0.2 + 0.7 * expected, atol=2e-5)
    rng = np.random.default_rng(0)
    normals = rng.standard_normal((50, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    cos = normals @ np.asarray(towards)
    expected = 0.25 + cos / 2 + 5 / 32 * (3 * cos**2 - 1)
    light = head_geometry.directional_light(towards, jnp.float32(1))
    np.testing.assert_allclose(
        head_geometry.shading(jnp.asarray(normals, jnp.float32), 0.0, light), expected, atol=2e-5
    )


def test_spherical_harmonics_are_orthonormal():
    rng = np.random.default_rng(0)
    normals = rng.standard_normal((200_000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    basis = np.asarray(head_geometry.spherical_harmonics(jnp.asarray(normals, jnp.float32)), np.float64)
    np.testing.assert_allclose(4 * np.pi * basis.T @ basis / len(basis), np.eye(9), atol=0.02)


def test_normals_of_a_sphere():
    azimuth, elevation = np.meshgrid(
        np.deg2rad(np.linspace(-100, 100, 57)), np.deg2rad(np.linspace(-78, 78, 57))
    )
    sphere = np.stack(
        [np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)], -1
    ).astype(np.float32)
    grid = np.asarray(head_geometry.grid_normals(jnp.asarray(sphere)))
    assert (grid * sphere).sum(-1).min() > 0.99
    points = sphere.reshape(-1, 3)
    for weighted in (True, False):
        mesh = head_geometry.mesh_normals(jnp.asarray(points), face_model().triangles, area_weighted=weighted)
        assert (np.asarray(mesh) * points).sum(-1).min() > 0.99


def test_outputs_and_their_ranges():
    faces = draw(8)
    shown = render(faces, **everything)
    assert shown.image.shape == (8, 32, 32, 3) and shown.normals.shape == (8, 32, 32, 3)
    assert shown.depth.shape == shown.infrared.shape == shown.mask.shape == (8, 32, 32)
    assert shown.landmarks.shape == (8, 5, 2) and shown.visible.shape == (8, 5) and shown.box.shape == (8, 4)
    assert shown.image.min() >= 0 and shown.image.max() <= 1 and shown.image.dtype == jnp.float32
    mask = np.asarray(shown.mask)
    assert 0.3 < mask.mean() < 0.95
    np.testing.assert_allclose(np.linalg.norm(shown.normals, axis=-1), mask, atol=1e-4)
    assert (np.asarray(shown.depth)[~mask] == 0).all() and (np.asarray(shown.infrared)[~mask] == 0).all()
    assert (np.asarray(shown.depth) == np.round(shown.depth)).all()  # whole millimeters
    for k in range(4):
        rows, columns = np.nonzero(mask[k])
        np.testing.assert_array_equal(shown.box[k], [rows.min(), columns.min(), rows.max(), columns.max()])
    only = render(faces, image_size=32)
    assert only.depth is None and only.normals is None and only.infrared is None
    np.testing.assert_allclose(only.image, shown.image, atol=1e-5)


def test_normalized_depth():
    np.testing.assert_allclose(
        appearance.normalized_depth(jnp.array([-5.0, 55.0, 110.0, 500.0])), [0, 0.5, 1, 1.2]
    )


def test_attacks_off_renders_live():
    faces = attacked(draw(8), presentation.PRINT)
    live = render(attacked(faces, presentation.LIVE), image_size=32).image
    np.testing.assert_allclose(render(faces, image_size=32, attacks=False).image, live, atol=1e-5)
    assert np.abs(render(faces, image_size=32).image - live).max() > 0.1


def test_small_background_of_an_empty_view():
    faces = draw(8).replace(translation=jnp.full((8, 2), 9.0))
    shown = render(faces, **everything)
    assert not shown.mask.any() and (shown.box == 0).all() and not shown.visible.any()
    assert np.isfinite(shown.image).all() and np.asarray(shown.image).std() > 0.01


def test_visibility_of_landmarks():
    variation = Variation.none()
    frontal = draw(8, variation)
    assert render(frontal, **everything).visible.all()
    turned = frontal.replace(
        pose=frontal.pose.at[:, 1].set(np.deg2rad(75))
    )  # the nose points right: the right eye hides
    visible = np.asarray(render(turned, **everything).visible)
    assert visible[:, 0].all() and not visible[:, 1].any()


def test_landmarks_lie_on_dark_irises():
    faces = draw(8, Variation.none())
    shown = render(faces, image_size=112)
    for k in range(4):
        for x, y in np.round(np.asarray(shown.landmarks[k, :2])).astype(int):
            image = np.asarray(shown.image[k]).mean(-1)
            assert image[y, x] < image[y - 3 : y + 4, x - 8 : x + 9].max() - 0.15


def test_alignment_is_the_best_similarity():
    variation = Variation(shift=0.0, zoom=0.0, roll=0.0)
    faces = draw(8, variation)
    landmarks = np.asarray(render(faces, image_size=112).landmarks, np.float64)
    template = alignment.template(112).astype(np.float64)
    for k in range(4):
        centered = landmarks[k] - landmarks[k].mean(0)
        target = template - template.mean(0)
        np.testing.assert_allclose(landmarks[k].mean(0), template.mean(0), atol=0.05)
        # At the optimum the best further rotation and scaling is the identity.
        scale = (centered * target).sum() / (centered**2).sum()
        turn = (centered[:, 0] * target[:, 1] - centered[:, 1] * target[:, 0]).sum() / (centered**2).sum()
        assert scale == pytest.approx(1, abs=1e-3) and turn == pytest.approx(0, abs=1e-3)
    small = np.asarray(render(faces, **everything).landmarks)
    np.testing.assert_allclose(small * 3.5, landmarks, atol=1e-3)


def test_same_face_whatever_the_batch():
    faces = draw(8)
    others = jax.tree.map(lambda x: x[jnp.array([3, 3, 5, 3, 5, 5, 5, 5])], faces)
    one, two = (render(f, **everything) for f in (faces, others))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a[3], b[0])
        np.testing.assert_array_equal(a[5], b[7])


def test_noise_statistics():
    normal, uniform = appearance.hash_noise(jnp.uint32(7), 100_000)
    assert abs(normal.mean()) < 0.01 and normal.std() == pytest.approx(1, abs=0.01)
    assert uniform.mean() == pytest.approx(0.5, abs=0.005) and uniform.min() >= 0 and uniform.max() < 1
    other, _ = appearance.hash_noise(jnp.uint32(8), 100_000)
    assert abs(np.corrcoef(normal, other)[0, 1]) < 0.01
    assert abs(np.corrcoef(normal[1:], normal[:-1])[0, 1]) < 0.01


def test_print_and_replay_are_flat_and_vanish_in_infrared():
    faces = draw(8, Variation(depth_holes=(0, 0), depth_noise=(0, 0)))
    faces = faces.replace(attack=faces.attack.replace(border=jnp.full((8, 4), -0.1)))
    live, screen, paper, cutout, mask = (
        render(attacked(faces, kind), **everything)
        for kind in (
            presentation.LIVE,
            presentation.REPLAY,
            presentation.PRINT,
            presentation.CUTOUT,
            presentation.MASK,
        )
    )
    assert (np.ptp(np.asarray(screen.depth), axis=(1, 2)) == 0).all() and screen.infrared.max() < 0.05
    assert (np.ptp(np.asarray(paper.infrared), axis=(1, 2)) < 1e-6).all() and paper.infrared.min() >= 0.5
    # A quadratic in x plus a plane explains all of a print, and not the live face.
    y, x = (np.mgrid[:32, :32] + 0.5) / 32
    basis = np.stack([x * 0 + 1, x, y, x**2], -1).reshape(-1, 4)
    for shown, small in ((paper, True), (live, False)):
        for k in range(8):
            inside = np.asarray(shown.mask[k]).ravel()
            depth = np.asarray(shown.depth[k]).ravel()[inside]
            left = depth - basis[inside] @ np.linalg.lstsq(basis[inside], depth, rcond=None)[0]
            assert (left.std() < 0.5) == small
    differs = np.asarray(cutout.depth != paper.depth)
    assert 0.01 < differs.mean() < 0.4
    np.testing.assert_allclose(np.asarray(cutout.depth)[differs], np.asarray(live.depth)[differs])
    assert not np.asarray(screen.image - live.image).std() < 0.01
    ratio = np.asarray(mask.infrared).mean() / np.asarray(live.infrared).mean()
    assert 0.4 < ratio < 0.8 and np.asarray(mask.depth).std() > 10


def test_mask_hides_the_identity():
    faces = draw(8, Variation.none())
    landmarks = lambda f: np.asarray(render(f, **everything).landmarks)  # noqa: E731
    plain = faces.replace(translation=faces.translation * 0, scale=jnp.full(8, 1 / 260))
    assert landmarks(attacked(plain, presentation.MASK)).std(0).mean() < 0.6 * landmarks(plain).std(0).mean()


def test_gradients_of_the_picture():
    faces = jax.tree.map(lambda x: x[:1], draw(8))
    target = render(faces, image_size=16, attacks=False).image

    def loss(shape, light, pose):
        moved = faces.replace(identity=faces.identity.replace(shape=shape), light=light, pose=pose)
        return ((render(moved, image_size=16, attacks=False).image - target + 0.1) ** 2).mean()

    arguments = (faces.identity.shape, faces.light, faces.pose)
    loss = jax.jit(loss)
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments)
    for gradient in gradients:
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    # The picture is linear in small changes of light where nothing clips: the gradient predicts the change.
    step = 1e-3 * gradients[1] / jnp.linalg.norm(gradients[1])
    change = loss(arguments[0], arguments[1] + step, arguments[2]) - loss(
        arguments[0], arguments[1] - step, arguments[2]
    )
    assert float(change) == pytest.approx(2 * float((gradients[1] * step).sum()), rel=0.05)


def test_surface_follows_the_coefficients():
    """The implicit derivative of depth at a pixel agrees with a finite difference inside the outline."""
    faces = draw(8, Variation.none())

    def depth(size_of_change):
        shape = faces.identity.shape[0].at[0].set(size_of_change)
        points = head_geometry.head(shape, jnp.zeros(6))
        grid = head_geometry.project(points, 0.3, jnp.zeros(2), 48, 48)
        at, _ = rasterize.visible_surface(grid, height=48, width=48, spacing=2.0)
        return rasterize.sample_grid(grid, at)[18:30, 18:30, 2]

    depth = jax.jit(depth)
    _, tangent = jax.jit(lambda x: jax.jvp(depth, (x,), (1.0,)))(0.0)
    numeric = (depth(0.05) - depth(-0.05)) / 0.1
    agree = np.abs(np.asarray(tangent - numeric)) < 0.05 + 0.05 * np.abs(np.asarray(numeric))
    assert agree.mean() > 0.9


def test_refusals():
    faces = draw(8)
    with pytest.raises(UserError, match="image_size: needs an integer from 8"):
        render(faces, image_size=7)
    with pytest.raises(UserError, match="outputs: needs names among"):
        render(faces, image_size=16, outputs=("rgb",))
    with pytest.raises(ValueError, match=r"identity.shape: needs shape \[B, 24\]"):
        render(faces.replace(identity=faces.identity.replace(shape=jnp.zeros((8, 23)))), image_size=16)
    face_parameters.validate(faces)
    for broken, words in (
        (faces.replace(expression=faces.expression.at[0, 0].set(jnp.nan)), "expression: needs finite"),
        (faces.replace(identity=faces.identity.replace(tone=jnp.linspace(0.5, 1.5, 8))), "identity.tone"),
        (faces.replace(pose=faces.pose.at[1, 1].set(2.0)), "yaw of at most 100"),
        (faces.replace(spoof=jnp.arange(8)), "spoof"),
    ):
        with pytest.raises(UserError, match=words):
            face_parameters.validate(broken)
    for field, value in (("spoof", 1.5), ("yaw", 101.0), ("light", (0.5, 0.2)), ("zoom", -1.0)):
        with pytest.raises(UserError, match=field):
            Variation(**{field: value})


def test_labels():
    faces = jax.tree.map(lambda x: x[:3], draw(8))
    faces = faces.replace(expression=jnp.array([[0.3] * 6, [0, 0, -0.9, 0.5, 0, 0], [0.5, 0, 0, 0, 0, 0.4]]))
    np.testing.assert_array_equal(sampling.expression_label(faces), [0, 3, 1])
    tones = faces.identity.replace(tone=jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(sampling.group_label(tones), [0, 3, 5])
    direction = jnp.array([[0.0, 0, 1], [0, 0.3, -0.95], [0, 0, 1], [0, 0, 1]])
    light = jax.vmap(head_geometry.directional_light)(direction, jnp.array([0.6, 0.6, 1.5, 0.1]))
    four = jax.tree.map(lambda x: x[:4], draw(8)).replace(
        light=light, ambient=jnp.array([0.2, 0.4, 0.2, 0.1])
    )
    names = [sampling.ILLUMINATIONS[k] for k in sampling.illumination_label(four)]
    assert names == ["normal", "back", "strong", "dark"]


def test_the_fractions_of_the_dial():
    faces = draw(800, Variation.spoofing())
    counts = np.bincount(np.asarray(faces.spoof), minlength=5) / 800
    assert counts[0] == pytest.approx(0.4, abs=0.05)
    np.testing.assert_allclose(counts[1:], 0.15, atol=0.05)
    hard = draw(800, Variation.hard())
    assert np.mean(np.asarray(hard.sensor.occluder[:, 2]) > 0) == pytest.approx(0.3, abs=0.05)
    yaw = np.rad2deg(np.asarray(hard.pose[:, 1]))
    assert 50 < np.abs(yaw).max() <= 55 and abs(yaw.mean()) < 3
    assert (np.asarray(draw(8).spoof) == 0).all()
