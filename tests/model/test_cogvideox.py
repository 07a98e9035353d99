"""CogVideoX's VAE as a codec: diffusers' numbers, scaled as its configuration says, for every count of frames.

The network is a small one with random weights, written by diffusers itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file

from model import codecs
from model.codecs import CodecError
from model.codecs.cogvideox import CogVideoX

SMALL = {
    "block_out_channels": (8, 8, 8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "latent_channels": 16,
    "sample_height": 32,
    "sample_width": 48,
}


def write(folder: Path, **changes) -> Path:
    torch.manual_seed(0)
    AutoencoderKLCogVideoX(**{**SMALL, "scaling_factor": 0.7, **changes}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def vae(folder) -> AutoencoderKLCogVideoX:
    """diffusers' own, to call by hand."""
    return AutoencoderKLCogVideoX.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture
def codec(folder) -> CogVideoX:
    return CogVideoX.load(str(folder))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (9, 3), (13, 4), (49, 13)])
def test_1_and_4k_frames_make_1_and_k_latents_and_come_back(codec, frames, latents) -> None:
    encoded = codec.encode(noise(frames, 3, 16, 24))
    assert encoded.shape == (latents, 16, 2, 3)
    assert encoded.dtype == torch.float32
    assert codec.decode(encoded).shape == (frames, 3, 16, 24)


def test_it_is_found_by_name_and_says_what_it_is(folder) -> None:
    codec = codecs.load("cogvideox", str(folder))
    assert (codec.name, codec.channels, codec.spatial) == ("cogvideox", 16, 8)


@pytest.mark.parametrize("frames", [1, 9, 25])
def test_latents_are_the_posterior_s_mean_as_diffusers_has_it_scaled(codec, vae, frames) -> None:
    shown = noise(frames, 3, 16, 24)
    mean = vae.encode(shown.movedim(0, 1)[None]).latent_dist.mean
    torch.testing.assert_close(codec.encode(shown), 0.7 * mean[0].movedim(1, 0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("latents", [1, 3, 7])
def test_frames_are_those_that_diffusers_decodes(codec, vae, latents) -> None:
    z = torch.randn(latents, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    shown = vae.decode(z.movedim(0, 1)[None] / 0.7).sample
    torch.testing.assert_close(codec.decode(z), shown[0].movedim(1, 0), atol=1e-6, rtol=1e-6)


def test_of_an_even_count_of_latents_the_first_is_one_frame_all_the_same(codec, vae) -> None:
    """diffusers alone makes four frames of it, and eight in all."""
    z = torch.randn(2, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    assert vae.decode(z.movedim(0, 1)[None]).sample.shape[2] == 8
    longer = torch.cat([z, z[-1:]])
    expected = vae.decode(longer.movedim(0, 1)[None] / 0.7).sample[0].movedim(1, 0)[:5]
    torch.testing.assert_close(codec.decode(z), expected, atol=1e-6, rtol=1e-6)


def test_three_frames_make_one_latent_and_no_other_odd_count_is_taken(codec, vae) -> None:
    shown = noise(3, 3, 16, 24)
    mean = vae.encode(shown.movedim(0, 1)[None]).latent_dist.mean
    torch.testing.assert_close(codec.encode(shown), 0.7 * mean[0].movedim(1, 0), atol=1e-6, rtol=1e-6)
    assert len(codec.encode(shown)) == 1
    with pytest.raises(ValueError, match=r"7 frames: 1 \+ 4k are needed"):
        codec.encode(noise(7, 3, 16, 24))
    with pytest.raises(ValueError, match="multiples of 8"):
        codec.encode(noise(5, 3, 12, 24))


def test_the_scale_is_the_configuration_s(folder, tmp_path) -> None:
    other = CogVideoX.load(str(write(tmp_path, scaling_factor=1.15258426, invert_scale_latents=True)))
    one = CogVideoX.load(str(folder))
    shown = noise(1, 3, 16, 24)
    torch.testing.assert_close(other.encode(shown) / 1.15258426, one.encode(shown) / 0.7, atol=1e-6, rtol=1e-5)
    assert one.condition_scale == 1
    assert other.encode(shown).sum() * other.condition_scale == pytest.approx(
        float(one.encode(shown).sum()) / 0.7 / 1.15258426, rel=1e-4
    )


def test_a_generator_draws_from_the_posterior(codec, vae) -> None:
    shown = noise(5, 3, 16, 24)
    drawn = codec.encode(shown, torch.Generator().manual_seed(3))
    posterior = vae.encode(shown.movedim(0, 1)[None]).latent_dist
    by_hand = 0.7 * posterior.sample(torch.Generator().manual_seed(3))[0].movedim(1, 0)
    torch.testing.assert_close(drawn, by_hand, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(drawn, codec.encode(shown))


def test_a_whole_window_goes_through_in_one_pass_where_asked(folder, codec, vae) -> None:
    shown = noise(17, 3, 16, 24)
    whole = CogVideoX.load(str(folder), whole=True).encode(shown)
    at_once, _ = vae.encoder(shown.movedim(0, 1)[None])
    torch.testing.assert_close(whole, 0.7 * at_once[0, :16].movedim(1, 0), atol=1e-6, rtol=1e-6)
    assert (whole - codec.encode(shown)).abs().max() > 1e-4


def test_windows_of_a_batch_are_encoded_as_they_are_alone(codec) -> None:
    batch = noise(2, 5, 3, 16, 24)
    latents = codec.encode(batch)
    torch.testing.assert_close(latents[1], codec.encode(batch[1]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(codec.decode(latents)[1], codec.decode(latents[1]), atol=1e-6, rtol=1e-6)


def test_tiles_give_latents_of_the_same_shape_and_other_numbers(tmp_path, codec) -> None:
    tiled = CogVideoX.load(str(write(tmp_path, sample_height=192, sample_width=160)), tiling=True)
    shown = noise(1, 3, 192, 160)
    assert tiled.encode(shown).shape == codec.encode(shown).shape
    assert not torch.equal(tiled.encode(shown), codec.encode(shown))
    assert tiled.decode(codec.encode(shown)).shape == shown.shape


def test_half_precision_is_asked_for_by_type_and_latents_stay_float32(folder, codec) -> None:
    shown = noise(5, 3, 16, 24)
    latents = CogVideoX.load(str(folder), dtype=torch.bfloat16).encode(shown)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, codec.encode(shown), atol=0.1, rtol=0.1)


def test_the_vae_of_a_pipeline_s_folder_is_taken(tmp_path, folder, codec) -> None:
    write(tmp_path / "vae")
    shown = noise(1, 3, 16, 24)
    assert torch.equal(codecs.load("cogvideox", str(tmp_path)).encode(shown), codec.encode(shown))


def test_weights_that_may_carry_code_are_not_read(tmp_path) -> None:
    write(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), tmp_path / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CodecError, match=r"holds no \.safetensors, and other weights are not read"):
        codecs.load("cogvideox", str(tmp_path))


def test_weights_that_are_missing_are_named(tmp_path) -> None:
    write(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.conv_out.conv.bias"]
    save_file(tensors, file)
    with pytest.raises(CodecError, match=r"1 weights .* missing or misshapen: decoder\.conv_out\.conv\.bias"):
        codecs.load("cogvideox", str(tmp_path))


def test_a_damaged_file_and_a_foreign_folder_are_named(tmp_path) -> None:
    write(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CodecError, match=f"{tmp_path}: cannot be read as AutoencoderKLCogVideoX"):
        codecs.load("cogvideox", str(tmp_path))
    with pytest.raises(CodecError, match="/no/such/folder: no such folder"):
        codecs.load("cogvideox", "/no/such/folder")


def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CodecError, match=r"THUDM/CogVideoX-5b-I2V: .*give the folder's path as the source") as caught:
        codecs.load("cogvideox")
    assert "\n" not in str(caught.value)


def test_without_diffusers_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CodecError, match=r'pip install -e "\.\[cogvideox\]"'):
        codecs.load("cogvideox")
