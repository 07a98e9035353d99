"""What all codecs share: pictures as their numbers and back, and pictures encoded one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model import codecs


def test_every_level_has_its_number_from_minus_one_to_one_and_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    numbers = codecs.signed(levels)
    assert numbers.shape == (1, 3, 16, 16) and numbers.dtype == torch.float32
    assert (numbers.min(), numbers.max()) == (-1, 1)
    expected = levels[0, ..., 0].astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert np.array_equal(numbers[0, 1].numpy(), expected)
    assert np.array_equal(codecs.shown(numbers), levels)


@pytest.mark.parametrize("gather", [list, np.stack])
def test_pictures_of_a_list_and_of_an_array_are_the_same_window(gather) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (8, 16, 3), np.uint8) for _ in range(3)]
    turned = [picture[::-1, ::-1] for picture in pictures]  # (not in order in memory)
    for given in (pictures, turned):
        assert np.array_equal(codecs.shown(codecs.signed(gather(given))), np.stack(given))


def test_what_is_decoded_beyond_black_and_white_is_shown_as_them() -> None:
    beyond = torch.tensor([-1.7, -1.001, 0.0, 1.001, 3.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert codecs.shown(beyond)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_pictures_encoded_each_alone_know_nothing_of_one_another() -> None:
    codec = codecs.load("dct")
    pictures = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codecs.each_alone(codec, pictures)
    for latent, picture in zip(latents, pictures, strict=True):
        assert torch.equal(latent, codec.encode(picture[None])[0])
