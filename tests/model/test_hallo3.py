"""compat=hallo3: the released code's activations, and the names and shapes of its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import checkpoint, hallo3
from model.config import preset
from model.embedding import sinusoid
from model.portrait import Portrait, build
from model.transformer import Denoiser
from tests.conftest import ROOT
from tests.model.networks import inputs, shaken, small

TOLERANCE = 2e-5


def published_shapes(
    width: int, layers: int, patch: int, time: int, text: int, length: int, places: int, audio: Any, face: Any
) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published checkpoint's two networks, as their names and shapes were read off it.

    audio: (seen, inner, tokens, token_dim); face: (dim, tokens, token_dim).
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    for network in ("model.diffusion_model.", "ref_model.diffusion_model."):
        mixins, trunk = network + "mixins.", network + "transformer."
        shapes[mixins + "pos_embed.pos_embedding"] = (1, length + places, width)
        shapes[mixins + "pos_embed.freqs_sin"] = shapes[mixins + "pos_embed.freqs_cos"] = (places, 64)
        shapes[mixins + "patch_embed.proj.weight"] = (width, 32, patch, patch)
        shapes[mixins + "patch_embed.proj.bias"] = (width,)
        linear(mixins + "patch_embed.text_proj", width, text)
        norm(mixins + "final_layer.norm_final", width)
        linear(mixins + "final_layer.linear", 16 * patch**2, width)
        linear(mixins + "final_layer.adaLN_modulation.1", 2 * width, time)
        shapes[trunk + "position_embeddings.weight"] = (64, width)
        norm(trunk + "final_layernorm", width)
        linear(network + "time_embed.0", time, width)
        linear(network + "time_embed.2", time, time)
        for i in range(layers):
            linear(f"{mixins}adaln_layer.adaLN_modulations.{i}.1", 12 * width, time)
            norm(f"{mixins}adaln_layer.query_layernorm_list.{i}", 64)
            norm(f"{mixins}adaln_layer.key_layernorm_list.{i}", 64)
            layer = f"{trunk}layers.{i}."
            norm(layer + "input_layernorm", width)
            linear(layer + "attention.query_key_value", 3 * width, width)
            linear(layer + "attention.dense", width, width)
            norm(layer + "post_attention_layernorm", width)
            linear(layer + "mlp.dense_h_to_4h", 4 * width, width)
            linear(layer + "mlp.dense_4h_to_h", width, 4 * width)
            if network.startswith("model"):
                for kind, size in (("face", face[2]), ("audio", audio[3])):
                    norm(f"{layer}{kind}_input_layernorm", width)
                    linear(f"{layer}{kind}_attn.query", width, width)
                    linear(f"{layer}{kind}_attn.key_value", 2 * width, size)
                    linear(f"{layer}{kind}_attn.dense", width, width)
    trunk = "model.diffusion_model.transformer."
    made = audio[2] * audio[3]
    linear(trunk + "audio_proj.proj1", audio[1], audio[0])
    linear(trunk + "audio_proj.proj2", audio[1], audio[1])
    linear(trunk + "audio_proj.proj3", made, audio[1])
    norm(trunk + "audio_proj.norm", audio[3])
    shapes[trunk + "audio_proj.conv1.weight"], shapes[trunk + "audio_proj.conv1.bias"] = (made, made, 2), (made,)
    linear(trunk + "face_proj.proj", face[1] * face[2], face[0])
    norm(trunk + "face_proj.norm", face[2])
    return shapes


SMALL = (128, 2, 2, 64, 32, 10, 312, (160, 32, 4, 24), (512, 4, 48))
FULL = (3072, 42, 2, 512, 4096, 226, 17550, (46080, 512, 32, 768), (512, 4, 1024))


def drawn(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights of the golden run, key by key (its recipe stands beside it)."""
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape).astype(np.float32)
    if key.endswith("pos_embedding"):
        value = noise * np.float32(0.2)
    elif len(shape) >= 2:
        value = noise * np.float32(1 / math.sqrt(math.prod(shape[1:])))
    elif key.endswith("weight"):
        value = 1 + np.float32(0.02) * noise
    else:
        value = np.float32(0.02) * noise
    return torch.from_numpy(value)


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(shape) if "freqs_" in key else drawn(key, shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as it is published: a folder with 1/mp_rank_00_model_states.pt."""
    folder = tmp_path_factory.mktemp("hallo3")
    (folder / "1").mkdir()
    vae = {"first_stage_model.encoder.conv_in.conv.bias": torch.zeros(128)}
    torch.save({"module": weights(published_shapes(*SMALL)) | vae}, folder / "1" / "mp_rank_00_model_states.pt")
    return folder


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    file = ROOT.parent / "shared" / "goldens" / "hallo3" / "denoiser_f13.npz"
    if not file.is_file():
        pytest.skip("../shared/goldens/hallo3 is not there")
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def loaded(folder: Path, **changes: Any) -> Portrait:
    config = checkpoint.read(folder).config
    portrait = build(dataclasses.replace(config, **changes), "meta")
    checkpoint.load(portrait, folder)
    return portrait


@torch.no_grad()
def activations(portrait: Portrait, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that the golden run wrote down, under its names."""
    found: dict[str, torch.Tensor] = {}

    def watched(network: Denoiser, name: str, **conditions: Any) -> None:
        hooks = [
            network.patch_embed.register_forward_hook(
                lambda _, __, out: found.__setitem__(f"{name}.embed_out", torch.cat(out, dim=1))
            )
        ]
        for i, block in enumerate(network.transformer_blocks):

            def keep(_: Any, __: Any, out: Any, i: int = i) -> None:
                found[f"{name}.layer{i}.out"] = torch.cat(out, dim=1)
                found[f"{name}.final_layernorm"] = network.norm_final(torch.cat(out, dim=1))

            hooks.append(block.register_forward_hook(keep))
        found[f"{name}.output"] = network(**conditions)
        for hook in hooks:
            hook.remove()

    assert portrait.reference is not None
    reference = Denoiser(portrait.config.backbone())
    reference.load_state_dict(portrait.reference.state_dict())
    zero = torch.zeros(len(given["x"]))
    for name, network, timestep in (
        ("out.ref", reference, zero),
        ("out.main", portrait.denoiser, given["timesteps"]),
    ):
        found[f"{name}.timestep_sinusoid"] = sinusoid(timestep, portrait.config.width)
        found[f"{name}.time_embed"] = network.embed_time(timestep, torch.float32)
    frame = given["ref_latent"]
    watched(reference, "out.ref", noisy_BFCHW=frame, timestep_B=zero, text_BSD=given["ref_text"], motion_BFCHW=frame)
    bank = portrait.reference(frame[:, 0], given["ref_text"])
    found |= {f"out.ref.bank{i}": feature for i, feature in enumerate(bank)}
    found["out.main.audio_proj"] = portrait.denoiser.audio_tokens(given["audio_emb"])
    found["out.main.face_proj"] = portrait.denoiser.face_tokens(given["face_emb"])
    main = {
        "noisy_BFCHW": given["x"],
        "timestep_B": given["timesteps"],
        "text_BSD": given["text"],
        "motion_BFCHW": given["concat"],
        "reference": bank,
        "face_BC": given["face_emb"],
        "audio_BTWNC": given["audio_emb"],
    }
    watched(portrait.denoiser, "out.main", **main)
    for probe, change in (
        ("audio_emb_zero", {"audio_BTWNC": torch.zeros_like(given["audio_emb"])}),
        ("face_emb_zero", {"face_BC": torch.zeros_like(given["face_emb"])}),
        ("bank_zero", {"reference": [torch.zeros_like(feature) for feature in bank]}),
    ):
        found[f"out.probe.output_{probe}"] = portrait.denoiser(**{**main, **change})
    return found


def test_every_activation_of_the_released_code_is_reproduced(golden: dict[str, np.ndarray], published: Path) -> None:
    given = {name.removeprefix("in."): torch.from_numpy(a) for name, a in golden.items() if name.startswith("in.")}
    expected = {name: a for name, a in golden.items() if name.startswith("out.")}
    found = activations(loaded(published), given)
    # With the released code's own number of reference tokens, which is wrong at this size.
    fixed = activations(loaded(published, rotary_reference_tokens=1350), given)
    found["out.probe.output_with_ref_length_1350_default"] = fixed["out.main.output"]
    assert set(found) == set(expected)
    differences = {}
    for name, array in expected.items():
        value = found[name].numpy()
        assert value.size == array.size, (name, value.shape, array.shape)
        differences[name] = float(np.abs(value.reshape(array.shape) - array).max())
        assert np.abs(array).max() > 0.05, name
    assert max(differences.values()) <= TOLERANCE, differences


def test_the_small_golden_shapes_are_those_of_this_files_rule(golden: dict[str, np.ndarray]) -> None:
    described = json.loads((ROOT.parent / "shared/goldens/hallo3/denoiser_f13.json").read_text())
    assert {key: tuple(shape) for key, shape in described["keys"].items()} == published_shapes(*SMALL)


def test_the_published_names_and_shapes_are_those_of_this_files_rule() -> None:
    file = ROOT.parent / "shared/goldens/hallo3/fullsize_keys.json"
    if not file.is_file():
        pytest.skip("../shared/goldens/hallo3 is not there")
    keys = json.loads(file.read_text())
    networks = keys["s2.model"] | keys["s2.ref_model"]
    assert {key: tuple(shape) for key, (shape, _) in networks.items()} == published_shapes(*FULL)
    assert len(keys["s2.model"]) == 1462
    assert len(keys["s2.ref_model"]) == 776


def test_names_map_one_to_one_onto_the_published_checkpoint() -> None:
    """Every row of every published tensor is one row of ours: nothing twice, nothing left, no shape changed."""
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in published_shapes(*FULL).items()}
    assert hallo3.config_of(tensors) == preset("hallo3")
    ours = build(preset("hallo3"), "meta").state_dict()
    taken: dict[str, list[tuple[int, ...]]] = {}
    for name, value in ours.items():
        source = hallo3.source_of(name)
        taken.setdefault(source.name, []).append(source.parts)
        theirs = list(tensors[source.name].shape)
        assert list(value.shape) == [theirs[0] * len(source.parts) // source.of, *theirs[1:]], name
        assert source.of in (1, sum(map(len, taken[source.name])), 2, 3, 12)
    for name, parts in taken.items():
        every = sorted(part for group in parts for part in group)
        source = next(hallo3.source_of(own) for own in ours if hallo3.source_of(own).name == name)
        assert every == list(range(source.of)), name
    idle = set(tensors) - set(taken)
    assert {name.split("model.", 2)[-1] for name in idle} == {
        "mixins.pos_embed.freqs_sin",
        "mixins.pos_embed.freqs_cos",
        "transformer.position_embeddings.weight",
    }
    assert hallo3.unread(tensors, list(ours)) == []


def test_published_weights_survive_reading_and_writing_to_the_bit(published: Path) -> None:
    before = weights(published_shapes(*SMALL))
    again = hallo3.write(loaded(published).state_dict())
    idle = {name for name in before if "freqs_" in name or "position_embeddings" in name}
    assert set(again) == set(before) - idle
    assert all(torch.equal(again[name], before[name]) for name in again)


def test_a_query_is_the_first_third_and_a_text_shift_the_seventh_twelfth() -> None:
    whole = torch.arange(24.0)[:, None]
    read = hallo3.read(
        {
            "model.diffusion_model.transformer.layers.3.attention.query_key_value.weight": whole,
            "model.diffusion_model.mixins.adaln_layer.adaLN_modulations.3.1.weight": whole,
        },
        [f"denoiser.transformer_blocks.3.{name}.weight" for name in ("attn1.to_q", "attn1.to_v", "norm1.linear")],
    )
    q, v, norm = (value[:, 0].tolist() for value in read.values())
    assert (q, v) == (list(range(8)), list(range(16, 24)))
    assert norm == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]


def test_names_nobody_knows_are_reported() -> None:
    names = list(build(small(compat="hallo3"), "meta").state_dict())
    stranger = "model.diffusion_model.transformer.layers.0.lips.weight"
    assert hallo3.unread({stranger: torch.zeros(1), "first_stage_model.x": torch.zeros(1)}, names) == [stranger]


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 13])
def test_other_lengths_and_batches_are_what_their_clips_are_alone(frames: int) -> None:
    config = small(compat="hallo3", latent_frames=13)
    portrait = shaken(build(config))
    given = inputs(config, batch=3, frames=frames)
    together = portrait(given.noisy, given.timestep, given.text, **given.given())
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in given.given().items()}
        alone = portrait(given.noisy[row : row + 1], given.timestep[row : row + 1], given.text[row : row + 1], **one)
        assert (together[row : row + 1] - alone).abs().max() < TOLERANCE


@torch.no_grad()
def test_an_even_number_of_frames_has_an_even_number_of_latent_frames() -> None:
    config = small(compat="hallo3", latent_frames=13)
    portrait = shaken(build(config))
    given = inputs(config, frames=12)
    found = portrait(given.noisy, given.timestep, given.text, **given.given(audio_BTWNC=torch.randn(2, 48, 5, 2, 16)))
    assert found.shape == given.noisy.shape
