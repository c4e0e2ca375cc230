import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface.data.render import appearance, rendered, sampling, styling
from jaxface.data.render.face_model import ellipsoid
from jaxface.data.render.rendered import RenderedSource
from jaxface.data.render.variation import Variation
from jaxface.errors import UserError

MANY = 2000
DIALS = dict(
    features=1.0, skin=1.0, hair=0.9, beard=0.25, glasses=0.3, restyle=0.2, mouth=0.4, clothes=0.8, photographs=0.5,
    exposure=0.6, vignette=0.3, response=(0.8, 1.3), contrast=(0.9, 1.6), gray=0.5,
)  # fmt: skip
EVERYTHING = Variation(**DIALS)


def styles(variation, count=MANY, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.vmap(lambda key: styling.sample_style(key, 0.5, 0.1, variation))(keys)


def shots(variation, count=MANY):
    keys = jax.random.split(jax.random.key(1), count)
    both = styles(variation, count), styles(variation, count, seed=2)
    return jax.vmap(lambda key, style, fresh: styling.sample_shot(key, style, fresh, variation))(keys, *both)


@pytest.fixture(scope="module")
def resting():
    """A style and a shot of somebody whom no dial has touched."""
    still = (
        styles(Variation()),
        shots(Variation())[1],
    )  # as many as `spread` has, so that one compilation serves both
    return jax.tree.map(lambda leaf: leaf[0], still)


@pytest.fixture(scope="module")
def spread():
    """Styles before and after what images change, and the images, under all dials."""
    return styles(EVERYTHING), *shots(EVERYTHING)


def grid(count=41):
    v, u = jnp.meshgrid(jnp.linspace(-0.9, 0.9, count), jnp.linspace(-0.9, 0.9, count), indexing="ij")
    return u, *ellipsoid(u, v, jnp)


@pytest.mark.parametrize("name", list(DIALS))
def test_each_dial_alone_asks_for_styles(name):
    assert not Variation().styled and not Variation.hard().styled
    assert Variation(**{name: DIALS[name]}).styled


def test_at_rest_nothing_is_drawn_and_with_dials_everything_else_stays():
    people = jnp.arange(3, dtype=jnp.int32)

    def draw(variation):
        return rendered.draw_faces(np.uint32(4), people, people, variation=variation, aligned=True)

    before, after = draw(Variation()), draw(EVERYTHING)
    assert before.identity.style is None and before.shot is None
    assert after.identity.style.features.shape == (3, len(styling.FEATURES))
    same = after.replace(identity=after.identity.replace(style=None), shot=None)
    jax.tree.map(np.testing.assert_array_equal, before, same)


def test_a_person_depends_on_the_dials_through_the_style_alone():
    key = jax.random.key(3)
    styled = sampling.sample_identity(key, variation=EVERYTHING)
    jax.tree.map(np.testing.assert_array_equal, sampling.sample_identity(key), styled.replace(style=None))


@pytest.mark.parametrize(
    ("dial", "fields"),
    [("features", {"features"}), ("hair", {"hair", "hair_color", "long_hair"}), ("beard", {"beard"}), ("glasses", {"glasses"}),
     ("skin", {"roughness", "spots"})],
)  # fmt: skip
def test_a_dial_of_people_moves_its_own_fields(spread, dial, fields):
    others = styles(dataclasses.replace(EVERYTHING, **{dial: 0.0}))
    for field in dataclasses.fields(styling.Style):
        a, b = (np.asarray(getattr(tree, field.name)) for tree in (spread[0], others))
        assert np.array_equal(a, b) == (field.name not in fields), field.name


def test_shares_of_people_and_images(spread):
    style, worn, shot = spread
    share = lambda truth: float(np.mean(np.asarray(truth)))  # noqa: E731
    at = lambda value: pytest.approx(value, abs=0.04)  # noqa: E731
    assert share(style.glasses[:, 0] > 0) == at(0.3)
    assert share(worn.glasses[:, 0] > 0) == at(0.3 * 0.75)
    assert share(style.beard.max(-1) > 0) == at(0.25)
    assert share(style.hair[:, 0] == 0) == at(0.1 + 0.9 * 0.07)  # a plain cap, or bald
    assert share((style.hair != worn.hair).any(-1)) == at(0.2 * (1 - 0.1**2 - (0.9 * 0.07) ** 2))
    assert share(shot.mouth[:, 0] > 0) == at(0.4) and share(shot.lids) == at(0.12)
    assert share(shot.clothes[:, 0]) == at(0.8) and share(shot.gray) == at(0.5)
    assert share(shot.photograph >= 0) == at(0.5)
    assert set(np.unique(shot.photograph)) == set(range(-1, len(styling.photographs())))
    assert (shot.window[:, :2] >= 0).all() and (shot.window[:, :2] + shot.window[:, 2:] <= 1 + 1e-6).all()
    for values, (low, high) in (
        (shot.vignette, (0, 0.3)),
        (shot.response, (0.8, 1.3)),
        (shot.contrast, (0.9, 1.6)),
    ):
        assert (
            low <= values.min() < low + 0.01 * (high + 1) and high - 0.01 * (high + 1) < values.max() <= high
        )
    np.testing.assert_allclose(style.features.std(axis=0), 1, atol=0.06)


def test_what_an_image_keeps_of_its_person(spread):
    style, worn, _ = spread
    for name in ("features", "ripples", "roughness", "spots"):
        np.testing.assert_array_equal(getattr(style, name), getattr(worn, name))
    with_glasses = worn.glasses[:, 0] > 0
    np.testing.assert_array_equal(worn.glasses[with_glasses], style.glasses[with_glasses])


def test_a_style_at_rest_paints_the_plain_head(resting):
    style, shot = resting
    u, x, y, z = grid()
    plain_layers, layers = appearance._layers(u, x, y, z), styling.layers(style, shot, u, x, y, z)
    assert set(layers) == set(styling.PAINTED)
    aside = (
        np.abs(np.asarray(x)) > 18
    )  # a pair is the nearer of two here and their sum there: that differs in the middle
    for name, weight in layers.items():
        expected = plain_layers.get(name, jnp.zeros_like(x))
        np.testing.assert_allclose(weight[aside], expected[aside], atol=5e-3, err_msg=name)
    np.testing.assert_allclose(styling.spotted(style, styling.ripple(style, x, y), x, y), 1)
    front = np.asarray(jnp.abs(u) < 0.6)
    assert (
        np.abs(np.asarray(styling.hair_volume(style, u, x, y, z))[front]).max() < 0.05
    )  # ears are at the sides


def test_features_have_their_signs(resting):
    style, shot = resting

    def layers(**features):
        vector = jnp.zeros(len(styling.FEATURES))
        for name, value in features.items():
            vector = vector.at[styling.FEATURES.index(name.replace("_", " "))].set(value)
        return styling.layers(style.replace(features=vector), shot, *grid(81))

    y = np.asarray(grid(81)[2])
    base = layers()
    assert layers(brow_thickness=1)["brows"].sum() > 1.2 * base["brows"].sum()
    higher = np.asarray(layers(brow_height=2)["brows"])
    assert (higher * y).sum() / higher.sum() - (np.asarray(base["brows"]) * y).sum() / base["brows"].sum() > 3
    assert layers(eye_height=1)["sclera"].sum() > 1.1 * base["sclera"].sum()
    assert layers(eye_white=1)["sclera"].max() == pytest.approx(
        np.exp(-0.7) * float(base["sclera"].max()), rel=1e-5
    )
    assert layers(lip_height=1)["lips"].sum() > 1.2 * base["lips"].sum()
    for name in ("folds", "bags", "sockets"):
        assert (
            base[name].max() == 0
            and layers(**{name: -1})[name].max() == 0
            and 0.1 < layers(**{name: 1})[name].max() < 0.3
        )


def test_mouth_lids_beard_and_glasses(resting):
    style, shot = resting
    at = lambda x, y: jnp.array([[x / 74.0 / 1.7, *(jnp.float32(n) for n in (x, y)), 60.0]])  # noqa: E731

    def layer(name, x, y, style=style, shot=shot):
        u, *place = at(x, y).T
        return float(styling.layers(style, shot, u, *place)[name][0])

    opened = shot.replace(mouth=jnp.array([8.0, 0.5]))
    assert layer("opening", 0, -45) == 0 and layer("opening", 0, -45, shot=opened) > 0.95
    assert layer("opening", 0, -60, shot=opened) < 0.05
    closed = shot.replace(lids=jnp.float32(1))
    assert (
        layer("sclera", 36, 24) > 0.3
        and layer("sclera", 36, 24, shot=closed) == layer("iris", 31, 24, shot=closed) == 0
    )
    assert layer("lids", 31, 22, shot=closed) > 0.7
    bearded = style.replace(beard=jnp.array([0.8, 0.0, 0.6]))
    assert layer("beard", 0, -33, style=bearded) == pytest.approx(0.8, abs=0.01)
    assert layer("beard", 30, -75, style=bearded) > 0.5 and layer("beard", 0, 20, style=bearded) < 0.01
    glasses = style.replace(glasses=jnp.array([1.0, 20.0, 14.0, 2.0, 0.1]))
    assert layer("rims", 51, 22) == 0 and layer("rims", 51, 22, style=glasses) == pytest.approx(1, abs=1e-3)
    assert layer("rims", 31, 22, style=glasses) < 1e-3
    tinted = shot.replace(glare=jnp.array([0.3, 0.0]))
    assert layer("lenses", 31, 22, style=glasses, shot=tinted) == pytest.approx(0.3, abs=1e-3)
    assert layer("lenses", 65, 22, style=glasses, shot=tinted) < 2e-3


def test_hair_lifts_the_surface_outwards_above_its_line(resting):
    style, _ = resting
    style = style.replace(hair=jnp.array([20.0, 10.0, 60.0, 70.0, 0.0, 0.0]))
    u, x, y, z = grid()
    moved = np.asarray(styling.hair_volume(style, u, x, y, z))
    length, front = np.linalg.norm(moved, axis=-1), np.abs(np.asarray(u)) < 0.4
    assert length.max() <= 20.01 and length[front & (np.asarray(y) > 95)].min() > 19
    assert length[front & (np.asarray(y) < 30)].max() < 0.1
    assert (np.sum(moved * np.stack([x, y, z], -1), axis=-1) >= 0).all()
    assert styling.hairline(style, 0.0, 0.0) == 60 and styling.hairline(style, 1.0, 70.0) == pytest.approx(
        -10
    )
    slanted = style.replace(hair=style.hair.at[4].set(0.2).at[5].set(9.0))
    assert styling.hairline(slanted, 0.0, 10.0) == pytest.approx(62)
    assert styling.hairline(slanted, 0.0, -50.0) == pytest.approx(60 - 10 + 9)


def test_long_hair_and_clothes_are_behind(resting):
    style, shot = resting
    around, size = jnp.zeros((64, 64, 3)), 64
    offset = jnp.float32(0), jnp.float32(0.25), jnp.array([32.0, 20.0])  # 4 mm per pixel
    for painted in (
        styling.long_hair(around, style, 1.0, offset, size),
        styling.clothes(around, shot, 1.0, offset, size),
    ):
        assert painted.max() == 0
    long = style.replace(long_hair=jnp.float32(100), hair_color=jnp.array([0.3, 0.2, 0.1]))
    painted = np.asarray(styling.long_hair(around, long, 1.0, offset, size))
    assert painted[40, 32].min() > 0.05 and painted[60, 32].max() < 0.01 and painted[40, 2].max() < 0.01
    dressed = shot.replace(clothes=jnp.array([1.0, 20.0, 0.5, 0.1, 0.2, 0.3]))
    painted = styling.clothes(around, dressed, 0.5, offset, size)
    np.testing.assert_allclose(painted[45, 32], [0.05, 0.1, 0.15], atol=1e-5)
    assert painted[20, 32].max() < 1e-3 and painted[28, 2].max() < 1e-3


def test_photographs_behind(resting):
    _, shot = resting
    pictures = styling.photographs()
    assert pictures.shape == (11, 128, 128, 3) and pictures.dtype == np.uint8 and not pictures.flags.writeable
    around = jnp.full((128, 128, 3), 0.2)
    np.testing.assert_array_equal(styling.photographed(around, shot, 128), around)
    whole = shot.replace(photograph=jnp.int32(4), window=jnp.array([0.0, 0.0, 1.0]))
    shown = np.asarray(styling.photographed(around, whole, 128))
    expected = (pictures[4] / 255.0) ** 2.2
    np.testing.assert_allclose(shown, expected * 0.2 / (expected.mean() + 1e-3), rtol=1e-3, atol=1e-5)
    part = whole.replace(window=jnp.array([0.25, 0.5, 0.5]))
    shown = np.asarray(styling.photographed(around[:64, :64], part, 64))
    expected = (pictures[4][64:, 32:96] / 255.0) ** 2.2
    np.testing.assert_allclose(shown, expected * 0.2 / (expected.mean() + 1e-3), rtol=1e-3, atol=1e-5)


def test_photographs_need_their_packages(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(UserError, match="photographs: needs scikit-image and scikit-learn"):
        styling.photographs.__wrapped__()


def test_the_camera(resting):
    _, shot = resting
    ramp = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 33)[None, :, None], (33, 33, 3))
    develop = lambda image=ramp, **fields: np.asarray(  # noqa: E731
        styling.develop(image, shot.replace(**{name: jnp.float32(value) for name, value in fields.items()}))
    )
    np.testing.assert_allclose(develop(), ramp, atol=3e-4)
    np.testing.assert_allclose(develop(response=0.5)[0, 1:, 0], np.sqrt(np.linspace(0, 1, 33))[1:], atol=3e-4)
    curve = develop(contrast=1.6)[0, :, 0]
    assert (np.diff(curve) > 0).all() and curve[16] == pytest.approx(0.5, abs=1e-5)
    assert (curve[17] - curve[15]) * 16 == pytest.approx(1.6, rel=0.02)
    for fields in ({"response": 0.8}, {"response": 1.3}, {"contrast": 0.9}):
        assert (np.diff(develop(**fields)[0, :, 0]) > 0).all()
    flat = jnp.full((33, 33, 3), 0.5)
    shaded = develop(flat, vignette=0.4)
    assert shaded[16, 16, 0] == pytest.approx(0.5, abs=1e-3)
    assert shaded[0, 0, 0] == pytest.approx(0.5 * (1 - 0.4 * (32 / 33) ** 2), abs=1e-3)
    assert develop(flat * 0.2, exposure=1.0).mean() == pytest.approx(0.45 / 0.12 * 0.1, rel=0.01)
    colors = jnp.broadcast_to(jnp.array([0.8, 0.4, 0.2]), (33, 33, 3))
    gray = develop(colors, gray=1.0)
    assert (gray == gray[..., :1]).all() and gray[3, 3, 0] == pytest.approx(
        0.8 * 0.299 + 0.4 * 0.587 + 0.2 * 0.114, abs=1e-3
    )


@pytest.fixture(scope="module")
def photographed():
    """Every image gray, everyone with everything."""
    variation = dataclasses.replace(Variation.photographed(), gray=1.0, photographs=1.0)
    return RenderedSource(3, 2, 24, variation=variation)


def test_rendered_people_with_every_dial(photographed):
    images = np.stack([photographed[i]["image"] for i in range(6)])
    assert (images == images[..., :1]).all() and images.std(axis=(1, 2, 3)).min() > 10
    other = RenderedSource(1, 2, 24, variation=photographed._arguments["variation"], first_identity=2)
    for shot in range(2):
        np.testing.assert_array_equal(other[shot]["image"], images[4 + shot])
    landmarks = np.stack([photographed[i]["landmarks"] for i in range(6)])
    assert ((landmarks > 0) & (landmarks < 24)).all()
