import jax
import numpy as np
import pytest

from jaxface import interop, models
from jaxface.errors import UserError
from jaxface.interop.program import PLATFORMS


@pytest.mark.parametrize("name", ["iresnet_pico", "mobilefacenet"])
def test_one_program_for_any_batch_size(published, tmp_path, name):
    net = published(name)
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    path = tmp_path / "net.stablehlo"
    interop.save_stablehlo(path, net.module, variables, net.shape)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0]) == "float32[b,32,32,3]"
    embed = interop.load_stablehlo(path)
    np.testing.assert_allclose(embed(net.images), net.embeddings, atol=1e-5)
    five = np.concatenate([net.images, net.images[::-1], net.images[:1]])
    np.testing.assert_allclose(embed(five), net.embeddings[[0, 1, 1, 0, 0]], atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["net.stablehlo"]


def test_a_program_of_pixels(published, tmp_path):
    net = published("iresnet_pico")
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *net.shape), np.uint8)
    interop.save_stablehlo(tmp_path / "p", net.module, variables, net.shape, dtype=np.uint8)
    interop.save_stablehlo(tmp_path / "f", net.module, variables, net.shape)
    floats = (pixels.astype(np.float32) - 127.5) / 127.5
    np.testing.assert_allclose(
        interop.load_stablehlo(tmp_path / "p")(pixels),
        interop.load_stablehlo(tmp_path / "f")(floats),
        atol=1e-5,
    )
    with pytest.raises(UserError, match="dtype: needs float32 or uint8; got int32"):
        interop.save_stablehlo(tmp_path / "i", net.module, variables, net.shape, dtype=np.int32)


def test_networks_without_pytorch_names_too(tmp_path):
    module = models.create("vit_tiny", embedding=8, dim=24, depth=1, patch=8)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x))(x)
    interop.save_stablehlo(tmp_path / "v", module, variables, (16, 16, 3))
    expected = module.apply(variables, x, train=False)
    np.testing.assert_allclose(interop.load_stablehlo(tmp_path / "v")(x), expected, atol=1e-5)


def test_files_that_are_no_program(published, tmp_path):
    net = published("iresnet_pico")
    variables = interop.from_state_dict(net.state, net.module, net.shape)
    interop.save_stablehlo(tmp_path / "p", net.module, variables, net.shape)
    (tmp_path / "short").write_bytes(b"\0" * 50)
    for name, words in [("short", "is damaged, or not a program"), ("none", "cannot read")]:
        with pytest.raises(UserError, match=words):
            interop.load_stablehlo(tmp_path / name)
