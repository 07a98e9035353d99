"""A face becomes the vector that dlib gives it, and one person's faces lie closer than two people's."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import dlib
import numpy as np
import pytest
import torch

from curation.backends.faces import CenterFace
from curation.backends.landmarks import Landmarker
from model import media, weights
from model.encoders.face import DlibFace, InsightFace, five_points, similarity

torch.set_num_threads(1)
cv2.setNumThreads(1)

POINTS = np.array([[40.0, 60.0], [80.0, 55.0], [62.0, 80.0], [45.0, 105.0], [78.0, 101.0]])


@pytest.fixture(scope="module")
def encode() -> DlibFace:
    return DlibFace(weights.path("dlib-face"))


@pytest.fixture(scope="module")
def find() -> CenterFace:
    return CenterFace(weights.path("centerface"))


@pytest.fixture(scope="module")
def man() -> list[np.ndarray]:
    """Four pictures of a man who talks, 1 s apart, 640 x 480."""
    film = weights.path("psychopy-jwpIntro")
    return list(media.frames(film, media.Span(0, 4), 1))


def points(find: CenterFace, image_HWC: np.ndarray) -> np.ndarray:
    """Five points of the surest face."""
    height, width = image_HWC.shape[:2]
    return np.array(find(image_HWC)[0].points) * [width, height]


def dlib_s_chip(image_HWC: np.ndarray, find: CenterFace) -> np.ndarray:
    """The face as dlib itself finds its points and cuts it out."""
    height, width = image_HWC.shape[:2]
    face = find(image_HWC)[0]
    middle, bottom, side = (face.left + face.right) / 2 * width, face.bottom * height, (face.right - face.left) * width
    square = dlib.rectangle(*(round(edge) for edge in (middle - side / 2, bottom - side, middle + side / 2, bottom)))
    shape = dlib.shape_predictor(str(weights.path("dlib-landmarks-5")))(image_HWC, square)
    return dlib.get_face_chip(image_HWC, shape, DlibFace.SIDE, 0.25)


def read(file: Path) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(file))[..., ::-1])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


def test_the_vector_of_an_upright_face_is_dlib_s(encode, find, man) -> None:
    theirs = dlib.face_recognition_model_v1(str(weights.path("dlib-face")))
    chips = np.stack([dlib_s_chip(image, find) for image in man[:2]])
    expected = np.array([theirs.compute_face_descriptor(chip) for chip in chips])
    np.testing.assert_allclose(encode.embed(chips), expected, atol=1e-5)


def test_a_face_set_upright_by_other_points_than_dlib_s_keeps_its_vector(encode, find, man) -> None:
    mark = Landmarker(weights.path("face-landmarker"))
    for image in man:
        theirs = encode.embed(dlib_s_chip(image, find)[None])[0]
        box = find(image)[0]
        mesh = mark(image, (box.left * 640, box.top * 480, box.right * 640, box.bottom * 480))
        assert mesh is not None
        assert distance(encode(image, points(find, image)), theirs) < 0.35
        assert distance(encode(image, five_points(mesh.points_P3)), theirs) < 0.35
    mark.close()


def test_a_face_keeps_its_vector_when_the_picture_is_turned_or_enlarged(encode, find, man) -> None:
    upright = encode(man[0], points(find, man[0]))
    matrix = cv2.getRotationMatrix2D((320, 240), 25, 0.8)
    turned = cv2.warpAffine(man[0], matrix, (640, 480))
    moved = points(find, man[0]) @ matrix[:, :2].T + matrix[:, 2]
    assert distance(encode(turned, moved), upright) < 0.15
    large = cv2.resize(man[0], (2560, 1920), interpolation=cv2.INTER_CUBIC)
    assert distance(encode(large, points(find, man[0]) * 4 + 1.5), upright) < 0.05
    grain = np.random.default_rng(0).normal(0, 60, large.shape)  # strong, and mostly averaged away: sampled, it is 0.46
    grainy = np.clip(large + grain, 0, 255).astype(np.uint8)
    assert distance(encode(grainy, points(find, man[0]) * 4 + 1.5), upright) < 0.3


def test_a_similarity_brings_points_to_their_places() -> None:
    turn, scale, shift = np.radians(31), 0.4, [7, -3]
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    places = POINTS @ matrix.T + shift
    np.testing.assert_allclose(similarity(POINTS, places), np.column_stack([matrix, shift]), atol=1e-9)


def test_the_best_similarity_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(0)
    places = POINTS + rng.normal(0, 4, POINTS.shape)

    def error(matrix: np.ndarray) -> float:
        return float(np.square(POINTS @ matrix[:, :2].T + matrix[:, 2] - places).sum())

    best = similarity(POINTS, places)
    for _ in range(50):
        a, b, x, y = rng.normal(0, 0.01, 4)
        assert error(best + np.array([[a, -b, x], [b, a, y]])) > error(best)


def test_a_face_that_is_lost_has_no_vector(encode, man) -> None:
    for lost in (np.full((5, 2), np.nan), np.full((5, 2), 100.0)):
        assert np.isnan(encode(man[0], lost)).all()
    assert np.isfinite(encode(man[0], POINTS - 1000)).all()  # outside the picture there is black, no error


def test_another_file_than_dlib_s_is_refused_by_name(tmp_path) -> None:
    genuine = weights.path("dlib-face").read_bytes()
    for name, content in {"cut.dat": genuine[:-1000], "shape.dat": genuine[5000:], "empty.dat": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not dlib_face_recognition_resnet_model_v1\.dat"):
            DlibFace(tmp_path / name)


def test_without_insightface_s_network_the_error_says_where_it_was_looked_for(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/w600k_r50.onnx: unpack InsightFace's buffalo_l"):
        InsightFace(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"elsewhere\.onnx"):
        InsightFace(tmp_path / "elsewhere.onnx")


def test_a_network_that_makes_no_face_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"centerface\.onnx is no ArcFace network"):
        InsightFace(weights.path("centerface"))


def test_as_published_one_person_lies_within_0_6_and_another_beyond(encode, find, footage) -> None:
    files = sorted((footage / "faces" / "face_recognition").glob("*.jpg"))
    vectors = {file.stem: encode(image, points(find, image)) for file in files if (image := read(file)) is not None}
    biden = vectors.pop("biden")
    assert len(vectors) == 5
    assert max(distance(a, b) for a, b in combinations(vectors.values(), 2)) < 0.6
    assert min(distance(biden, other) for other in vectors.values()) > 0.6


def test_of_eight_people_s_faces_few_are_taken_for_another_s(encode, find, footage) -> None:
    files = sorted((footage / "faces" / "face-api.js").glob("*/*"))
    vectors = [encode(image, points(find, image)) for file in files if (image := read(file)) is not None]
    pairs = list(combinations(range(len(files)), 2))
    same = np.array([files[a].parent == files[b].parent for a, b in pairs])
    apart = np.array([distance(vectors[a], vectors[b]) for a, b in pairs])
    assert (same.sum(), len(pairs)) == (80, 780)
    assert np.mean(apart[same] > 0.6) <= 0.0125  # one pair of 80
    assert np.mean(apart[~same] <= 0.6) <= 0.0015  # one of 700
