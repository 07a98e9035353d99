"""The voice in a sound, without music and noise: an MDX-Net separator (Kim et al. 2021, arXiv 2111.12203).

Hallo and Hallo3 separate speech with Kim_Vocal_2.onnx, through the package audio-separator, before they embed it. Such
a network takes a spectrogram and gives that of the voice. What goes in, and what becomes of it, is what that package
does (github.com/nomadkaraoke/python-audio-separator, architectures/mdx_separator.py), but for two things: long sound
is cut where windows overlap instead of faded over, and all frames lie on one grid, so that none sees a window's edge.

N: sample. C: channel, left and right. F: frequency bin. T: frame of the spectrogram. W: sample of a frame.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch

from model.encoders.speech import RATE as SPEECH
from model.encoders.speech import FormatError

RATE = 44_100
"""Samples a second that such networks hear."""
HOP = 1024
"""Samples from one frame to the next."""
LOUDEST = 0.9
"""Louder sound is separated at this peak."""
RUMBLE = 3
"""Bins from 0 Hz on that the network does not get."""
PLANES = 4
"""What the network sees of a bin: real and imaginary part, left and then right."""


class Published(NamedTuple):
    """What a network's file does not say. fft: samples of a frame; gain: brings the voice to its loudness."""

    name: str
    fft: int
    gain: float


# By the file's sha256; fft and gain as Ultimate Vocal Remover lists them (model_data_new.json).
KNOWN = {
    "ce74ef3b6a6024ce44211a07be9cf8bc6d87728cc852a68ab34eb8e58cde9c8b": Published("Kim_Vocal_2", 7680, 1.009),
}


class VocalSeparator:
    """Takes the voice out of a sound. sha256: of the network's file."""

    def __init__(self, model: Path, fft: int = 0, threads: int = 1) -> None:
        """model: an MDX-Net in ONNX, [n, 4, F, T] -> the same, that gives the voice (others give the music).

        fft: samples of its frames, `mdx_n_fft_scale_set` in Ultimate Vocal Remover's list; 0 where it is one of KNOWN.
        threads: of the network. Raises FormatError, which says what to do, where the file is something else.
        """
        if not model.is_file():
            raise FormatError(f"{model}: no such file; it should be an MDX-Net separator, as Kim_Vocal_2.onnx")
        with model.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # its errors are raised
        try:
            self._network = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each of its reasons, and no common one
            raise FormatError(f"{model}: no network that onnxruntime can run: {str(error).splitlines()[0]}") from error
        self._input, self.bins, self.frames = _shape(model, self._network.get_inputs(), self._network.get_outputs())
        known = KNOWN.get(self.sha256)
        if not fft and known is None:
            raise FormatError(
                f"{model}: not {', '.join(one.name for one in KNOWN.values())}; say how long its frames are "
                "(mdx_n_fft_scale_set in Ultimate Vocal Remover's list of models; vocals_fft=…)"
            )
        self.fft = fft or (known.fft if known else 0)
        self.gain = known.gain if known else 1.0
        if self.fft % 2 or self.fft < 2 * HOP or self.bins > self.fft // 2 + 1:
            raise FormatError(f"{model}: frames of {self.fft} samples cannot be: it takes {self.bins} frequencies")
        self._window_W = torch.hann_window(self.fft)

    def __call__(self, sound_CN: np.ndarray) -> np.ndarray:
        """The voice, as speech encoders hear it: float32 [ceil(N × 160 / 441)] at 16 kHz, mono.

        sound_CN: float32 at 44.1 kHz, [2, N], or [N], which both sides then hear. Apart from a few numbers a sample,
        memory does not grow with the sound.
        """
        from scipy import signal  # takes longer to import than all else here

        sound_CN = np.broadcast_to(sound_CN, (2, sound_CN.shape[-1]))
        count = sound_CN.shape[1]
        if not count:
            return np.zeros(0, np.float32)
        scale = min(1.0, LOUDEST / max(float(np.abs(sound_CN).max()), LOUDEST))
        # Frame t begins at sample t HOP - fft: the first lies before the sound, and the last ends behind it.
        total = (count - 1 + self.fft) // HOP + 1
        length = HOP * (max(total, self.frames) - 1) + self.fft
        padded_CN = np.zeros((2, length + -length % HOP), np.float32)
        padded_CN[:, self.fft : self.fft + count] = sound_CN * np.float32(scale)
        voice_N = np.zeros(padded_CN.shape[1], np.float32)
        for start, first, last in windows(total, self.frames):
            heard_CN = padded_CN[:, HOP * start : HOP * (start + self.frames - 1) + self.fft]
            (voice_1PFT,) = self._network.run(None, {self._input: self._planes(heard_CN)})
            for frame, wave_W in enumerate(self._waves(voice_1PFT, first - start, last - start), first):
                voice_N[HOP * frame : HOP * frame + self.fft] += wave_W
        voice_N.reshape(-1, HOP)[:] *= self.gain / scale / self._weights()
        voice_N = voice_N[self.fft : self.fft + count]
        return np.asarray(signal.resample_poly(voice_N, SPEECH // 100, RATE // 100), np.float32)

    def _planes(self, heard_CN: np.ndarray) -> np.ndarray:
        """The spectrogram of one window as the network takes it: float32 [1, 4, F, T]."""
        spectrum_CFT = torch.stft(
            torch.from_numpy(heard_CN), self.fft, HOP, window=self._window_W, center=False, return_complex=True
        )
        planes_CPFT = torch.view_as_real(spectrum_CFT[:, : self.bins]).permute(0, 3, 1, 2).contiguous()
        planes_CPFT[:, :, :RUMBLE] = 0
        return planes_CPFT.reshape(1, PLANES, self.bins, self.frames).numpy()

    def _waves(self, voice_1PFT: np.ndarray, first: int, last: int) -> np.ndarray:
        """Frames of the mean of both sides, faded in and out: float32 [last - first, W]. Bins not there are 0."""
        planes_2FT = torch.from_numpy(voice_1PFT[..., first:last]).reshape(2, 2, self.bins, -1).mean(dim=0)
        spectrum_TF = torch.complex(planes_2FT[0], planes_2FT[1]).T
        return (torch.fft.irfft(spectrum_TF, self.fft) * self._window_W).numpy()

    def _weights(self) -> np.ndarray:
        """What frames faded twice add up to, at each sample of a hop: [HOP]."""
        faded_W = self._window_W.double().square().numpy()
        return np.pad(faded_W, (0, -self.fft % HOP)).reshape(-1, HOP).sum(axis=0)


def windows(count: int, length: int) -> list[tuple[int, int, int]]:
    """Where windows of so many frames start, and the first and last (exclusive) frame that is taken from each.

    Two overlap by a quarter or more, and the cut lies in the middle of that. The last ends with the sound.
    """
    if count <= length:
        return [(0, 0, count)]
    starts = [*range(0, count - length, length - 2 * (length // 8)), count - length]
    cuts = [(one + other + length) // 2 for one, other in itertools.pairwise(starts)]
    return list(zip(starts, [0, *cuts], [*cuts, count], strict=True))


def _shape(model: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[str, int, int]:
    """The name of the network's input, its frequencies and frames; raises FormatError where it is no MDX-Net."""
    taken, given = [*inputs, *outputs][0].shape, outputs[0].shape
    fits = (
        len(inputs) == len(outputs) == 1
        and {value.type for value in (*inputs, *outputs)} == {"tensor(float)"}
        and all(isinstance(size, int) for size in taken[1:])
        and (len(taken), taken[1:2], taken[1:]) == (4, [PLANES], given[1:])
        and taken[0] in (1, None, str(taken[0]))  # as many at once as one likes, or one
        and taken[2] > RUMBLE
    )
    if not fits:
        said = " -> ".join(
            ", ".join(f"{value.type} {value.shape}" for value in values) or "nothing" for values in (inputs, outputs)
        )
        raise FormatError(f"{model}: no MDX-Net separator, float [n, 4, frequencies, frames] -> the same: {said}")
    return inputs[0].name, taken[2], taken[3]
