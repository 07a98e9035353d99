"""What is to be packed, before anything is: which clips, into which shards, and what the index will say of them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import shards
from curation.config import PackConfig
from curation.inputs import sha256
from curation.pack_step import PackStep
from curation.plan import Chosen, Group, planned, window_starts
from manifests import selection
from manifests.schema import Track, short_hash
from manifests.store import ManifestStore
from model import weights
from model.encoders.tokens import LENGTH

_WHOLE = 1 << 40  # samples in a shard, where a split is one list
_TREE = ["video", "face", "audio", "mask"]  # what Hallo3's tree holds of a sample's contents
_RUNTIME = ("output", "shards", "dry_run", "retry", "resources", "ray", "device")
"""Settings that do not change what a sample is."""
# Bytes of a second of video as the defaults encode it, from the development footage; and of a vector's number.
_VIDEO_RATE, _HALF = 115_000, 2
_SPEECH = {"whisper": 5 * 384, "wav2vec2": 12 * 768}
_TEXT = {"minilm": 20 * 384, "t5": LENGTH * 4096}


@dataclass(frozen=True)
class Job:
    """What is to be packed, before anything is."""

    config: PackConfig
    clips: pa.Table
    groups: tuple[Group, ...]
    refused: Mapping[str, str]
    """Clips that make no sample, and why."""
    about: Mapping[str, Any]
    """What the index says beside the shards; `version` names the whole of it."""

    @property
    def samples(self) -> int:
        return sum(len(shard.windows) for group in self.groups for shard in group.shards)

    @property
    def shards(self) -> int:
        return sum(len(group.shards) for group in self.groups)


def planned_job(config: PackConfig) -> Job:
    """What a command asks for. Raises SelectionError or ManifestError when the selection cannot be used."""
    if config.format == "hallo3":
        config = dataclasses.replace(config, contents=_TREE, face="one")
    chosen = selection.read(config.output, config.selection)
    clips = chosen.clips.sort_by([("path", "ascending"), ("start_ticks", "ascending"), ("clip_id", "ascending")])
    frames = counted(ManifestStore(config.output), clips)
    if len(clips) and not frames:
        raise selection.SelectionError(
            f"selection {config.selection!r}: none of its {len(clips)} clips is in {config.output}/manifests with the "
            "face that it is bound to; the manifests were made anew since: choose again with manifests/filter.py"
        )
    refused: dict[str, str] = {}
    wanted: list[Chosen] = []
    lasts = config.frames if config.format == "webdataset" else 1
    for row in clips.select(["clip_id", "video_id", "split"]).to_pylist():
        count = frames.get(row["clip_id"])
        if count is None:
            refused[row["clip_id"]] = (
                "the manifests do not hold its face any more: choose again with manifests/filter.py"
            )
        elif not window_starts(count, lasts, lasts):
            refused[row["clip_id"]] = f"{count} frames at 25 fps; a window takes {lasts}"
        else:
            wanted.append(Chosen(row["clip_id"], row["video_id"], count, row["split"]))
    if config.format == "webdataset":
        per_shard = shards.samples_per_shard(sample_bytes(config), config.shard_mb)
        groups = planned(wanted, config.frames, config.stride, per_shard, config.mix_shards, config.seed)
    else:  # one list a split, with an entry a clip
        groups = planned([dataclasses.replace(clip, frames=1) for clip in wanted], 1, 1, _WHOLE, 1, config.seed)
    return Job(config, clips, tuple(groups), refused, _about(config, chosen, wanted))


def counted(store: ManifestStore, clips: pa.Table) -> dict[str, int]:
    """Frames of each clip at 25 fps, by the track of the face that it is bound to."""
    bound = dict(zip(clips["clip_id"].to_pylist(), clips["track"].to_pylist(), strict=True))
    found: dict[str, int] = {}
    for batch in store.batches(Track, ["clip_id", "track", "left"]):
        rows = zip(
            batch["clip_id"].to_pylist(),
            batch["track"].to_pylist(),
            pc.list_value_length(batch["left"]).to_pylist(),
            strict=True,
        )
        found |= {clip_id: length for clip_id, track, length in rows if bound.get(clip_id, -1) == track}
    return found


def sample_bytes(config: PackConfig) -> float:
    """About how large a sample is."""
    latents = (config.frames - 1) // 4 + 1
    latent = 16 * (config.width // 8) * (config.height // 8) * _HALF
    area = config.width * config.height / (720 * 480)
    sizes = {
        "video": (config.frames + config.motion_frames) / 25 * _VIDEO_RATE * area,
        "latent": latents * latent,
        "motion": config.motion_frames * latent,
        "reference": config.reference_frames * latent,
        "face": 2048.0 * (config.face_samples if config.face == "all" else 1),
        "audio": (config.frames + 2 * config.audio_margin) * _SPEECH[config.speech] * _HALF,
        "text": _TEXT[config.text] * _HALF,
        "mask": config.frames * 32.0,
    }
    return 4096 + sum(sizes[name] for name in config.contents)


def _about(config: PackConfig, chosen: selection.Selection, clips: Sequence[Chosen]) -> dict[str, Any]:
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _RUNTIME}
    digests = {name: weights.entry(name).sha256 for name in config.models()}
    if config.vocals and "audio" in config.contents:
        digests["vocals"] = sha256(config.vocals)
    packed = [f"{clip.clip_id} {clip.frames} {clip.split}" for clip in clips]
    origin = [chosen.recipe.hash, json.dumps(chosen.made, sort_keys=True)]  # what the clips' rows were made from
    return {
        "talkreel": _version(),
        "revision": PackStep.revision,
        "version": short_hash(PackStep.revision, json.dumps(settings), json.dumps(digests), *origin, *packed),
        "selection": chosen.name,
        "recipe": {
            "name": chosen.recipe.name,
            "hash": chosen.recipe.hash,
            "limits": [{"bound": str(limit.bound), "source": limit.source} for limit in chosen.recipe.limits],
        },
        "selected": chosen.made,
        "settings": settings,
        "weights": digests,
    }


def _version() -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("talkreel")
    return "unknown"


def refusals(job: Job) -> list[dict[str, Any]]:
    """The clips that make no sample, as the index lists them."""
    rows = job.clips.select(["clip_id", "path"]).to_pylist()
    return [
        {**row, "error": "Refused", "message": job.refused[row["clip_id"]]}
        for row in rows
        if row["clip_id"] in job.refused
    ]
