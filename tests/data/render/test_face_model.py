import numpy as np
import pytest

from jaxface.data.render import face_model as fm


@pytest.fixture(scope="module")
def model():
    return fm.face_model()


def test_shapes_and_cache(model):
    n = fm.GRID**2
    assert (n, len(model.triangles)) == (3249, 6272)
    assert (
        model.mean.shape == (n, 3)
        and model.identity.shape == (n, 3, 24)
        and model.expression.shape == (n, 3, 6)
    )
    assert model.mean.dtype == np.float32 and model.triangles.dtype == np.int32
    assert fm.face_model() is model
    with pytest.raises(ValueError, match="read-only"):
        model.mean[0] = 0


def test_identity_basis_is_orthogonal_and_ordered(model):
    columns = model.identity.reshape(-1, 24).astype(np.float64)
    gram = columns.T @ columns
    sizes = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(sizes, sizes)
    assert np.abs(cosines - np.eye(24)).max() < 1e-4
    assert (np.diff(sizes) <= 1e-3).all()


def test_identities_differ_by_millimeters(model):
    alpha = np.random.default_rng(0).standard_normal((200, 24))
    moved = np.einsum("nck,bk->bnc", model.identity, alpha)
    assert 1.0 < np.sqrt((moved**2).sum(-1).mean()) < 10.0


def test_mean_head_and_bases_are_mirror_symmetric(model):
    mirror = np.array([-1, 1, 1], np.float32)
    for field in (model.mean[..., None], model.identity, model.expression):
        grid = field.reshape(fm.GRID, fm.GRID, 3, -1)
        np.testing.assert_allclose(grid[:, ::-1] * mirror[:, None], grid, atol=1e-3)


def test_nose_tip_is_the_foremost_vertex(model):
    assert (
        model.mean[:, 2].argmax() in set(np.flatnonzero(np.abs(model.mean[:, 0]) < 1))
        and abs(model.mean[model.mean[:, 2].argmax(), 1] + 10) < 6
    )


def test_landmarks_are_near_their_places(model):
    # Half the diagonal of a grid cell; the bumps of the mean head move z alone.
    assert np.abs(model.mean[model.landmarks, :2] - np.asarray(fm.LANDMARKS)).max() < 4
    assert (model.mean[model.landmarks, 2] > 0).all()


def test_triangles_face_outwards(model):
    corner = model.mean[model.triangles].astype(np.float64)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    outwards = (normal * corner.mean(1)).sum(-1) > 0
    assert outwards.mean() > 0.97  # the flanks of the nose turn inwards


def test_skin_fields_have_unit_rms_and_no_mean_term(model):
    line = np.linspace(-1, 1, fm.GRID)
    order = np.arange(fm.WAVES)
    fields = np.einsum(
        "vj,kji,ui->kvu",
        np.cos(np.pi * order * (line[:, None] + 1) / 2),
        model.skin_waves,
        np.cos(np.pi * order * line[:, None]),
    )
    np.testing.assert_allclose(np.sqrt((fields**2).mean((1, 2))), 1, rtol=1e-4)
    assert (model.skin_waves[:, 0, 0] == 0).all()


def test_smile_lifts_and_widens_the_mouth_and_jaw_drops(model):
    left, right = model.landmarks[3:]
    smile, jaw = model.expression[..., 0], model.expression[..., 1]
    assert smile[left, 0] < 0 < smile[right, 0] and smile[left, 1] > 3 and smile[right, 1] > 3
    chin = np.abs(model.mean[:, :2] - [0, -62]).sum(1).argmin()
    assert jaw[chin, 1] < -10


def test_seed_changes_the_random_fields_alone(model):
    other = fm.face_model(1)
    assert np.array_equal(other.mean, model.mean) and np.array_equal(other.expression, model.expression)
    assert not np.allclose(other.identity, model.identity) and not np.allclose(
        other.skin_waves, model.skin_waves
    )
