"""Chosen clips as the tree of files and the JSON that Hallo3's own trainer reads.

  videos/<clip>.mp4        the whole clip, cropped, with its sound
  face_mask/<clip>.png     white where the face is in any frame, else black; as large as the video
  face_emb/<clip>.pt       one face embedding, float32 [512] with identity=insightface
  audio_emb/<clip>.pt      speech embedding, float32 [frames, layers, width]; [frames, 12, 768] with speech=wav2vec2
  train.json, validation.json

The .pt files are single tensors (`torch.load(…, weights_only=True)`). A clip's files are deterministic, as samples are.
Layout: github.com/fudan-generative-vision/hallo3, its guide to training data.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from curation.plan import Shard
from curation.shards import Place, ShardError, staged
from curation.stages.pack import FPS, RATE, Pack, PackError, Subject
from manifests.schema import Clip, Track
from model import media
from model.crop import Crop


def files(pack: Pack, source: Path, clip: Clip, track: Track) -> Iterator[tuple[str, bytes]]:
    """The clip's files: name below the tree and content. Raises as Pack does."""
    subject = Subject.of(track)
    crop = pack.crop(source, clip, subject)
    sound_N = pack.sound(source, clip, len(subject))
    pack.references(clip, subject)  # (a clip that shows no face is refused)
    assert pack.recognise is not None and pack.speech is not None
    (drawn,) = pack.face_frames(clip, subject, 0)[:1]
    vector_D: np.ndarray | None = None

    def pictures() -> Iterator[np.ndarray]:
        nonlocal vector_D
        for index, image_HWC in enumerate(pack.frames(source, clip, subject)):
            if index == drawn:
                vector_D = pack.recognise(image_HWC, subject.points_T52[index])  # type: ignore[misc]
            yield crop.cut(image_HWC)

    with tempfile.TemporaryDirectory(prefix="talkreel-") as folder:
        video = Path(folder, "video.mp4")
        media.encode(video, pictures(), Fraction(FPS), sound_N, RATE, pack.config.crf, pack.config.preset)
        yield f"videos/{clip.clip_id}.mp4", video.read_bytes()
    if vector_D is None:
        raise PackError(f"frame {drawn}, whose face was to be embedded, is not there")
    yield f"face_mask/{clip.clip_id}.png", _png(union_mask(crop, subject))
    yield f"face_emb/{clip.clip_id}.pt", _tensor(vector_D.astype(np.float32))
    yield f"audio_emb/{clip.clip_id}.pt", _tensor(pack.states(source, clip, sound_N).astype(np.float32))


def union_mask(crop: Crop, subject: Subject) -> np.ndarray:
    """White, 255, where the face is in any frame, else 0: uint8 [H, W] of the picture made."""
    mask_HW = np.zeros((crop.made_height, crop.made_width), np.uint8)
    boxes_T4 = crop.place(subject.boxes_T4)
    for box in boxes_T4[np.isfinite(boxes_T4).all(axis=1)]:
        left, top = np.floor(box[:2]).astype(int).clip(0)
        right, bottom = np.ceil(box[2:]).astype(int).clip(0)
        mask_HW[top:bottom, left:right] = 255
    return mask_HW


def entry(place: Place, clip: Clip, caption: str) -> dict[str, Any]:
    """The clip's entry in the JSON: local paths are absolute, as the trainer may be started anywhere."""
    root = place.root if place.is_local else place.name
    return {
        "video_path": f"{root}/videos/{clip.clip_id}.mp4",
        "face_mask_union_path": f"{root}/face_mask/{clip.clip_id}.png",
        "face_emb_path": f"{root}/face_emb/{clip.clip_id}.pt",
        "vocals_emb_base_all": f"{root}/audio_emb/{clip.clip_id}.pt",
        "caption": caption,
    }


def listed(place: Place, shard: Shard, absent: Collection[str]) -> int:
    """Write the JSON of one split out of its clips' staged entries; returns how many there are.

    absent: clips that failed. Raises ShardError where another one is missing.
    """
    entries = []
    for window in shard.windows:
        if window.clip_id not in absent:
            content = place.read(staged(shard.name, window.key))
            if content is None:
                raise ShardError(f"{place.name}: {window.clip_id} is missing: give the same command again")
            entries.append(json.loads(content))
    text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    place.publish(f"{shard.split}.json", text.encode("utf-8", "backslashreplace"))
    return len(entries)


def unlisted(place: Place, shard: Shard) -> None:
    """Stage the entries of one split's JSON again, so that others may be added."""
    known = {Path(row["video_path"]).stem: row for row in json.loads(place.read(f"{shard.split}.json") or b"[]")}
    for window in shard.windows:
        if window.clip_id in known:
            place.publish(staged(shard.name, window.key), json.dumps(known[window.clip_id]).encode())


def _png(mask_HW: np.ndarray) -> bytes:
    done, content = cv2.imencode(".png", mask_HW)
    assert done
    return content.tobytes()


def _tensor(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(array)), content)
    return content.getvalue()
