"""What is said, as vectors: a common door to the speech encoders, and the encoder of OpenAI's Whisper.

`load("whisper")` is the encoder below, `load("wav2vec2")` that of Hallo3; either gives states for each frame of video.

Whisper (Radford et al. 2022, arXiv 2212.04356): the weights come out of a CTranslate2 file, which holds names, shapes
and numbers and no code. Sound goes in at 16 kHz, states come out at 50 Hz; state t looks at the sound around t / 50 s.

The encoder learned on windows of 30 s, short sound followed by silence. Here a window is as long as its sound and
half a second of silence: for 6 s of speech that is a ninth of the price (0.5 instead of 4.1 ms per frame of video,
two blocks), and the states after block 2 differ from those before 30 s of silence by 12 % of their spread, after
block 4 by 18 % (neighbouring states: by 67 and 55 %). `after=POSITIONS` gives the full window and then the numbers
of `transformers`, to 1e-5.

N: sample. F: mel band, or frame of video. T: time. L: layer. D: width of a state.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model import weights

RATE = 16000
FPS = 25
"""Frames of video a second; a frame lasts two states."""
NAMES = ("whisper", "wav2vec2")
HOP = 160
"""Samples between two columns of the spectrogram; a state stands for two of them."""
STATE = 2 * HOP
FFT = 400
BANDS = 80
POSITIONS = 1500
"""States in 30 s, the longest window: the encoder knows no further positions."""
OVERLAP = 50
"""States computed beyond either end of a window and thrown away where longer sound is cut into windows."""
AFTER = 25
"""States of silence after the sound: with none, the convolutions would see its edge."""
HEAD = 64


class FormatError(Exception):
    """A file that is not the encoder it should be: which, what is wrong, what to do."""


class SpeechEncoder(Protocol):
    """Turns speech into states, one set a frame of video at 25 fps. layers, dim: states a frame, numbers a state."""

    name: str
    layers: int
    dim: int

    def frames(self, waveform_N: np.ndarray, frames: int) -> np.ndarray:
        """The states of so many frames: float32 [frames, layers, dim].

        waveform_N: float32 at 16 kHz, mono; frame f begins at sample 640 f. Missing sound is silence, and what is more
        than the frames need is not heard.
        """
        ...


def load(name: str, source: str = "", device: str | torch.device = "cpu") -> SpeechEncoder:
    """A speech encoder by name, ready to use.

    source: where it is not the one of `weights.yaml` (whisper: the file model.bin of CTranslate2) or the published one
    (wav2vec2: a folder or a repository of the hub). device: of wav2vec2; Whisper's small encoder runs on the CPU.
    Raises WeightsError, PretrainedError or FormatError, which say what to do, and ValueError for another name.
    """
    if name == "whisper":
        model = Path(source) if source else weights.path("whisper-tiny.en")
        if not model.is_file():
            raise FormatError(f"{model}: no such file; it should be the model.bin of a CTranslate2 Whisper")
        return WhisperEncoder(model, torch.get_num_threads())
    if name == "wav2vec2":
        from model import pretrained
        from model.encoders import wav2vec2

        return wav2vec2.Wav2Vec2(pretrained.folder(source or wav2vec2.PUBLISHED), device)
    raise ValueError(f"no speech encoder is called {name!r}; there is {' and '.join(NAMES)}")


class WhisperEncoder:
    """Turns speech into the hidden states of Whisper's encoder."""

    name = "whisper"

    def __init__(self, model: Path, threads: int = 1) -> None:
        """model: `model.bin` of a CTranslate2 Whisper. threads: of torch, for the whole process.

        Raises FormatError when the file is something else.
        """
        torch.set_num_threads(threads)
        self.network = Encoder.of(read_encoder(model), model)
        self.layers = len(self.network.layers) + 1
        self.dim = self.network.width

    def __call__(self, waveform_N: np.ndarray, blocks: int | None = None, after: int = AFTER) -> np.ndarray:
        """The states after the convolutions and after each of the first blocks.

        waveform_N: float32 at 16 kHz, mono, full scale ±1, of any length. blocks: how many to compute, 0 up to all
        of them (None). after: states of silence behind the sound (within 30 s).
        Returns float32 [blocks + 1, T, D], T = ceil(N / 320). The state after the very last block has gone through
        the closing layer norm, as `hidden_states` of transformers has.
        """
        depth = len(self.network.layers)
        blocks = depth if blocks is None else blocks
        if not 0 <= blocks <= depth:
            raise ValueError(f"{blocks} blocks asked for; this encoder has 0 to {depth}")
        count = math.ceil(len(waveform_N) / STATE)
        states_LTD = np.zeros((blocks + 1, count, self.network.width), np.float32)
        for first, last in windows(count):
            before, behind = max(0, first - OVERLAP), min(last + OVERLAP, count)
            length = min(behind - before + after, POSITIONS)
            mel_FT = log_mel(waveform_N[before * STATE : behind * STATE], 2 * length)
            with torch.inference_mode():
                window_LTD = self.network(torch.from_numpy(mel_FT), blocks).numpy()
            states_LTD[:, first:last] = window_LTD[:, first - before : last - before]
        return states_LTD

    def frames(self, waveform_N: np.ndarray, frames: int) -> np.ndarray:
        """The states of every layer for each frame of video: float32 [frames, layers, dim] (see `SpeechEncoder`).

        A frame lasts 40 ms and has the mean of the two states of that time.
        """
        sound_N = np.zeros(2 * frames * STATE, np.float32)
        heard_N = waveform_N[: len(sound_N)]
        sound_N[: len(heard_N)] = heard_N
        states_LFD = self(sound_N).reshape(self.layers, frames, 2, self.dim).mean(axis=2)
        return np.ascontiguousarray(states_LFD.transpose(1, 0, 2))


def windows(count: int) -> list[tuple[int, int]]:
    """First and last (exclusive) state of each window, as few and as even as their overlap allows."""
    if count <= POSITIONS:
        return [(0, count)] if count else []
    pieces = math.ceil(count / (POSITIONS - 2 * OVERLAP))
    ends = [round(piece * count / pieces) for piece in range(pieces + 1)]
    return list(itertools.pairwise(ends))


def log_mel(samples_N: np.ndarray, columns: int) -> np.ndarray:
    """Whisper's spectrogram: log10 of mel energies, at most 8 below the loudest, shifted and scaled to about ±1.

    samples_N: float32; silence follows up to columns × 160 samples.
    Returns float32 [BANDS, columns].
    """
    padded = np.zeros(columns * HOP, np.float32)
    padded[: len(samples_N)] = samples_N[: len(padded)]
    window = torch.hann_window(FFT)
    spectrum = torch.stft(torch.from_numpy(padded), FFT, HOP, window=window, return_complex=True)[:, :-1]
    energies_FT = mel_filters() @ spectrum.abs().square()
    log_FT = energies_FT.clamp(min=1e-10).log10()
    return ((torch.maximum(log_FT, log_FT.max() - 8) + 4) / 4).numpy()


@functools.cache
def mel_filters() -> torch.Tensor:
    """Triangles of equal area, evenly spaced on Slaney's mel scale from 0 to 8 kHz: [BANDS, FFT // 2 + 1].

    Slaney's Auditory Toolbox (1998): linear to 1 kHz (15 mel), 27 mel a factor of 6.4 above.
    """
    step = np.log(6.4) / 27
    mels = np.linspace(0, 15 + np.log(8) / step, BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)
    triangles = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clip(min=0)
    return torch.from_numpy((triangles * 2 / (high - low)).astype(np.float32))


class Encoder(nn.Module):
    """Two convolutions, which halve time, sinusoids for the position, and transformer blocks."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.conv1 = nn.Conv1d(BANDS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(POSITIONS, width))
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mel_FT: torch.Tensor, blocks: int) -> torch.Tensor:
        """States after 0 to `blocks` blocks: [blocks + 1, T / 2, D]."""
        x_DT = F.gelu(self.conv2(F.gelu(self.conv1(mel_FT))))
        x_TD = x_DT.T + self.positions[: x_DT.shape[1]]
        states = [x_TD]
        for layer in self.layers[:blocks]:
            states.append(layer(states[-1]))
        if blocks == len(self.layers):
            states[-1] = self.layer_norm(states[-1])
        return torch.stack(states)

    @classmethod
    def of(cls, variables: dict[str, np.ndarray], source: Path) -> Encoder:
        """The encoder with a CTranslate2 file's variables, whose names it maps. Raises FormatError."""
        try:
            width = len(variables["conv1/bias"])
            depth = sum(name.endswith("self_attention/layer_norm/gamma") for name in variables)
            network = cls(width, depth)
            state = {_renamed(name): torch.from_numpy(array) for name, array in variables.items() if array.ndim}
            network.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise FormatError(f"{source}: holds no Whisper encoder that this code knows: {error}") from error
        return network.eval()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width)
        self.feed_out = nn.Linear(4 * width, width)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        qkv_THD = self.qkv(self.attention_norm(x_TD)).unflatten(-1, (3, -1, HEAD))
        q_HTD, k_HTD, v_HTD = qkv_THD.permute(1, 2, 0, 3)
        seen_HTD = F.scaled_dot_product_attention(q_HTD, k_HTD, v_HTD)
        x_TD = x_TD + self.out(seen_HTD.transpose(0, 1).flatten(1))
        return x_TD + self.feed_out(F.gelu(self.feed_in(self.feed_norm(x_TD))))


# --- CTranslate2's file ---------------------------------------------------------------------------------------

_VERSION = 6
_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_NAMES = {
    "position_encodings/encodings": "positions",
    "layer_": "layers.",
    "layers.norm": "layer_norm",
    "self_attention/layer_norm": "attention_norm",
    "self_attention/linear_0": "qkv",
    "self_attention/linear_1": "out",
    "ffn/layer_norm": "feed_norm",
    "ffn/linear_0": "feed_in",
    "ffn/linear_1": "feed_out",
    "gamma": "weight",
    "beta": "bias",
    "/": ".",
}


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


def read_encoder(model: Path) -> dict[str, np.ndarray]:
    """The variables of the encoder by their names after "encoder/"; numbers as float32.

    The file: version, spec and revision; then for each variable its name, rank, dimensions, type, bytes, numbers.
    Raises FormatError when it is not a CTranslate2 Whisper of that version, is cut off, or holds quantised weights.
    """
    variables = {}
    with model.open("rb") as file:
        try:
            version, spec, _ = _integer(file, "I"), _text(file), _integer(file, "I")
            if version != _VERSION or spec != "WhisperSpec":
                raise FormatError(
                    f"{model}: CTranslate2 version {version} of {spec!r}, not {_VERSION} of 'WhisperSpec'"
                )
            for _ in range(_integer(file, "I")):
                name = _text(file)
                shape = [_integer(file, "I") for _ in range(_integer(file, "B"))]
                kind, size = _integer(file, "B"), _integer(file, "I")
                if not name.startswith("encoder/"):
                    file.seek(size, 1)
                    continue
                dtype = np.dtype(_TYPES.get(kind, "V1"))
                if dtype.kind != "f" and len(shape) > 0:
                    raise FormatError(f"{model}: {name} is quantised; take a file converted to float16 or float32")
                if dtype.itemsize * math.prod(shape) != size:
                    raise FormatError(f"{model}: {name} has {size} bytes, not those of {shape} {dtype}")
                array = np.frombuffer(_bytes(file, size), dtype).reshape(shape)
                variables[name.removeprefix("encoder/")] = array.astype(np.float32)
        except (EOFError, UnicodeDecodeError) as error:
            raise FormatError(f"{model}: not a CTranslate2 file, or cut off; fetch it again ({error})") from error
    return variables


def _bytes(file: BinaryIO, size: int) -> bytes:
    if len(read := file.read(size)) < size:
        raise EOFError(f"{size} bytes wanted, {len(read)} left")
    return read


def _integer(file: BinaryIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", _bytes(file, struct.calcsize(f"<{kind}")))[0]


def _text(file: BinaryIO) -> str:
    return _bytes(file, _integer(file, "H")).rstrip(b"\0").decode("utf-8")
