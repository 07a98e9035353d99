"""What a network wants of packed samples, and whether the shards have it: found out before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model import codecs
from model.codecs import GROUP, SPATIAL, frames_for
from model.config import ModelConfig
from training.shards import DataError, Index


@dataclass(frozen=True)
class Layout:
    """Where things lie in a packed sample. frames, motion_frames, margin: of its window, of what is before it, of its
    speech at either end."""

    frames: int
    motion_frames: int
    margin: int

    @staticmethod
    def of(index: Index) -> Layout:
        """Raises DataError for an index that does not say."""
        try:
            sizes = [index.settings[name] for name in ("frames", "motion_frames", "audio_margin")]
        except KeyError as error:
            raise DataError(f"{index.place}/index.json: its settings lack {error}; pack again") from error
        return Layout(*sizes)


@dataclass(frozen=True)
class Demand:
    """A length that one of a sample's arrays must have (at_least: or more). setting: of the network, that says so."""

    ending: str
    axis: int
    length: int
    setting: str = ""
    at_least: bool = False

    def unmet(self, shape: list[int | None]) -> bool:
        if not -len(shape) <= self.axis < len(shape):
            return True
        length = shape[self.axis]
        return length is not None and (length < self.length if self.at_least else length != self.length)


def as_released(network: ModelConfig) -> bool:
    """Whether its motion is the released code's: a picture and the window's first frames, encoded as one clip."""
    return network.compat == "hallo3" and network.condition_channels > 0


def fills(index: Index, network: ModelConfig) -> bool:
    """Whether every text fills the room that the network has for it, as T5's do: nothing is ever padded, or masked.

    It follows from the index alone, so that all ranks run the same program in every step.
    """
    shape = index.members.get("text.npy", {}).get("shape") or [None]
    return shape[0] is not None and shape[0] >= network.text_length


def demands(network: ModelConfig, encode: bool) -> Iterator[Demand]:
    """What a network wants of the arrays. encode: latents are made of the stored video."""

    def pictures(ending: str, count: int, setting: str, channels: str = "latent_channels") -> Iterator[Demand]:
        yield Demand(ending, 0, count, setting, at_least=True)
        for axis, name in enumerate((channels, "latent_height", "latent_width"), 1):
            yield Demand(ending, axis, getattr(network, name), name)

    if not encode:
        yield from pictures("latent.npy", network.latent_frames, "latent_frames")
        if network.condition_channels:
            yield from pictures("motion.npy", network.motion.frames, "motion.frames", "condition_channels")
    if network.has_reference or (encode and as_released(network)):
        yield from pictures("reference.npy", 1, "")
    if network.has_face:
        yield Demand("face.npy", -1, network.face_dim, "face_dim")
    if network.has_audio:
        yield Demand("audio.npy", 1, network.audio.layers, "audio.layers")
        yield Demand("audio.npy", 2, network.audio.dim, "audio.dim")
    yield Demand("text.npy", 1, network.text_dim, "text_dim")


def check(index: Index, network: ModelConfig, encode: bool) -> None:
    """Raises DataError where the shards do not hold what the network takes, with the setting to change."""
    for demand in demands(network, encode):
        _held(index, demand.ending, network)
        shape = index.members[demand.ending].get("shape", [])
        if demand.unmet(shape):
            length = shape[demand.axis] if -len(shape) <= demand.axis < len(shape) else None
            change = f"network.changes=[{demand.setting}={length}] or " if demand.setting and length else ""
            wants = f"{demand.setting or 'it'} wants {'at least ' if demand.at_least else ''}{demand.length}"
            raise DataError(
                f"{index.place}: {demand.ending} is {shape}; the network's {wants} on axis {demand.axis}: "
                f"{change}other shards"
            )
    layout, frames = Layout.of(index), frames_for(network.latent_frames)
    if layout.frames < frames:
        raise DataError(
            f"{index.place}: windows of {layout.frames} frames, the network's are {frames}: "
            f"network.changes=[latent_frames={codecs.latents_for(layout.frames)}] or other shards"
        )
    if encode:
        _held(index, "mp4", network)
        _encodable(index, network, layout)


def _held(index: Index, ending: str, network: ModelConfig) -> None:
    if ending in index.members:
        return
    member = {"mp4": "video"}.get(ending, ending.removesuffix(".npy"))
    instead = {
        "latent": "; or data.latents=encode, where there is video",
        "motion": "; or data.latents=encode, where there is video",
        "audio": "; or network.changes=[audio.injection=none]",
        "face": f"; or another network.changes=[identity=…] than {network.identity}",
        "reference": f"; or another network.changes=[identity=…] than {network.identity}",
        "video": "; or data.latents=stored",
    }
    raise DataError(
        f"{index.place}: its samples hold no {ending}: pack with `{member}` among contents=…{instead.get(member, '')}"
    )


def _encodable(index: Index, network: ModelConfig, layout: Layout) -> None:
    motion = network.motion.frames if network.condition_channels else 0
    if as_released(network):
        if index.settings.get("codec") == "dct" and motion % GROUP:
            raise DataError(
                f"{index.place}: compat=hallo3 encodes the picture and {motion} motion frames as one clip, which "
                f"codec=dct cannot: pack with codec=cogvideox, or network.changes=[motion.frames={GROUP}]"
            )
    elif layout.motion_frames < motion:
        raise DataError(
            f"{index.place}: {layout.motion_frames} frames are stored before each window, network.changes="
            f"[motion.frames=…] asks for {network.motion.frames}"
        )

    stored = index.settings.get("height"), index.settings.get("width")
    if stored != (network.latent_height * SPATIAL, network.latent_width * SPATIAL):
        raise DataError(
            f"{index.place}: pictures of {stored[1]}x{stored[0]}; the network's latent_height and latent_width are for "
            f"{network.latent_width * SPATIAL}x{network.latent_height * SPATIAL}"
        )
