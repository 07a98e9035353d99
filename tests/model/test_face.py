"""A face becomes the vector that dlib gives it, and one person's faces lie closer than two people's."""

from __future__ import annotations

from itertools import combinations

import cv2
import dlib
import numpy as np
import pytest
import torch

from curation.backends.landmarks import Landmarker
from curation.backends.tracks import Sight
from model import media, weights
from model.encoders.face import DlibFace, InsightFace, five_points, similarity
from tests.faces import encoder, finder, points, read

torch.set_num_threads(1)
cv2.setNumThreads(1)

POINTS = np.array([[40.0, 60.0], [80.0, 55.0], [62.0, 80.0], [45.0, 105.0], [78.0, 101.0]])


@pytest.fixture(scope="module")
def man() -> list[np.ndarray]:
    """Four pictures of a man who talks, 1 s apart, 640 x 480."""
    film = weights.path("psychopy-jwpIntro")
    return list(media.frames(film, media.Span(0, 4), 1))


def dlib_s_chip(image_HWC: np.ndarray) -> np.ndarray:
    """The face as dlib itself finds its points and cuts it out."""
    height, width = image_HWC.shape[:2]
    face = finder()(image_HWC)[0]
    middle, bottom, side = (face.left + face.right) / 2 * width, face.bottom * height, (face.right - face.left) * width
    square = dlib.rectangle(*(round(edge) for edge in (middle - side / 2, bottom - side, middle + side / 2, bottom)))
    shape = dlib.shape_predictor(str(weights.path("dlib-landmarks-5")))(image_HWC, square)
    return dlib.get_face_chip(image_HWC, shape, DlibFace.SIDE, 0.25)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


def test_the_vector_of_an_upright_face_is_dlib_s(man) -> None:
    theirs = dlib.face_recognition_model_v1(str(weights.path("dlib-face")))
    chips = np.stack([dlib_s_chip(image) for image in man[:2]])
    expected = np.array([theirs.compute_face_descriptor(chip) for chip in chips])
    np.testing.assert_allclose(encoder().embed(chips), expected, atol=1e-5)


def test_a_face_set_upright_by_other_points_than_dlib_s_keeps_its_vector(man) -> None:
    mark = Landmarker(weights.path("face-landmarker"))
    for image in man:
        theirs = encoder().embed(dlib_s_chip(image)[None])[0]
        mesh = mark(image, Sight.of(finder()(image)[0], 640, 480))
        assert mesh is not None
        assert distance(encoder()(image, points(image)), theirs) < 0.35
        assert distance(encoder()(image, five_points(mesh.points_P3)), theirs) < 0.35


def test_a_face_keeps_its_vector_when_the_picture_is_turned_or_enlarged(man) -> None:
    upright = encoder()(man[0], points(man[0]))
    matrix = cv2.getRotationMatrix2D((320, 240), 25, 0.8)
    turned = cv2.warpAffine(man[0], matrix, (640, 480))
    moved = points(man[0]) @ matrix[:, :2].T + matrix[:, 2]
    assert distance(encoder()(turned, moved), upright) < 0.15
    large = cv2.resize(man[0], (2560, 1920), interpolation=cv2.INTER_CUBIC)
    assert distance(encoder()(large, points(man[0]) * 4 + 1.5), upright) < 0.05
    grain = np.random.default_rng(0).normal(0, 60, large.shape)  # strong, and mostly averaged away: sampled, it is 0.46
    grainy = np.clip(large + grain, 0, 255).astype(np.uint8)
    assert distance(encoder()(grainy, points(man[0]) * 4 + 1.5), upright) < 0.3


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


def test_a_face_that_is_lost_has_no_vector(man) -> None:
    for lost in (np.full((5, 2), np.nan), np.full((5, 2), 100.0)):
        assert np.isnan(encoder()(man[0], lost)).all()
    assert np.isfinite(encoder()(man[0], POINTS - 1000)).all()  # outside the picture there is black, no error


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


def test_as_published_one_person_lies_within_0_6_and_another_beyond(footage) -> None:
    files = sorted((footage / "faces" / "face_recognition").glob("*.jpg"))
    vectors = {file.stem: encoder()(image, points(image)) for file in files if (image := read(file)) is not None}
    biden = vectors.pop("biden")
    assert len(vectors) == 5
    assert max(distance(a, b) for a, b in combinations(vectors.values(), 2)) < 0.6
    assert min(distance(biden, other) for other in vectors.values()) > 0.6


def test_of_eight_people_s_faces_few_are_taken_for_another_s(footage) -> None:
    files = sorted((footage / "faces" / "face-api.js").glob("*/*"))
    vectors = [encoder()(image, points(image)) for file in files if (image := read(file)) is not None]
    pairs = list(combinations(range(len(files)), 2))
    same = np.array([files[a].parent == files[b].parent for a, b in pairs])
    apart = np.array([distance(vectors[a], vectors[b]) for a, b in pairs])
    assert (same.sum(), len(pairs)) == (80, 780)
    assert np.mean(apart[same] > 0.6) <= 0.0125  # one pair of 80
    assert np.mean(apart[~same] <= 0.6) <= 0.0015  # one of 700
