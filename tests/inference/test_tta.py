"""Test-time augmentation, by its properties."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from detkit import ops
from detkit.config import Config, DetectConfig, TrainConfig
from detkit.errors import UserError
from detkit.inference.evaluate import detect_batch
from detkit.inference.tta import mirror, predict_views, resize_views
from detkit.models import Detector, build_detector
from detkit.structures import Detections, Images, InputSpec, Predictions, Proposals
from tests.builders import images_of, random_image, tiny_ssd_config
from tests.matching import assert_same_detections

SETTINGS = DetectConfig(score_threshold=0.3, detections_per_image=30)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return build_detector(tiny_ssd_config(), ("ace", "king", "queen")).eval()


def sample_images() -> Images:
    return images_of(torch.cat([random_image(96, 96, seed) for seed in range(2)]))


def run(detector: Detector, images: Images, **settings: object) -> Detections:
    with torch.inference_mode():
        return detect_batch(detector, images, Config(detect=replace(SETTINGS, **settings)), torch.device("cpu"))


class Blocks(Detector):
    """Finds the bounding box of what is bright, wherever it is, at any size of image; its score is its width."""

    def __init__(self, resize: str = "shortest") -> None:
        super().__init__(None, ("block",), InputSpec((40, 80), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize=resize))  # pyright: ignore[reportArgumentType]

    def predict(self, images: Images) -> Predictions:
        bright = images.pixels[:, 0] > 127
        boxes = []
        for one in bright:
            y, x = one.nonzero().unbind(1)
            boxes.append(torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1)).float())
        boxes = torch.stack(boxes).unsqueeze(1)
        scores = (boxes[..., 2:3] - boxes[..., :1]) / 200
        return Predictions(boxes, scores)


def block(width: int, left: int, top: int, right: int, bottom: int) -> Tensor:
    pixels = torch.zeros(3, 40, 80, dtype=torch.uint8)
    pixels[:, top:bottom, left:right] = 255
    pixels[:, :, width:] = 0
    return pixels


def padded() -> Images:
    """Two images, 80 and 60 pixels wide."""
    pixels = torch.stack((block(80, 4, 8, 36, 24), block(60, 40, 0, 60, 40)))
    sizes = torch.tensor([[40, 80], [40, 60]])
    return Images(pixels, sizes, sizes, ("a", "b"))


def test_identity_is_no_augmentation(detector: Detector) -> None:
    images = sample_images()
    with torch.inference_mode():
        plain, same = detector.predict(images), predict_views(detector, images, replace(SETTINGS, scales=[1.0]))
    assert torch.equal(plain.boxes, same.boxes)
    assert torch.equal(plain.scores, same.scores)


def test_a_flip_of_a_flipped_picture_agrees(detector: Detector) -> None:
    """With both views joined, the mirrored image gives the mirrored detections."""
    images = sample_images()
    for nms in ("hard", "gaussian"):
        found = run(detector, images, flip=True, nms=nms)
        other = run(detector, mirror(images), flip=True, nms=nms)
        iou = SETTINGS.nms_iou if nms == "hard" else None
        for row in range(2):
            boxes, scores, labels = other.image(row)
            assert len(labels)
            assert_same_detections(
                found.image(row),
                (ops.flip(boxes, 96.0), scores, labels),
                score=SETTINGS.score_threshold,
                iou=iou,
                keep=SETTINGS.detections_per_image,
                score_atol=1e-5,
                box_atol=1e-3,
                box_rtol=0,
            )
    assert not torch.equal(run(detector, images).scores, run(detector, images, flip=True).scores)


def test_joined_before_nms_so_scores_are_the_network_s(detector: Detector) -> None:
    images = sample_images()
    with torch.inference_mode():
        plain, flipped = detector.predict(images), detector.predict(mirror(images))
    found = run(detector, images, flip=True)
    said = torch.cat((plain.scores, flipped.scores), 1).flatten(1)
    for row in range(2):
        _, scores, _ = found.image(row)
        assert all((said[row] - score).abs().min() < 1e-6 for score in scores)
    best = run(detector, images).scores[:, 0]
    assert (found.scores[:, 0] >= best).all()


def test_mirror_moves_the_valid_part_and_the_proposals() -> None:
    given = [torch.tensor([[4.0, 8, 36, 24]]), torch.tensor([[40.0, 0, 60, 40], [0, 5, 12, 9]])]
    images = replace(padded(), proposals=Proposals.pad(given))
    seen = mirror(images)
    assert torch.equal(seen.pixels[0], images.pixels[0].flip(-1))
    assert torch.equal(seen.pixels[1, ..., :60], images.pixels[1, ..., :60].flip(-1))
    assert (seen.pixels[1, ..., 60:] == 0).all()
    assert seen.proposals is not None
    assert seen.proposals.boxes.tolist() == [[[44, 8, 76, 24], [0, 0, 0, 0]], [[0, 0, 20, 40], [48, 5, 60, 9]]]
    assert seen.proposals.valid.tolist() == [[True, False], [True, True]]
    again = mirror(seen)
    assert torch.equal(again.pixels, images.pixels)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [[0.5], [2.0], [1.5, 0.75], [1.0, 0.5]])
def test_boxes_come_back_to_the_picture(flip: bool, scales: list[float]) -> None:
    """Exactly: all edges are multiples of 4, so they lie between pixels at these scales too."""
    settings = replace(SETTINGS, flip=flip, scales=scales)
    found = predict_views(Blocks(), padded(), settings)
    views = len(scales) * (1 + flip)
    assert found.boxes.shape == (2, views, 4)
    expected = torch.tensor([[[4.0, 8, 36, 24]], [[40, 0, 60, 40]]]).expand(2, views, 4)
    torch.testing.assert_close(found.boxes, expected)


def halve(pixels: Tensor) -> Tensor:
    """Return (B, 3, H, W) at half the size: a triangle two output pixels wide, cut off at the border."""
    triangle = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (triangle[:, None] * triangle)[None, None]
    weights = conv2d(torch.ones(1, 1, *pixels.shape[-2:]), kernel, stride=2, padding=1)
    sums = conv2d(pixels.float().flatten(0, 1).unsqueeze(1), kernel, stride=2, padding=1)
    return (sums / weights).squeeze(1).unflatten(0, pixels.shape[:2])


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.7, 1.4])
def test_the_valid_part_of_a_view_holds_the_whole_image(factor: float) -> None:
    """Also the last pixel of a size that does not divide: what lies outside is masked."""
    images = replace(padded(), sizes=torch.tensor([[40, 79], [39, 57]]))
    view, exact = resize_views(Blocks(), images, factor)
    scaled = images.sizes * exact
    assert (view.sizes >= scaled).all()
    assert (view.sizes < scaled + 1).all()


def test_a_fixed_input_gets_a_smaller_picture_and_no_larger_one(detector: Detector) -> None:
    images = sample_images()
    seen, factors = resize_views(detector, images, 0.5)
    assert seen.pixels.shape == images.pixels.shape
    assert factors.tolist() == [[0.5, 0.5]] * 2
    mean = torch.tensor(detector.input.mean) * detector.input.divisor
    assert (seen.pixels[:, :, 60, 60] - mean).abs().max() <= 0.5
    assert (seen.pixels[..., :48, :48] - halve(images.pixels)).abs().max() <= 0.501  # rounded to whole numbers
    found = predict_views(detector, images, replace(SETTINGS, scales=[1.0, 0.5]))
    centre = (found.boxes[..., :2] + found.boxes[..., 2:]) / 2
    outside = (centre >= 96).any(-1)
    assert outside.any()
    assert (found.scores[outside] == -torch.inf).all()
    with pytest.raises(UserError, match=r"scale 1\.5 is above 1, but this network takes images of 96x96 alone"):
        run(detector, images, scales=[1.0, 1.5])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"nms": "soft"}, "detect.nms: 'soft' is not one of hard, linear, gaussian"),
        ({"sigma": 0.0}, r"detect\.sigma: 0\.0 is not in \(0, inf\)"),
        ({"scales": []}, "detect.scales: empty"),
        ({"scales": [0.01]}, r"detect\.scales: 0\.01 is not in \[0\.1, 10\]"),
        ({"scales": [1.0, 1.0]}, "detect.scales: 1, 1 names one twice"),
    ],
)
def test_wrong_settings(keys: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DetectConfig(**keys)


def test_soft_nms_and_thresholds_through_the_post_processing(detector: Detector) -> None:
    images = sample_images()
    for nms in ("linear", "gaussian"):
        hard, soft = run(detector, images), run(detector, images, nms=nms)
        # the best of all is nobody's overlap, and soft-NMS drops less
        torch.testing.assert_close(hard.scores[:, 0], soft.scores[:, 0])
        assert (soft.scores.diff() <= 0).all()
    array = random_image(96, 96)[0]
    whole = detector.detect(array, score=0.3)[0]
    assert len(whole.labels.unique()) > 1
    label = int(whole.labels[0])
    name = detector.classes[label]
    own = whole.labels == label
    (only,) = detector.detect(array, score=0.3, classes=[name])
    assert set(only.labels.tolist()) == {label}
    assert set(whole.scores[own].tolist()) <= set(only.scores.tolist())
    (rest,) = detector.detect(array, score=0.3, thresholds={name: 1.0})
    assert label not in rest.labels
    assert rest.labels.numel() > 0
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"classes": ["kng"]}, "no class 'kng'; did you mean 'king'?"),
        ({"classes": []}, "is empty"),
        ({"thresholds": {"ase": 0.5}}, "no class 'ase'; did you mean 'ace'?"),
        ({"thresholds": {"ace": 1.5}}, "score 1.5 of class ace is not between 0 and 1"),
        ({"score": -0.1}, "score -0.1 is not between 0 and 1"),
    )
    for keys, words in wrong:
        with pytest.raises(UserError, match=words):
            detector.detect(array, **keys)


class WithFeatures(Blocks):
    """Its features tell which view they are of; `refine` moves boxes by what it gets."""

    def predict(self, images: Images) -> Predictions:
        return replace(super().predict(images), features=images.pixels)

    def refine(self, images: Images, detections: Detections, features: Tensor) -> Detections:
        assert torch.equal(features, images.pixels)
        return replace(detections, boxes=detections.boxes + 1000)


@pytest.mark.parametrize(("flip", "scales"), [(False, [1.0]), (True, [1.0]), (True, [0.5, 1.0])])
def test_detections_are_refined_with_the_features_of_the_images_themselves(flip: bool, scales: list[float]) -> None:
    refined = run(WithFeatures(), padded(), flip=flip, scales=scales, score_threshold=0.05)
    plain = run(Blocks(), padded(), flip=flip, scales=scales, score_threshold=0.05)
    assert (plain.labels[:, 0] == 0).all()
    assert torch.equal(refined.boxes, plain.boxes + 1000)


class Listening(Blocks):
    """Notes the number format that it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: list[torch.dtype] = []

    def predict(self, images: Images) -> Predictions:
        self.note()
        return super().predict(images)

    def refine(self, images: Images, detections: Detections, features: None) -> Detections:
        self.note()
        return detections

    def note(self) -> None:
        self.formats.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_detections_are_refined_in_the_number_format_of_the_network(amp: str, dtype: torch.dtype) -> None:
    detector = Listening()
    detect_batch(detector, padded(), Config(train=TrainConfig(amp=amp), detect=SETTINGS), torch.device("cpu"))
    assert detector.formats == [dtype, dtype]


def test_without_the_images_themselves_the_features_are_of_the_first_view() -> None:
    detector, images = WithFeatures(), padded()
    predictions = predict_views(detector, images, replace(SETTINGS, flip=True, scales=[0.5, 0.25]))
    assert torch.equal(predictions.features, resize_views(detector, images, 0.5)[0].pixels)
