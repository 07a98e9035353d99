"""Reading and writing weights: nothing lost, nothing ignored, nothing run, one copy in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file

from model import checkpoint, safetensor_shards
from model.checkpoint import CheckpointError
from model.cogvideox_layout import config_of
from model.portrait import build
from model.transformer import Denoiser
from tests.conftest import ROOT
from tests.model.networks import inputs, shaken, small


def diffusers_model(**changes: Any) -> CogVideoXTransformer3DModel:
    """A small CogVideoX-5B-I2V, with the backbone of `small(learned_positions=True)`."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "time_embed_dim": 32,
        "text_embed_dim": 24,
        "num_layers": 2,
        "max_text_seq_length": 10,
        "in_channels": 8,
        "out_channels": 4,
        "sample_height": 8,
        "sample_width": 12,
        "sample_frames": 9,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
    }
    return shaken(CogVideoXTransformer3DModel(**{**settings, **changes}), seed=4)


CONFIG = small(learned_positions=True)


@pytest.fixture(scope="module")
def cogvideox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """diffusers' own folder, in several files."""
    folder = tmp_path_factory.mktemp("cogvideox") / "transformer"
    diffusers_model().save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def test_diffusers_weights_start_denoiser_and_reference_network_alike(cogvideox: Path) -> None:
    portrait = build(CONFIG, "meta")
    loaded = checkpoint.load(portrait, cogvideox)
    theirs = diffusers_model().state_dict()
    assert portrait.reference is not None
    assert equal(portrait.reference.state_dict(), theirs)
    own = portrait.denoiser.state_dict()
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    assert {name.removeprefix("denoiser.") for name in loaded.fresh} == set(own) - set(theirs)
    assert not any(value.is_meta for value in portrait.state_dict().values())
    given = inputs(CONFIG)
    output = portrait(given.noisy, given.timestep, given.text, **given.given())
    assert output.isfinite().all()
    with torch.no_grad():  # the two are not the same memory
        portrait.denoiser.proj_out.weight.zero_()
    assert torch.equal(portrait.reference.proj_out.weight, theirs["proj_out.weight"])


def test_a_pipeline_folder_is_as_good_as_its_transformer(cogvideox: Path) -> None:
    portrait = build(CONFIG, "meta")
    checkpoint.load(portrait, cogvideox.parent)
    assert torch.equal(portrait.denoiser.proj_out.weight, diffusers_model().proj_out.weight)


@pytest.mark.parametrize(
    "changes",
    [{}, {"patch_size_t": 2, "ofs_embed_dim": 32, "use_learned_positional_embeddings": False}],
    ids=["1.0", "1.5"],
)
def test_through_diffusers_layout_and_back_to_the_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    before = diffusers_model(**changes)
    denoiser = Denoiser(config_of(before.config))
    denoiser.load_state_dict(before.state_dict())
    assert checkpoint.export(denoiser, tmp_path / "out") == []
    after = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "out")
    assert equal(after.state_dict(), before.state_dict())
    named = {key: value for key, value in before.config.items() if not key.startswith("_")}
    assert {key: after.config[key] for key in named} == named


def test_export_says_what_it_leaves_behind(tmp_path: Path) -> None:
    portrait = shaken(build(CONFIG))
    left = checkpoint.export(portrait.denoiser, tmp_path / "out")
    assert left
    assert all("face_" in name or "audio_" in name for name in left)
    written = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert set(written) | set(left) == set(portrait.denoiser.state_dict())


def test_our_own_layout_gives_back_network_settings_and_note(tmp_path: Path) -> None:
    portrait = shaken(build(small(**{"audio.injection": "self"})))
    checkpoint.save(portrait, tmp_path / "ours", note={"step": 7})
    found = checkpoint.read(tmp_path / "ours")
    assert found.config == portrait.config
    assert found.note == {"step": 7}
    again = build(found.config, "meta")
    assert checkpoint.load(again, tmp_path / "ours").fresh == ()
    assert equal(again.state_dict(), portrait.state_dict())


def test_stage_two_takes_stage_one_and_makes_its_audio_new(tmp_path: Path) -> None:
    first = shaken(build(small(**{"audio.injection": "none"})))
    checkpoint.save(first, tmp_path / "stage1")
    second = build(small(), "meta")
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(second, tmp_path / "stage1")
    assert "missing:\n" in str(refused.value)
    assert "  denoiser.audio_tokens.proj1: 2 tensors" in str(refused.value)
    assert "denoiser.transformer_blocks.*.audio_attention.to_q: 4 tensors" in str(refused.value)
    loaded = checkpoint.load(second, tmp_path / "stage1", fresh=["*.audio_*"])
    assert loaded.fresh
    assert all("audio_" in name for name in loaded.fresh)
    given = inputs(second.config)
    with torch.no_grad():
        expected = first(given.noisy, given.timestep, given.text, **given.given(audio_BTWNC=None))
        assert torch.equal(second(given.noisy, given.timestep, given.text, **given.given()), expected)


def test_left_over_names_and_other_sizes_are_listed_by_module(tmp_path: Path) -> None:
    checkpoint.save(shaken(build(small())), tmp_path / "ours")
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(build(small(identity="none"), "meta"), tmp_path / "ours")
    assert "unexpected:\n" in str(refused.value)
    assert "  denoiser.face_tokens.proj: 2 tensors" in str(refused.value)
    assert "  reference.transformer_blocks.*.attn1.to_q: 4 tensors" in str(refused.value)
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(build(small(text_dim=32), "meta"), tmp_path / "ours")
    assert "denoiser.patch_embed.text_proj.weight: [64, 24], not [64, 32]" in str(refused.value)
    assert "the networks differ in: text_dim" in str(refused.value)


def test_one_copy_is_made_in_memory(tmp_path: Path) -> None:
    """Loaded on the meta device, 170 MB of weights stay mapped from their file: hardly any memory is taken."""
    config = small(width=768, heads=12, layers=5, time_dim=64, identity="none", **{"audio.injection": "none"})
    checkpoint.save(build(config), tmp_path / "ours")
    size = sum(file.stat().st_size for file in (tmp_path / "ours").glob("*.safetensors"))
    assert size > 150e6
    script = (
        "import sys; from pathlib import Path; from model import checkpoint; from model.portrait import build\n"
        "def taken(): return {line.split(':')[0]: int(line.split()[1]) * 1024 for line in "
        "Path('/proc/self/status').read_text().splitlines() if line.startswith('Rss')}\n"
        "config = checkpoint.read(sys.argv[1]).config; portrait = build(config, 'meta'); before = taken()\n"
        "checkpoint.load(portrait, sys.argv[1])\n"
        "total = sum(float(value.sum()) for value in portrait.state_dict().values()); after = taken()\n"
        "print(after['RssAnon'] - before['RssAnon'], after['RssFile'] - before['RssFile'])"
    )
    run = subprocess.run([sys.executable, "-c", script, tmp_path / "ours"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    own, mapped = map(int, run.stdout.split())
    assert own < 0.1 * size, (own, size)
    assert mapped > 0.8 * size  # it was all read, from the map


class Harmful:
    """What unpickling would run."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_a_file_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    torch.save({"module": {}, "extra": Harmful(tmp_path / "harm")}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors, and is not opened"):
        checkpoint.read(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_what_cannot_be_read_is_named(tmp_path: Path, cogvideox: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such file or folder"):
        checkpoint.read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"expected a config\.json of CogVideoXTransformer3DModel"):
        checkpoint.read(tmp_path)
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CheckpointError, match=r"not readable as a torch file|holds more than tensors"):
        checkpoint.read(tmp_path)

    for name, spoil, what in (
        ("cut", lambda folder: cut(next(folder.glob("*00001-of*.safetensors"))), "not readable as safetensors"),
        ("gone", lambda folder: next(folder.glob("*00002-of*.safetensors")).unlink(), "no such file"),
        ("out", climb, "is not a file of this folder"),
        ("other", other_kind, "norm_eps=0.1, where this network has 1e-05"),
        ("broken", lambda folder: (folder / "config.json").write_text("{"), "not a network of this kind"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in cogvideox.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        spoil(folder)
        with pytest.raises(CheckpointError, match=what):
            checkpoint.load(build(CONFIG, "meta"), folder)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def climb(folder: Path) -> None:
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["proj_out.bias"] = "../cogvideox/secret.safetensors"
    index.write_text(json.dumps(content))


def other_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"norm_eps": 0.1}))


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    portrait = build(small())
    checkpoint.save(portrait, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="is there already; name a new folder"):
        checkpoint.save(portrait, tmp_path / "ours")


def test_a_write_that_fails_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensor_shards, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(build(small()), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    monkeypatch.undo()
    checkpoint.save(build(small()), tmp_path / "ours")
    assert checkpoint.read(tmp_path / "ours").layout == "talkreel"


def test_shards_hold_what_was_written_in_files_of_the_asked_size(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(10)}
    safetensor_shards.write(tmp_path, "model", tensors, shard_bytes=1000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    assert equal(safetensor_shards.read(tmp_path, "model"), tensors)


def test_on_the_command_line_hallo3_becomes_diffusers_and_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(*arguments: object) -> tuple[int, str, str]:
        code = checkpoint.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    published = {"width": 128, "latent_frames": 13, "latent_channels": 16, "condition_channels": 16}
    config = small(compat="hallo3", learned_positions=True, **published)
    portrait = shaken(build(config))
    checkpoint.save(portrait, tmp_path / "ours")
    assert called("convert", tmp_path / "ours", tmp_path / "published", "--layout", "hallo3")[0] == 0
    code, said, _ = called("inspect", tmp_path / "published")
    assert code == 0
    assert "hallo3 layout" in said
    assert "  text_length=10\n" in said
    assert "reference.transformer_blocks.*.attn1.to_q: 4 tensors, 0.033 M, float32" in said

    to_diffusers = ("--layout", "diffusers", "--network", "reference")
    code, said, _ = called("convert", tmp_path / "published", tmp_path / "cog", *to_diffusers)
    assert code == 0
    assert "left behind" in said
    assert "denoiser.face_tokens.proj: 2 tensors" in said
    assert portrait.reference is not None
    theirs = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "cog").state_dict()
    assert equal(theirs, portrait.reference.state_dict())


def test_the_script_ends_with_one_line_where_there_is_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "model/checkpoint.py", "inspect", str(tmp_path / "nothing")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == f"error: {tmp_path / 'nothing'}: no such file or folder\n"


def test_a_missing_tensor_of_cogvideox_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    diffusers_model().save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(file).items() if "blocks.1.ff" not in name}
    save_file(tensors | {"transformer_blocks.1.lips.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(build(CONFIG, "meta"), folder)
    assert "missing:\n  denoiser.transformer_blocks.*.ff.net.0.proj: 2 tensors" in str(refused.value)
    assert "denoiser.transformer_blocks.*.lips: 1 tensor\n" in str(refused.value)


def test_weights_may_change_their_type_on_the_way_in(cogvideox: Path) -> None:
    portrait = build(CONFIG, "meta", torch.bfloat16)
    checkpoint.load(portrait, cogvideox, dtype=torch.bfloat16)
    assert {value.dtype for value in portrait.state_dict().values()} == {torch.bfloat16}
