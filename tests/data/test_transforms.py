"""Geometry, randomness and refusals of the augmentation chain."""

import random
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data.augment import chain, sample, ssd
from detkit.data.transforms import build_test, build_train
from detkit.errors import UserError
from detkit.structures import InputSpec

SSD = ["PhotometricDistort", "Expand", "IoUCrop", "RandomInterpolationResize", "HorizontalFlip"]
SPEC = InputSpec((90, 120), mean=(0.6, 0.4, 0.2))
BLACK = InputSpec((90, 120), mean=(0.0, 0.0, 0.0))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def marked(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """A black image where box k is filled with one colour, a primary of its own."""
    image = np.zeros((height, width, 3), np.uint8)
    for k, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        image[y0:y1, x0:x1, k] = 255
    return image


def found(image: np.ndarray, k: int) -> np.ndarray:
    """Where colour k is, as a box."""
    rows, columns = np.nonzero(image[..., k] > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def with_state(transform, seed: int):
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform


@given(
    st.integers(30, 200),
    st.integers(30, 200),
    st.integers(0, 2**32),
    st.permutations(["Expand", "IoUCrop", "RandomInterpolationResize", "HorizontalFlip"]),
)
@settings(max_examples=150)
def test_boxes_follow_the_pixels(height, width, seed, order):
    draw = np.random.default_rng(seed)
    low = draw.integers(0, (width - 20, height - 20), (2, 2))
    size = draw.integers(8, np.minimum(20 + draw.integers(0, 100), (width, height) - low.max(0)) + 1, (2, 2))
    boxes = np.concatenate([low, np.minimum(low + size, (width, height))], 1).astype(np.float32)
    spec = InputSpec((240, 320), mean=(0.0, 0.0, 0.0))
    image, moved, rows = build_train(order, spec)(marked(boxes, height, width), boxes, (seed, 1))
    assert image.shape == (240, 320, 3)
    assert ((moved >= 0) & (moved <= (320, 240, 320, 240))).all()
    for box, row in zip(moved, rows):
        # one pixel of the source is up to 320 / 30 / .09 wide, and cv2 blurs an edge over half of it
        blur = 0.5 * np.maximum((box[2:] - box[:2]) / 4, 1).max() + 1.5
        np.testing.assert_allclose(found(image, row), box, atol=blur)


@pytest.mark.parametrize("size", [(30, 40), (90, 120), (201, 99)])
def test_test_transform_is_a_stretch(size):
    height, width = size
    image = noise(height, width)
    boxes = np.array([(0, 0, width, height), (3, 6, 9, 12), (-5, -5, width + 9, 9), (5, 5, 5, 9)], np.float32)
    out, moved, rows = build_test(SPEC)(image, boxes)
    np.testing.assert_array_equal(out, cv2.resize(image, (120, 90)))
    scale = np.array([120 / width, 90 / height] * 2)
    np.testing.assert_allclose(moved, [(0, 0, 120, 90), boxes[1] * scale, (0, 0, 120, 9 * scale[1])], atol=1e-4)
    assert rows.tolist() == [0, 1, 2]
    assert (moved.dtype, rows.dtype, out.dtype) == (np.float32, np.int64, np.uint8)


def test_boxes_below_a_square_pixel_are_dropped():
    boxes = np.array([(1, 1, 1.4, 2), (1, 1, 2, 2.1)], np.float32)
    _, moved, rows = build_train(["HorizontalFlip"], SPEC)(noise(90, 120), boxes)
    assert rows.tolist() == [1]
    assert len(moved) == 1


def test_images_without_objects_pass():
    for seed in range(30):
        image, boxes, rows = build_train(SSD, SPEC)(noise(50, 60), np.zeros((0, 4), np.float32), (0, seed))
        assert image.shape == (90, 120, 3)
        assert (boxes.shape, rows.shape) == ((0, 4), (0,))


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 300), (2, 3)])
def test_tiny_images_pass(size):
    boxes = np.array([(0, 0, size[1], size[0])], np.float32)
    for seed in range(60):
        image, _, _ = build_train(SSD, SPEC)(noise(*size), boxes, (0, seed))
        assert image.shape == (90, 120, 3)


def test_same_seed_same_sample_and_the_image_is_left_alone():
    chain, other = build_train(SSD, SPEC), build_train(SSD, SPEC)
    boxes = np.array([(5, 5, 50, 40), (20, 10, 70, 60)], np.float32)
    random_image = noise(80, 100)
    random_image.flags.writeable = False
    distinct = set()
    for seed in range(40):
        one = chain(random_image, boxes, (3, seed))
        chain(random_image, boxes, (4, seed))  # what came before does not matter
        two, three = chain(random_image, boxes, (3, seed)), other(random_image, boxes, (3, seed))
        for a, b, c in zip(one, two, three):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
        distinct.add(one[0].tobytes())
    assert len(distinct) == 40


def test_transforms_draw_independently():
    """albumentations' set_random_seed would give all transforms one seed: these two would always go together."""
    chain = build_train(["HorizontalFlip", "VerticalFlip"], SPEC)
    corner = np.array([(0, 0, 30, 30)], np.float32)
    places = {tuple(chain(noise(90, 120), corner, (0, seed))[1][0][:2].tolist()) for seed in range(40)}
    assert places == {(0, 0), (90, 0), (0, 60), (90, 60)}


NAMES = sorted(set(chain._known()) - set(chain.COMPOSITIONS))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_transform_that_can_be_named_is_determined_by_the_seed():
    boxes = np.array([(5, 5, 50, 40), (20, 10, 70, 60)], np.float32)
    tried = 0
    for name in NAMES:
        try:
            chain = build_train([{name: {"p": 1.0}}], SPEC)
        except UserError:
            continue  # refused, or in want of parameters
        tried += 1
        first, second = (
            chain(noise(90, 120), boxes, (0, 7), other=lambda _: (noise(60, 80, 1), boxes, 2)) for _ in range(2)
        )
        for a, b in zip(first, second):
            np.testing.assert_array_equal(a, b, err_msg=name)
        assert first[0].shape == (90, 120, 3)
    assert tried > 60


def unfused(parts: list[str], spec: InputSpec):
    single = build_train(parts, spec)
    transforms = [chain._build(part, spec) for part in parts]
    (stage,) = single.chain.stages
    stage.transforms = transforms
    stage.compose = chain.A.Compose(transforms, bbox_params=chain.A.BboxParams("albumentations"))
    return single


@pytest.mark.parametrize("parts", [SSD[:3], SSD[1:3], [SSD[0], SSD[2]], [SSD[0], *SSD[2:4]], [SSD[2]]])
def test_fused_steps_equal_the_single_ones(parts):
    """Sample must change nothing but the time: same draws, same pixels."""
    fused, single = build_train(parts, SPEC), unfused(parts, SPEC)
    assert [type(t) for t in fused.chain.stages[0].transforms] == [sample.Sample]
    boxes = np.array([(5, 5, 50, 40), (20, 10, 70, 60), (90, 70, 99, 79)], np.float32)
    for seed in range(150):
        one, two = fused(noise(80, 100), boxes, (3, seed)), single(noise(80, 100), boxes, (3, seed))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_allclose(one[1], two[1], atol=1e-4)
        np.testing.assert_array_equal(one[2], two[2])


def test_fused_with_expansion_and_resize_stays_within_a_pixel():
    fused, single = build_train(SSD, SPEC), unfused(SSD, SPEC)
    assert [type(t).__name__ for t in fused.chain.stages[0].transforms] == ["Sample", "HorizontalFlip"]
    boxes = np.array([(5, 5, 50, 40), (20, 10, 70, 60), (60, 50, 99, 79)], np.float32)
    smooth = cv2.GaussianBlur(noise(80, 100), (0, 0), 9)
    equal = 0
    for seed in range(300):
        one, two = fused(smooth, boxes, (3, seed)), single(smooth, boxes, (3, seed))
        assert set(one[2]) ^ set(two[2]) <= {0, 1, 2}
        if len(one[2]) == len(two[2]):  # else a box of about one square pixel
            np.testing.assert_allclose(one[1], two[1], atol=0.75)
        assert np.abs(one[0].astype(int) - two[0]).mean() < 4
        equal += np.array_equal(one[0], two[0])
    assert equal > 120  # wherever no fill is in sight


def test_expand_fills_with_the_mean_and_keeps_the_image():
    chain = build_train([{"Expand": {"p": 1.0, "ratio": [2, 3]}}], InputSpec((90, 120), mean=(0.6, 0.4, 0.2)))
    image = np.full((50, 60, 3), 255, np.uint8)
    data = {"image": image, "bboxes": np.array([(0.0, 0.0, 1.0, 1.0, 0.0)])}
    for seed in range(30):
        out = with_state(chain.chain.stages[0].transforms[0], seed)(**data)
        canvas, (x0, y0, x1, y1, _) = out["image"], out["bboxes"][0]
        height, width = canvas.shape[:2]
        assert 100 <= height <= 150
        assert 120 <= width <= 180
        x0, y0, x1, y1 = np.round([x0 * width, y0 * height, x1 * width, y1 * height]).astype(int)
        assert (x1 - x0, y1 - y0) == (60, 50)
        assert (canvas[y0:y1, x0:x1] == 255).all()
        canvas[y0:y1, x0:x1] = (153, 102, 51)
        assert (canvas == (153, 102, 51)).all()


def test_expand_happens_half_of_the_time_at_even_ratios():
    expand = chain._build("Expand", SPEC)
    image = noise(50, 60)
    ratios = []
    for seed in range(400):
        out = with_state(expand, seed)(image=image, bboxes=np.zeros((0, 5)))["image"]
        ratios.append(out.shape[0] / 50)
    changed = np.array([ratio for ratio in ratios if ratio != 1])
    assert 0.4 < len(changed) / 400 < 0.6
    assert 2.3 < changed.mean() < 2.7


class Ordered:
    """A generator that tries the kinds of crop in a given order: 0 whole, 1 any, 2 the first threshold, ..."""

    def __init__(self, order: list[int], seed: int) -> None:
        self.order, self.generator = order, np.random.default_rng(seed)
        self.random = self.generator.random

    def permutation(self, count: int) -> np.ndarray:
        assert count == len(self.order)
        return np.array(self.order)


@given(st.integers(0, 2**32), st.integers(20, 300), st.integers(20, 300))
@settings(max_examples=150)
def test_iou_crop_binds(seed, height, width):
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, (width * 0.7, height * 0.7), (3, 2))
    boxes = np.concatenate([low, low + draw.uniform(4, (width * 0.3, height * 0.3), (3, 2))], 1)
    for least in (0.1, 0.5, 0.9):
        crop = ssd.IoUCrop(min_iou=[least])
        crop.set_random_state(Ordered([2, 0, 1], seed), random.Random())  # pyright: ignore[reportArgumentType]
        for _ in range(10):
            window = x0, y0, x1, y1 = crop.sample((height, width), boxes)
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            assert window == (0, 0, width, height) or max(slow_iou(window, box) for box in boxes) >= least - 1e-9


def slow_iou(a, b) -> float:
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = w * h
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_crop(draw: np.random.Generator, size: float, box: np.ndarray) -> tuple[float, float, float, float]:
    """Caffe's batch_sampler as it is written: every sampler tries, one of those that succeeded is chosen."""
    pool = [(0.0, 0.0, size, size)]
    for least in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        for _ in range(50):
            scale = draw.uniform(0.3, 1)
            ratio = min(max(draw.uniform(0.5, 2), scale**2), scale**-2)
            w, h = scale * np.sqrt(ratio), scale / np.sqrt(ratio)
            x, y = draw.random() * (1 - w), draw.random() * (1 - h)
            window = (x * size, y * size, (x + w) * size, (y + h) * size)
            if slow_iou(window, box) >= least:
                pool.append(window)
                break
    return pool[draw.integers(len(pool))]


def test_iou_crop_draws_as_the_reference_does():
    crop, box = with_state(ssd.IoUCrop(), 0), np.array((60.0, 60.0, 140.0, 140.0))
    draw = np.random.default_rng(1)
    ours = np.array([crop.sample((200, 200), box[None]) for _ in range(2500)], dtype=np.float64)
    theirs = np.array([slow_crop(draw, 200.0, box) for _ in range(1200)])
    for measure in (
        lambda w: (w == (0, 0, 200, 200)).all(1).mean(),
        *(lambda w, t=t: np.mean([slow_iou(window, box) >= t for window in w]) for t in (0.1, 0.3, 0.5, 0.7, 0.9)),
        lambda w: (np.sqrt((w[:, 2:] - w[:, :2]).prod(1)) / 200).mean(),
        lambda w: ((w[:, 2] - w[:, 0]) / (w[:, 3] - w[:, 1]) > 1.2).mean(),
        lambda w: w[:, 0].mean() / 200,
    ):
        assert measure(ours) == pytest.approx(measure(theirs), abs=0.05)
    shape = (ours[:, 2] - ours[:, 0]) / (ours[:, 3] - ours[:, 1])
    assert 0.47 < shape.min() < shape.max() < 2.12


def test_ratios_of_crops_are_clamped_to_the_image_as_the_authors_do():
    """With scale s of U(.3, 1) and ratio r of U(.5, 2), r > 1/s^2 has full width, .1634 of all, r < s^2 full height."""
    crop = with_state(ssd.IoUCrop(), 0)
    windows = np.concatenate([crop._windows((301, 403)) for _ in range(800)])
    width, height = (windows[:, 2:] - windows[:, :2]).T
    assert np.mean(width == 403) == pytest.approx((3 - 2 * 2**0.5) / 1.05, abs=0.008)
    assert np.mean(height == 301) == pytest.approx((2**0.5 / 6 - 1 / 6) / 1.05, abs=0.006)


@pytest.mark.parametrize("name", ["yolov1", "yolov1_fast", "yolov1_vgg16", "yolov1_resnet50"])
def test_yolos_jitter_is_darknets(name):
    """Each side moves by U(-.2, .2) of the image, in or out, by itself; padding repeats the border."""
    text = (Path(__file__).parents[2] / f"configs/voc/{name}.yaml").read_text()
    jitter = chain.Chain(yaml.safe_load(text)["data"]["augment"][:1], SPEC)
    height, width, count = 60, 100, 400
    image = np.stack([*np.mgrid[:height, :width], np.zeros((height, width))], -1).astype(np.uint8)
    box, moves = np.array([(40.0, 24.0, 60.0, 36.0)]) / (width, height, width, height), []
    for seed in range(count):
        out, boxes, _ = jitter(image, box, (0, seed), 1)
        size = out.shape[1], out.shape[0]
        x0, y0, x1, y1 = boxes[0] * (*size, *size)
        np.testing.assert_allclose((x1 - x0, y1 - y0), (20, 12), atol=1e-6)  # in pixels nothing is stretched
        left, top = round(x0 - 40), round(y0 - 24)
        rows, columns = np.arange(size[1]) - top, np.arange(size[0]) - left
        np.testing.assert_array_equal(out, image[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)])
        moves.append((left / width, top / height, (size[0] - left) / width - 1, (size[1] - top) / height - 1))
    moves = np.array(moves)
    assert np.abs(moves).max() <= 0.21
    np.testing.assert_allclose(moves.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(moves.std(0), 0.4 / 12**0.5, atol=0.015)
    between = np.corrcoef(moves.T) - np.eye(4)
    assert np.abs(between).max() < 0.2


def test_iou_crop_keeps_objects_by_their_centre():
    boxes = np.array([(0, 0, 40, 40, 0), (10, 10, 31, 31, 1), (50, 50, 60, 60, 2)], dtype=np.float64)
    kept = ssd.IoUCrop.keep(boxes, (20, 20, 60, 40))
    assert kept[:, 4].tolist() == [0, 1]  # the first has its centre on the corner
    np.testing.assert_allclose(kept[:, :4] * (40, 20, 40, 20), [(0, 0, 20, 20), (0, 0, 11, 11)])


def test_crop_without_objects_is_whole_or_free():
    crop = with_state(ssd.IoUCrop(), 1)
    windows = {crop.sample((100, 100), np.zeros((0, 4))) for _ in range(50)}
    assert (0, 0, 100, 100) in windows
    assert len(windows) > 10


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_distortion_follows_its_definition(seed):
    draw = np.random.default_rng(seed)
    image = noise(13, 17, seed)
    level = int(draw.integers(-32, 33))
    out = ssd.distort(image, level, 1.0, 1.0, 0.0, False)
    np.testing.assert_array_equal(out, np.clip(image.astype(int) + level, 0, 255))
    factor = float(draw.uniform(0.5, 1.5))
    out = ssd.distort(image, 0, factor, 1.0, 0.0, bool(draw.integers(2)))
    assert np.abs(out - np.clip(image * factor, 0, 255)).max() <= 0.51
    # saturation: distances to the largest channel scale, as far as they can
    out = ssd.distort(image, 0, 1.0, factor, 0.0, False).astype(float)
    top = image.max(2, keepdims=True).astype(float)
    most = np.divide(
        top, top - image.min(2, keepdims=True), out=np.full_like(top, np.inf), where=top > image.min(2, keepdims=True)
    )
    np.testing.assert_allclose(out, top - (top - image) * np.minimum(factor, most), atol=10)


def test_hue_turns_the_colour_circle():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    np.testing.assert_allclose(ssd.distort(image, 0, 1.0, 1.0, 60.0, False)[0, 0], (0, 200, 0), atol=8)
    np.testing.assert_allclose(ssd.distort(image, 0, 1.0, 1.0, -60.0, False)[0, 0], (0, 0, 200), atol=8)
    np.testing.assert_allclose(ssd.distort(image, 0, 1.0, 1.0, 15.0, False)[0, 0], (200, 100, 0), atol=8)


def test_photometric_parts_happen_half_of_the_time():
    transform = with_state(ssd.PhotometricDistort(), 0)
    drawn = [transform.get_params() for _ in range(1000)]
    for key, still in (
        ("brightness", 0),
        ("contrast", 1.0),
        ("saturation", 1.0),
        ("hue", 0.0),
        ("contrast_last", False),
    ):
        assert 0.44 < np.mean([params[key] != still for params in drawn]) < 0.56, key
    assert max(abs(params["brightness"]) for params in drawn) <= 32
    assert max(abs(params["hue"]) for params in drawn) <= 18


def test_any_albumentations_transform_and_compositions():
    items = [
        {"OneOf": {"transforms": [{"Blur": {"blur_limit": [3, 3], "p": 1.0}}, "ToGray"], "p": 1.0}},
        {"RandomBrightnessContrast": {"p": 0.5}},
        {"Affine": {"rotate": [-10, 10], "scale": [0.8, 1.2], "p": 1.0}},
    ]
    image, boxes, _ = build_train(items, SPEC)(noise(90, 120), np.array([(30, 30, 60, 60)], np.float32), (0, 1))
    assert image.shape == (90, 120, 3)
    assert len(boxes) == 1


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (["HorizontalFlop"], "data.augment: unknown transform 'HorizontalFlop'; did you mean 'HorizontalFlip'?"),
        (["IouCrop"], "unknown transform 'IouCrop'; did you mean 'IoUCrop'?"),
        ([{"Expand": {"ratios": [1, 2]}}], "Expand: unknown parameter 'ratios'; did you mean 'ratio'?"),
        ([{"Expand": {"ratio": [3, 2]}}], "Expand: ratio is [3, 2]"),
        ([{"Expand": {"ratio": 3}}], "Expand: ratio is 3"),
        ([{"Expand": {"fill": [300, 0, 0]}}], "Expand: fill is [300, 0, 0]"),
        ([{"IoUCrop": {"scale": [0.3, 2]}}], "IoUCrop: scale is [0.3, 2]"),
        ([{"IoUCrop": {"min_iou": 0.5}}], "IoUCrop: min_iou is 0.5"),
        ([{"PhotometricDistort": {"hue": "x"}}], "PhotometricDistort: hue is 'x'"),
        ([{"HorizontalFlip": {"prob": 1}}], "HorizontalFlip: unknown parameter 'prob'; known: p"),
        ([{"Blur": {"blur_limits": 3}}], "Blur: unknown parameter 'blur_limits'; did you mean 'blur_limit'?"),
        ([{"GaussNoise": {"std_range": [0.5, 7]}}], "GaussNoise: std_range"),
        ([{"RandomCrop": {}}], "data.augment: RandomCrop: "),
        ([{"RandomCrop": {"height": 5000, "width": 5000}}], "data.augment: RandomCrop: "),
        ([{"OneOf": {"transforms": ["Nope"]}}], "unknown transform 'Nope'"),
        ([{"OneOf": {}}], "OneOf: transforms should be a list"),
        ([{"OverlayElements": {}}], "OverlayElements moves pixels but not boxes"),
        (["ToFloat"], "data.augment: ToFloat makes float32 images"),
        ([{"Mosaic": {"zoom": [0.5, 1]}}], "Mosaic: zoom is [0.5, 1]"),
        ([{"Mosaic": {"centre": 0.5}}], "Mosaic: centre is 0.5"),
        ([{"MixUp": {"alpha": 0}}], "MixUp: alpha is 0"),
        ([{"MixUp": {"min_visible": 2}}], "MixUp: min_visible is 2"),
        ([{"MixUp": {"p": -1}}], "MixUp: p is -1"),
        (
            [{"OneOf": {"transforms": ["MixUp", "HorizontalFlip"]}}],
            "MixUp takes other images, so it cannot stand within",
        ),
        ([{"Expand": 3}], "Expand: 3 is not a mapping"),
        ([{"Expand": {}, "IoUCrop": {}}], "is not {TransformName: {parameters}}"),
        ([7], "7 is not {TransformName: {parameters}}"),
    ],
)
def test_refusals(items, text):
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        build_train(items, SPEC)
    assert "\n" not in str(caught.value)
