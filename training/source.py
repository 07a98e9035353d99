"""The shards that training reads from, checked against the network before the first step."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model import motion
from model.config import ModelConfig
from model.encoders import text
from model.pretrained import PretrainedError
from model.settings import SettingsError, option, required
from model.weights import WeightsError
from training import shards
from training.batch import Batch
from training.demands import Layout, as_released, check, fills
from training.members import BrokenSampleError, array
from training.order import Order
from training.samples import Prepare, Sample
from training.shards import SPLITS, DataError, Index, Reader

NOTHING = "nothing.npy"
"""Beside the shards: the embedding of the empty caption [S, D], where whoever packed them has written it."""
_NAMED = 3


@dataclass(frozen=True)
class DataConfig:
    """Section `data` of the settings. Shares are of the samples; see docs/paper-and-code.md for where they are from."""

    shards: str = required("what curation/pack.py wrote: a folder, or s3://")
    split: str = option("train", "which of its shards are trained on", SPLITS)
    latents: str = option(
        "stored",
        "stored, or encode: of windows that begin at a frame drawn for each step, out of the stored video",
        ("stored", "encode"),
    )
    shuffle: int = option(1000, "samples that are shuffled among each other, beside the shards; 1: as they lie")
    workers: int = option(2, "processes of each rank that read ahead; 0: the rank reads itself, as it goes")
    prefetch: int = option(4, "steps that each of them reads ahead")
    read_ahead: int = option(8, "samples of a step that are read at once out of a bucket")
    timeout_s: float = option(600.0, "seconds after which a step whose samples do not come is given up")
    incomplete: bool = option(
        False, "train although shards are missing or cut short: others stand in for their samples"
    )
    drop_text: float = option(0.1, "share without their text (released code)")
    drop_audio: float = option(0.05, "share without their sound (paper, released code)")
    drop_reference: float = option(0.05, "share without their reference picture (released code)")
    drop_face: float = option(0.0, "share without their face embedding (released code: never)")
    drop_motion: float = option(0.05, "share without motion frames (released code)")
    mask_motion: float = option(
        0.25, "share of the motion frames' positions that are put out (paper; released code: 0.1 of their pixels)"
    )
    nothing: str = option(
        "empty",
        "what stands for a dropped text: the empty prompt's embedding, as sampling has it, or zeros (released code)",
        ("empty", "zeros"),
    )

    def check(self) -> None:
        """Raises SettingsError where a value makes no sense."""
        for name in ("drop_text", "drop_audio", "drop_reference", "drop_face", "drop_motion", "mask_motion"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"data.{name}={getattr(self, name)}: a share, from 0 to 1")
        for name, least in (("shuffle", 1), ("workers", 0), ("prefetch", 1), ("read_ahead", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"data.{name}={getattr(self, name)}: at least {least}")
        if self.timeout_s <= 0:
            raise SettingsError(f"data.timeout_s={self.timeout_s}: more than 0")


class Source:
    """The samples of a folder of shards, for a network. index: what is known of them."""

    def __init__(self, config: DataConfig, network: ModelConfig, seed: int = 0) -> None:
        """Reads the index alone. Raises DataError where it cannot be trained on, with what to change."""
        self.config, self.network, self.seed = config, network, seed
        self.index: Index = shards.read_index(config.shards, config.split)
        check(self.index, network, config.latents == "encode")
        if not config.incomplete and (wrong := shards.missing(self.index)):
            named = "; ".join(f"{name} {what}" for name, what in list(wrong.items())[:_NAMED])
            raise DataError(
                f"{self.index.place}: {len(wrong)} of {len(self.index.shards)} shards are not as packed: {named}; "
                "copy them again, or data.incomplete=true"
            )
        self.reader = Reader(self.index)
        self.prepare = Prepare(config, network, self.index, seed, _nothing(config, self.index, network))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def keys(self) -> list[str]:
        """Every sample's name."""
        return list(self.index.numbers)

    @property
    def version(self) -> str:
        """Names what is in the shards, wherever they lie."""
        facts = [self.index.version, self.index.split, *(shard.sha256 for shard in self.index.shards)]
        facts += [str(self.index.nothing["sha256"])] if self.index.nothing else []
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    @property
    def made_with(self) -> dict[str, str]:
        """The codec and the conditions' encoders that the samples were packed with, by role; a separator's sha256."""
        settings, weights = self.index.settings, self.index.weights
        named = {role: settings[role] for role in ("codec", "speech", "text", "identity") if role in settings}
        return named | {role: weights[role] for role in ("vocals",) if role in weights}

    def order(self) -> Order:
        return Order([len(shard.keys) for shard in self.index.shards], self.seed, self.config.shuffle)

    def batch(self, keys: Sequence[str]) -> Batch:
        """These samples, always the same of each and with nothing dropped. Raises DataError."""
        return Batch.of(0, range(len(keys)), [self._fixed(key) for key in keys])

    def _fixed(self, key: str) -> Sample:
        try:
            return self.prepare(key, self.reader.sample(self._number(key)), None)
        except BrokenSampleError as error:
            raise DataError(f"{self.index.place}: {key} {error}") from error

    def video(self, key: str) -> bytes | None:
        """A sample's mp4, which begins with the motion frames; None where there is none to be had."""
        if "mp4" not in self.index.members:
            return None
        try:
            content = self.reader.sample(self._number(key)).get("mp4")
        except BrokenSampleError:
            return None
        return None if content is None else bytes(content)

    def _number(self, key: str) -> int:
        try:
            return self.index.numbers[key]
        except KeyError:
            raise DataError(f"{self.index.place}: there is no sample {key} in data.split={self.index.split}") from None

    def line(self) -> str:
        """What there is, for people."""
        index = self.index
        models = [model if role != "vocals" else "a separator of voices" for role, model in self.made_with.items()]
        return (
            f"{index.place}: {len(index):,} samples of {index.split} in {len(index.shards)} shards, "
            f"{index.bytes / 1e9:.3f} GB, made with {', '.join(models)}"
        )

    def remarks(self) -> list[str]:
        """What whoever trains on them should know."""
        margin, said = Layout.of(self.index).margin, list[str]()
        if fills(self.index, self.network) and self.prepare.masks_text:
            said.append(f"{NOTHING} is shorter than the texts, which fill their room: attention is masked for its sake")
        if as_released(self.network) and not self.prepare.as_released:
            said.append(
                "compat=hallo3 is sampled with the picture and the window's first frames encoded as one clip, and with "
                "a reference that is black but for the face; stored are the frames before it, each encoded alone, and "
                "whole references: data.latents=encode trains on what sampling gives"
            )
        if self.prepare.as_released and self.config.mask_motion != motion.RELEASED_MASK:
            said.append(
                f"compat=hallo3 is sampled with {motion.RELEASED_MASK:g} of the motion's pixels put out; trained with "
                f"data.mask_motion={self.config.mask_motion:g}"
            )
        if self.network.has_audio and margin < self.network.audio.window:
            said.append(
                f"the sound goes on for {margin} frames beyond a window and the network listens for "
                f"{self.network.audio.window}: the outermost is repeated"
            )
        return said


def validation(config: DataConfig, network: ModelConfig, seed: int = 0) -> Source:
    """The samples of the split `validation`; where the shards have none, those that are trained on."""
    try:
        return Source(dataclasses.replace(config, split="validation"), network, seed)
    except shards.NoSamplesError:
        return Source(config, network, seed)


def _nothing(config: DataConfig, index: Index, network: ModelConfig) -> torch.Tensor | None:
    """What stands for a dropped text, float32 [S, D]; None: zeros, or that none is dropped."""
    if config.nothing == "zeros" or not config.drop_text:
        return None
    content, packed = shards.beside(index, NOTHING), index.nothing.get("sha256")
    if packed and (content is None or hashlib.sha256(content).hexdigest() != packed):
        wrong = "is not there" if content is None else "is not as it was packed"
        raise DataError(f"{index.place}/{NOTHING} {wrong}; copy it again, or data.nothing=zeros")
    if content is not None:
        try:
            found = torch.from_numpy(array(memoryview(bytearray(content)))).float()
        except BrokenSampleError as error:
            raise DataError(f"{index.place}/{NOTHING}: {error}; delete it") from error
    elif index.settings.get("text") == "minilm":
        found = _empty(index)
    else:
        raise DataError(
            f"{index.place}: what stands for a dropped text is not known: write the empty prompt's embedding as "
            f"{NOTHING} into that folder ([tokens, {network.text_dim}], float16), or data.nothing=zeros, or "
            "data.drop_text=0"
        )
    if found.ndim != 2 or found.shape[1] != network.text_dim or not found.isfinite().all():
        raise DataError(
            f"{index.place}: the empty prompt's embedding is {list(found.shape)}; [S, {network.text_dim}] is needed"
        )
    return found


def _empty(index: Index) -> torch.Tensor:
    """The empty prompt, as MiniLM has it."""
    try:
        encoder = text.load("minilm", index.settings.get("text_source", ""))
    except (WeightsError, PretrainedError) as error:
        raise DataError(
            f"what stands for a dropped text: {error}; or data.nothing=zeros, or data.drop_text=0"
        ) from error
    return torch.from_numpy(encoder.encode("")).float()
