"""Folders of packed shards with made-up samples: small ones for any network, written as curation writes them.

    place = made(tmp_path, samples=12, network=network)                       # numbers without meaning
    place = made(tmp_path, samples=12, network=network, latent=mouth)         # latents that follow the sound

`latent` is called with a sample's key, its speech [T + 2·margin, N, C] and its latents without meaning [F, C, h, w]; it
gives the latents that are packed. Everything about a sample is a function of its key and of `seed`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from curation.plan import Shard, Window
from curation.shards import Place, archived, assemble, npy, staged, write_index
from model import media
from model.codecs import SPATIAL, frames_for
from model.config import ModelConfig, preset
from model.encoders.speech import FPS

CONTENTS = ("latent", "motion", "reference", "face", "audio", "text", "mask")
RATE = 16_000
BOTH = 2
"""Boxes of a frame: face and lips."""

FACES = [[10 + n, 12, 40, 44 + n] for n in range(4)]
"""Where the face is in each reference, pixels, as the facts of every sample say."""

Latent = Callable[[str, np.ndarray, np.ndarray], np.ndarray]
"""(key, speech, latents without meaning) -> latents to be packed."""


def made(
    folder: Path | str,
    *,
    samples: int = 8,
    network: ModelConfig | str = "tiny",
    latent: Latent | None = None,
    contents: Sequence[str] = CONTENTS,
    windows: int = 1,
    per_shard: int = 4,
    split: str = "train",
    validation: int = 0,
    latent_frames: int = 0,
    motion_frames: int = 2,
    references: int = 4,
    margin: int = 0,
    faces: int = 0,
    tokens: int = 4,
    filled: int = 0,
    nothing: bool = True,
    seed: int = 0,
    spoilt: Mapping[str, Mapping[str, bytes | None]] | None = None,
) -> str:
    """Write a folder of shards that fit a network; returns its name, for `data.shards`.

    windows: samples of a clip; keys are `clip000-000000`, `clip000-000049` …. validation: samples of a split
    `validation` beside them, of clips of their own. latent_frames, margin: 0 as the network has them. faces: embeddings
    of a sample (0: one, alone). tokens: of the shortest text; texts differ in length. filled: all texts have so many
    tokens, and so has that of nothing. nothing: write the empty caption's embedding, `nothing.npy`. spoilt: for some
    keys, members with other content (None: left out). contents may have `video`: real mp4 files, which take a moment
    each.
    """
    sizes = preset(network) if isinstance(network, str) else network
    Path(folder).mkdir(parents=True, exist_ok=True)
    frames, margin = latent_frames or sizes.latent_frames, margin or sizes.audio.window
    place = Place(str(folder))
    written, number = [], 0
    for part, count in ((split, samples), ("validation", validation)):
        keys = [Window(f"clip{number + n // windows:03d}", 49 * (n % windows)) for n in range(count)]
        number += -(-count // windows)
        for first in range(0, count, per_shard):
            shard = Shard(f"{part}-{first // per_shard:06d}", part, tuple(keys[first : first + per_shard]))
            for window in shard.windows:
                arrays = sample(
                    sizes, window.key, frames, motion_frames, references, margin, faces, tokens, seed, filled=filled
                )
                if latent is not None:
                    arrays["latent"] = latent(window.key, arrays["audio"], arrays["latent"]).astype(np.float16)
                packed: dict[str, bytes | None] = {"json": _facts(window, frames_for(frames), motion_frames, margin)}
                if "video" in contents:
                    packed["mp4"] = film(window.key, sizes, motion_frames + frames_for(frames), Path(folder), seed)
                packed |= {f"{name}.npy": npy(arrays[name]) for name in CONTENTS if name in contents}
                packed |= (spoilt or {}).get(window.key, {})
                kept = {ending: content for ending, content in packed.items() if content is not None}
                place.publish(staged(shard.name, window.key), archived(window.key, kept))
            written.append(assemble(place, shard, set()))
    settings = {
        "contents": list(contents),
        "frames": frames_for(frames),
        "motion_frames": motion_frames,
        "audio_margin": margin,
        "width": sizes.latent_width * SPATIAL,
        "height": sizes.latent_height * SPATIAL,
        "face": "all" if faces else "one",
        "codec": "dct",
        "speech": "whisper",
        "text": "minilm",
        "identity": "dlib",
    }
    write_index(
        place, {"version": "made-up", "settings": settings, "failures": []}, written, () if filled else ("text.npy",)
    )
    if nothing:
        Path(folder, "nothing.npy").write_bytes(npy(np.full((filled or 2, sizes.text_dim), 0.5, np.float16)))
    return str(folder)


def sample(
    network: ModelConfig,
    key: str,
    frames: int = 3,
    motion_frames: int = 2,
    references: int = 4,
    margin: int = 2,
    faces: int = 0,
    tokens: int = 4,
    seed: int = 0,
    filled: int = 0,
) -> dict[str, np.ndarray]:
    """The arrays of a sample; all but `mask` are noise. frames: latent frames."""
    random = np.random.default_rng([seed, *key.encode()])
    picture = (network.latent_channels, network.latent_height, network.latent_width)

    def noise(*shape: int, kind: type = np.float16) -> np.ndarray:
        return random.standard_normal(shape).astype(kind)

    boxes_T24 = np.zeros((frames_for(frames), BOTH, 4), np.float32)
    width, height = network.latent_width * SPATIAL, network.latent_height * SPATIAL
    boxes_T24[:, 0] = width / 4, height / 4, 3 * width / 4, 3 * height / 4
    boxes_T24[:, 1] = width / 3, height / 2, 2 * width / 3, 3 * height / 4
    boxes_T24[:, :, ::2] += np.arange(len(boxes_T24), dtype=np.float32)[:, None, None] / 4  # the head moves
    return {
        "latent": noise(frames, *picture),
        "motion": noise(motion_frames, *picture),
        "reference": noise(references, *picture),
        "face": noise(*((faces,) if faces else ()), network.face_dim, kind=np.float32),
        "audio": noise(frames_for(frames) + 2 * margin, network.audio.layers, network.audio.dim),
        "text": noise(filled or tokens + int(random.integers(3)), network.text_dim),
        "mask": boxes_T24,
    }


def film(key: str, network: ModelConfig, frames: int, folder: Path, seed: int = 0) -> bytes:
    """An mp4 whose frames can be told apart by their grey, with a tone: frame n is 16 + 4·n all over, up to 200."""
    width, height = network.latent_width * SPATIAL, network.latent_height * SPATIAL
    images = (np.full((height, width, 3), grey(n), np.uint8) for n in range(frames))
    random = np.random.default_rng([seed, *key.encode()])
    pitch = float(random.uniform(100, 400))
    sound = 0.2 * np.sin(2 * np.pi * pitch * np.arange(frames * RATE // FPS) / RATE)
    path = Path(folder, f".{key}.mp4")
    media.encode(path, images, Fraction(FPS), sound.astype(np.float32), RATE, 12, "ultrafast")
    content = path.read_bytes()
    path.unlink()
    return content


def grey(frame: int) -> int:
    return 16 + 4 * (frame % 46)


def _facts(window: Window, frames: int, motion_frames: int, margin: int) -> bytes:
    facts: dict[str, Any] = {
        "clip": {"clip_id": window.clip_id},
        "caption": f"a made-up caption of {window.clip_id}",
        "window": {
            "first": window.first,
            "frames": frames,
            "fps": FPS,
            "motion_frames": motion_frames,
            "audio_margin": margin,
            "sample_rate": RATE,
        },
        "reference": {"frames": list(range(len(FACES))), "faces": FACES},
    }
    return json.dumps(facts).encode()
