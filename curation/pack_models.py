"""Whether the models that packing is to use can be used: looked at before the first byte is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from curation.captions import CaptionError, Captions
from curation.config import LATENTS, PackConfig
from curation.pipeline import JobError
from model import pretrained, weights
from model.encoders.tokens import LENGTH, Vocabulary


def check(config: PackConfig) -> None:
    """Look at the models, as far as that takes neither the hub nor the loading of a large one.

    What is beyond that, the workers find out: weights of another network, a hub without an answer, a device that is
    not there. Raises WeightsError or JobError: what cannot be used, what to do.
    """
    for name in config.models():
        weights.path(name)
    try:
        Captions(config.captions)
        for source, part in _published(config):
            if (place := pretrained.local(source)) is not None:
                pretrained.check(pretrained.part(place, part))
                if part == "text_encoder":
                    Vocabulary.of(pretrained.part(place, "tokenizer"), LENGTH)
    except (CaptionError, pretrained.PretrainedError) as error:
        raise JobError(str(error)) from error
    if "audio" in config.contents:
        _check_sound(config)
    if "face" in config.contents and config.identity == "insightface":
        from model.encoders.face import InsightFace

        try:
            InsightFace(Path(config.insightface))
        except (FileNotFoundError, ValueError) as error:
            raise JobError(str(error)) from error


def _published(config: PackConfig) -> Iterator[tuple[str, str]]:
    """Sources that are named, and the part with weights that is needed of each."""
    if LATENTS & set(config.contents) and config.codec == "cogvideox" and config.codec_source:
        yield config.codec_source, "vae"
    if "audio" in config.contents and config.speech == "wav2vec2" and config.speech_source:
        yield config.speech_source, ""
    if "text" in config.contents and config.text_source:
        yield config.text_source, "text_encoder" if config.text == "t5" else ""


def _check_sound(config: PackConfig) -> None:
    if config.speech == "whisper" and config.speech_source and not Path(config.speech_source).is_file():
        raise JobError(
            f"speech_source={config.speech_source}: no such file; it is the model.bin of a CTranslate2 Whisper"
        )
    if config.vocals:
        from model.encoders.speech import FormatError
        from model.encoders.vocals import VocalSeparator

        try:
            VocalSeparator(Path(config.vocals), config.vocals_fft)
        except FormatError as error:
            raise JobError(str(error)) from error
