"""A prompt as vectors, one a token: T5 (Raffel et al. 2020), as CogVideoX reads it, or the small MiniLM.

MiniLM (all-MiniLM-L6-v2, 384 numbers a token) comes out of a registry package and needs no account; the states are
those before pooling. T5's encoder (T5-v1.1-XXL, 4096 numbers) comes from a folder or the hub; it fills every prompt up
to 226 tokens. A network with room for fewer is given the first vectors of them, in training as in sampling.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from model import pretrained, weights
from model.encoders.tokens import LENGTH, Vocabulary

PUBLISHED = "THUDM/CogVideoX-5b-I2V"
NAMES = ("minilm", "t5")


class TextEncoder(Protocol):
    """Turns a prompt into vectors.

    dim: numbers a token. length: the most tokens; what a prompt has more is cut off. vocabulary: makes the tokens.
    """

    name: str
    dim: int
    length: int
    vocabulary: Vocabulary

    def encode(self, prompt: str) -> np.ndarray:
        """The prompt's vectors, float32 [S, dim]: the denoiser is to attend to every one of them."""
        ...


def load(
    name: str, source: str = "", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """A text encoder by name, ready to use.

    source: where it is not the one of `weights.yaml` (minilm) or of CogVideoX (t5): a folder or a repository of the
    hub, of a pipeline with `text_encoder` and `tokenizer`, or with all files at its top. dtype: what is computed in;
    T5-XXL takes 19 GB in float32 and half of that in bfloat16.
    Raises WeightsError or PretrainedError, which say what to do, and ValueError for another name.
    """
    if name == "minilm":
        if source:
            return MiniLM(pretrained.folder(source), device, dtype)
        return MiniLM(zipfile.Path(weights.path("minilm")), device, dtype)
    if name == "t5":
        place = pretrained.folder(source or PUBLISHED, [] if Path(source).is_dir() else ["text_encoder", "tokenizer"])
        return T5(pretrained.part(place, "text_encoder"), pretrained.part(place, "tokenizer"), device, dtype)
    raise ValueError(f"no text encoder is called {name!r}; there is {' and '.join(NAMES)}")


class T5:
    """The encoder of a T5."""

    name = "t5"
    length = LENGTH

    def __init__(
        self,
        encoder: Path,
        tokenizer: Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """encoder, tokenizer: folders of a T5EncoderModel and of its vocabulary. Raises PretrainedError."""
        from transformers import T5EncoderModel

        self.vocabulary = Vocabulary.of(tokenizer, self.length)
        self.network: Any = pretrained.network(T5EncoderModel, encoder, dtype=dtype).to(device)
        self.dim: int = self.network.config.d_model
        self.pad: int = self.network.config.pad_token_id

    @torch.no_grad()
    def encode(self, prompt: str) -> np.ndarray:
        """As CogVideoX reads a prompt: float32 [226, dim], whatever the prompt.

        It fills the prompt up with the padding token and gives T5 no mask. So the padding has vectors, too, which the
        denoiser attends to, and those of the prompt have seen it.
        """
        ids = self.vocabulary(prompt)
        tokens_1S = torch.tensor([ids + [self.pad] * (self.length - len(ids))], device=self.network.device)
        return self.network(input_ids=tokens_1S).last_hidden_state[0].float().cpu().numpy()


class MiniLM:
    """all-MiniLM-L6-v2: a BERT of six layers that learned to tell sentences apart (sentence-transformers)."""

    name = "minilm"
    length = LENGTH
    dim = 384
    UNUSED = ("pooler.", "embeddings.position_ids")

    def __init__(
        self, place: Path | zipfile.Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """place: a folder, or an archive, with model.safetensors and tokenizer.json.

        Raises PretrainedError when they are not this model's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load as tensors_of
        from transformers import BertConfig, BertModel

        self.vocabulary = Vocabulary(place / "tokenizer.json", self.length)
        shape = BertConfig(hidden_size=self.dim, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        self.network: Any = BertModel(shape, add_pooling_layer=False)
        try:
            tensors = tensors_of((place / "model.safetensors").read_bytes())
            self.network.load_state_dict(
                {name: tensor for name, tensor in tensors.items() if not name.startswith(self.UNUSED)}
            )
        except (OSError, KeyError, SafetensorError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise pretrained.PretrainedError(f"{place}: not the weights of all-MiniLM-L6-v2: {said}") from error
        self.network.eval().requires_grad_(False).to(device, dtype)

    @torch.no_grad()
    def encode(self, prompt: str) -> np.ndarray:
        """A vector for each token and for the marks at both ends: float32 [tokens, 384], before pooling; not padded."""
        tokens_1S = torch.tensor([self.vocabulary(prompt)], device=self.network.device)
        return self.network(input_ids=tokens_1S).last_hidden_state[0].float().cpu().numpy()
