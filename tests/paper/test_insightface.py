"""Our ArcFace is InsightFace's: the same network file and the same points give the same vector.

The network has the form of the packs' `w600k_r50.onnx` and comes from the same exporter, with fewer layers and random
weights: the packs' own may not be passed on.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from model import media, weights
from model.encoders.detect import CenterFace
from model.encoders.face import InsightFace

pytestmark = [  # the exporter, which is that of the packs, and scikit-image as the package uses it
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning"),
]
arcface_onnx = pytest.importorskip(
    "insightface.model_zoo.arcface_onnx", reason="insightface is not installed (make test-paper)"
)
face_align = pytest.importorskip("insightface.utils.face_align")


class Network(nn.Module):
    """[n, 3, 112, 112] -> [n, 512], of the parts that an ArcFace IResNet is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.PReLU(16),
            nn.Conv2d(16, 32, 3, stride=4, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.Flatten(),
            nn.Linear(32 * 14 * 14, 512),
            nn.BatchNorm1d(512),
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.layers(x_BCHW)


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    """models/buffalo_l with a recognition network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("insightface") / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    torch.onnx.export(
        Network().eval(),
        (torch.zeros(1, 3, 112, 112),),
        folder / "w600k_r50.onnx",
        input_names=["input.1"],
        output_names=["vector"],
        dynamic_axes={"input.1": {0: "None"}},
        dynamo=False,
    )
    return folder


@pytest.fixture(scope="module")
def man() -> tuple[np.ndarray, np.ndarray]:
    """A man who talks, 640 x 480, and the five points of his face."""
    (image,) = media.frames(weights.path("psychopy-jwpIntro"), media.Span(0, 1), 1)
    return image, np.array(CenterFace(weights.path("centerface"))(image)[0].points) * [640, 480]


def test_the_vector_is_the_one_insightface_gives(pack, man) -> None:
    from insightface.app.common import Face

    image_HWC, points = man
    theirs = arcface_onnx.ArcFaceONNX(str(pack / "w600k_r50.onnx"))
    theirs.prepare(ctx_id=-1)
    expected = theirs.get(np.ascontiguousarray(image_HWC[..., ::-1]), Face(kps=points.astype(np.float32)))
    ours = InsightFace(pack)
    assert ours.size == 512
    assert ours(image_HWC, points).dtype == np.float32
    assert np.linalg.norm(ours(image_HWC, points) - expected) < 1e-3 * np.linalg.norm(expected)
    assert np.array_equal(ours(image_HWC, points), InsightFace(pack / "w600k_r50.onnx")(image_HWC, points))
    # Not so by chance: with red and blue swapped, or moved by two pixels, it is another vector.
    for other in (ours(image_HWC[..., ::-1].copy(), points), ours(image_HWC, points + 2)):
        assert np.linalg.norm(other - expected) > 0.05 * np.linalg.norm(expected)


def test_the_package_itself_finds_the_pack_as_our_adapter_does(pack, man) -> None:
    from insightface.model_zoo import get_model

    image_HWC, points = man
    theirs = get_model(str(pack / "w600k_r50.onnx"), providers=["CPUExecutionProvider"])
    chip_HWC = face_align.norm_crop(image_HWC, points.astype(np.float32))
    expected = theirs.get_feat(np.ascontiguousarray(chip_HWC[..., ::-1]))[0]
    np.testing.assert_allclose(InsightFace(pack)(image_HWC, points), expected, atol=1e-3 * np.abs(expected).max())


def test_a_lost_face_has_no_vector(pack, man) -> None:
    lost = InsightFace(pack)(man[0], np.full((5, 2), np.nan))
    assert lost.shape == (512,)
    assert np.isnan(lost).all()


def test_all_opencv_packages_here_are_of_one_version() -> None:
    """Three distributions of OpenCV write one folder cv2/: at unequal versions they break each other."""
    from importlib.metadata import distributions

    versions = {d.version for d in distributions() if (d.metadata["Name"] or "").startswith("opencv-")}
    assert len(versions) == 1
    assert versions.pop().startswith(cv2.__version__)
