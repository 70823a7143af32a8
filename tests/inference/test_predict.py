"""detkit.inference.predict: what is taken, and that detection is the evaluator's."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.config import Config, DataConfig, DetectConfig, TrainConfig
from detkit.data.image_file import decode_image
from detkit.errors import UserError
from detkit.inference import predict
from detkit.inference.predict import detect_images, proposal_method
from detkit.inference.results import ImageDetections
from detkit.inference.sources import Video, VideoReader, find_sources
from detkit.models import Detector, build_detector
from detkit.proposals.methods import Method
from detkit.structures import DetectionSet, Targets
from tests.builders import images_of, random_image, sample_image, tiny_ssd_config
from tests.inference import SIZES
from tests.matching import assert_same_detections

CLASSES = ("ace", "king", "queen")


@pytest.fixture(scope="module")
def config() -> Config:
    """Return a config whose threshold an untrained network passes with some boxes and not with others."""
    return Config(
        model=tiny_ssd_config(),
        train=TrainConfig(iterations=1),
        detect=DetectConfig(score_threshold=0.3, detections_per_image=20),
    )


@pytest.fixture(scope="module")
def detector(config: Config) -> Detector:
    torch.manual_seed(0)
    return build_detector(config.model, CLASSES).eval()


def found(results) -> list[ImageDetections]:
    results = list(results)
    assert all(isinstance(result, ImageDetections) for result in results)
    return results


def assert_same(one, other) -> None:
    assert one.labels.tolist() == other.labels.tolist()
    torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.boxes, other.boxes, atol=1e-2, rtol=0)


def test_result_is_trimmed_sorted_and_inside_the_photo(detector: Detector, config: Config, folder: Path) -> None:
    results = found(detect_images(detector, find_sources([folder]), config, batch=2))
    assert [result.size for result in results] == list(SIZES)
    for detections in results:
        assert 0 < len(detections) <= 20
        assert (detections.labels >= 0).all()
        assert (detections.scores > 0.3).all()
        assert (detections.scores.diff() <= 0).all()
        height, width = detections.pixels.shape[:2]
        limit = torch.tensor([width, height, width, height])
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= limit).all()
        assert not detections.boxes.is_inference()


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_batch_equals_single(detector: Detector, config: Config, folder: Path, batch: int) -> None:
    paths = find_sources([folder])
    single = found(detect_images(detector, paths, config, batch=1))
    together = found(detect_images(detector, paths, config, batch=batch))
    assert len(single) == len(together) == len(SIZES)
    for one, other in zip(single, together):
        assert np.array_equal(one.pixels, other.pixels)
        pair = (one.image(0), other.image(0))
        close = {"score_atol": 1e-5, "box_atol": 1e-2, "box_rtol": 0.0}
        assert_same_detections(*pair, score=0.3, iou=config.detect.nms_iou, keep=20, **close)


def test_equals_evaluation_of_the_same_photos(detector: Detector, config: Config, tmp_path: Path) -> None:
    """JPEG images, one of them turned by EXIF, in a VOC root: the test loader's path gives the same detections."""
    from detkit.data.loader import test_loader
    from detkit.data.opening import open_dataset
    from detkit.inference.evaluate import detect_dataset

    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    for number, size in enumerate(SIZES):
        keys = {"exif": turned} if number == 1 else {}
        Image.fromarray(sample_image(*size, seed=number)).save(tmp_path / f"JPEGImages/{number}.jpg", **keys)
        height, width = size[::-1] if number == 1 else size
        box = "<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
        (tmp_path / f"Annotations/{number}.xml").write_text(
            f"<annotation><filename>{number}.jpg</filename><size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size><object><name>king</name>{box}</object></annotation>"
        )
    (tmp_path / "ImageSets/Main/test.txt").write_text("\n".join(map(str, range(len(SIZES)))))

    dataset = open_dataset(DataConfig(root=str(tmp_path)), "test", CLASSES)
    loader = test_loader(dataset, detector.input, batch=len(SIZES), workers=0)
    evaluated = detect_dataset(detector, loader, config, torch.device("cpu"))
    paths = find_sources([tmp_path / "JPEGImages"])
    results = found(detect_images(detector, paths, config, batch=len(SIZES)))
    image = torch.tensor([number for number, result in enumerate(results) for _ in result], dtype=torch.int64)
    boxes, scores, labels = map(torch.cat, zip(*(one.image(0) for one in results)))
    assert len(labels) > len(SIZES)
    assert DetectionSet(boxes, scores, labels, image, tuple(map(str, range(len(SIZES)))), CLASSES) == evaluated


def test_broken_photos_keep_their_place(detector: Detector, config: Config, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no jpeg")
    good = sorted(folder.iterdir())
    paths = [broken, good[0], broken, broken, good[1]]
    results = list(detect_images(detector, paths, config, batch=2))
    assert [isinstance(result, UserError) for result in results] == [True, False, True, True, False]
    assert str(broken) in str(results[0])
    assert results[4].pixels.shape[:2] == SIZES[1]


def test_reads_no_further_than_two_batches_ahead(detector: Detector, config: Config) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield sample_image(50, 50)

    with closing(detect_images(detector, endless(), config, batch=3)) as results:
        for _ in range(4):
            next(results)
    assert taken <= 9


def test_error_while_reading_comes_out(detector: Detector, config: Config) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield sample_image(50, 50)
        raise UserError("the cable came off")

    with pytest.raises(UserError, match="cable"):
        list(detect_images(detector, failing(), config, batch=1))


def test_training_mode_is_left_as_it_was(detector: Detector, config: Config) -> None:
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    evaluated = found(detect_images(detector, [sample_image(50, 50)], config))
    detector.train()
    trained = found(detect_images(detector, [sample_image(50, 50)], config))
    assert detector.training
    detector.eval()
    assert_same(evaluated[0], trained[0])
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


# detector.detect


def test_detect_takes_paths_arrays_tensors_and_lists(detector: Detector, folder: Path, video: Path) -> None:
    array = sample_image(*SIZES[0])
    expected = detector.detect(array, score=0.3)
    assert len(expected) == 1
    assert expected[0].labels.numel() > 0
    for source in (torch.from_numpy(array).permute(2, 0, 1), folder / "0.png", str(folder / "0.png"), [array]):
        (one,) = detector.detect(source, score=0.3)
        assert_same(one, expected[0])
    mixed = detector.detect([folder, array, str(folder / "[12].png"), video], batch=4)
    assert len(mixed) == len(SIZES) + 1 + 2 + 12


def test_images_in_memory_of_every_kind(detector: Detector, folder: Path) -> None:
    """BGR is said of arrays and tensors alone; a batch gives one for each of its images."""
    arrays = [sample_image(60, 90, seed) for seed in range(2)]
    one, two = detector.detect(arrays, score=0.3)
    assert one != two
    batch = torch.from_numpy(np.stack(arrays))
    sources = (np.stack(arrays), batch.permute(0, 3, 1, 2), [Image.fromarray(array) for array in arrays], iter(arrays))
    for source in sources:
        assert detector.detect(source, score=0.3) == [one, two]
    turned = np.ascontiguousarray(np.stack(arrays)[..., ::-1])
    for source in (turned, torch.from_numpy(turned).permute(0, 3, 1, 2)):
        assert detector.detect(source, score=0.3) != [one, two]
        found = detector.detect(source, score=0.3, bgr=True)
        assert found == [one, two]
        assert np.array_equal(found[0].pixels, arrays[0])
    path = folder / "0.png"
    assert detector.detect([path, Image.open(path)], bgr=True) == [
        replace(result, path=other) for result, other in zip(detector.detect([path, path]), (path, None))
    ]


def test_a_detector_is_called_with_sources_and_with_images(detector: Detector, folder: Path) -> None:
    array = sample_image(60, 90)
    assert detector(array, score=0.3) == detector.detect(array, score=0.3)
    assert detector(str(folder), batch=2) == detector.detect(folder)
    images = images_of(random_image(96, 96))
    assert detector(images) == detector.predict(images)
    targets = Targets.pad([(torch.tensor([[10.0, 10, 50, 50]]), torch.tensor([1]), torch.tensor([False]))])
    assert detector(images, targets).keys() == detector.losses(images, targets).keys()


def test_results_tell_where_their_image_is_from(detector: Detector, folder: Path, video: Path) -> None:
    """Files are read again when they are drawn, so that a list of many takes no memory."""
    image, *clip = detector.detect([folder / "1.png", video])
    assert (image.path, image.frame, image.size, image.kept) == (folder / "1.png", None, SIZES[1], None)
    assert image.classes == CLASSES
    assert np.array_equal(image.pixels, decode_image(folder / "1.png"))
    assert [(one.path, one.frame) for one in clip] == [(video, number) for number in range(12)]
    assert [one.seconds for one in clip] == pytest.approx([number / 12.5 for number in range(12)])
    assert clip[7].kept is None
    streamed = list(detector.stream(video))
    assert streamed == clip
    assert np.array_equal(streamed[7].kept, clip[7].pixels)


def test_a_stream_begins_before_its_source_ends(detector: Detector, folder: Path) -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray | Path]:
        nonlocal taken
        while True:
            taken += 1
            yield folder / "2.png" if taken % 2 else sample_image(50, 50)

    with closing(detector.stream(endless(), score=0.3, batch=3)) as results:
        first, second = next(results), next(results)
    assert (first.path, second.path) == (folder / "2.png", None)
    assert taken <= 9
    with pytest.raises(UserError, match="knows no class"):
        detector.stream(endless(), classes=["joker"])
    with pytest.raises(TypeError, match="scor"):
        detector.stream(endless(), scor=0.3)


def test_detect_may_turn_off_what_the_checkpoint_turns_on(detector: Detector, config: Config) -> None:
    """False is a setting, and not the same as None."""
    array = sample_image(*SIZES[0])
    plain, mirrored = (detector.detect(array, score=0.3, flip=flip)[0] for flip in (False, True))
    assert len(plain) != len(mirrored)
    detector.experiment = replace(config, detect=DetectConfig(flip=True))
    try:
        assert_same(detector.detect(array, score=0.3)[0], mirrored)
        assert_same(detector.detect(array, score=0.3, flip=False)[0], plain)
    finally:
        detector.experiment = None


@pytest.mark.parametrize("count", [None, 2, 9])
def test_as_many_regions_are_proposed_as_in_training(count: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = np.arange(20, dtype=np.float32).reshape(5, 4)
    parameters = []

    def find(name: str, values: dict) -> Method:
        parameters.append((name, values))
        return lambda image: proposed + image.shape[0]

    monkeypatch.setattr(predict, "find_method", find)
    settings = DetectConfig(proposals="single", proposal_side=300)
    method = proposal_method(Config(detect=settings, data=DataConfig(root="", proposal_count=count)))
    np.testing.assert_array_equal(method(sample_image(7, 9)), proposed[:count] + 7)
    assert parameters == [("selective_search", {"mode": "single", "seed": 0, "max_side": 300})]


def test_detect_says_what_is_wrong(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"bad")
    for source, words in (
        (tmp_path / "bad.png", "bad.png"),
        ("missing.jpg", "missing.jpg"),
        (np.zeros((4, 4), np.uint8), r"\(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), r"\(3, 4, 4\)"),
        (Image.new("F", (4, 4)), "mode F"),
        ([None], "got NoneType"),
        ("http://", "http://: no host given"),
        (torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), r"\(1, 1, 3, 4, 4\)"),
        (0, "camera 0 has no end"),
    ):
        with pytest.raises(UserError, match=words):
            detector.detect(source)
    assert detector.detect([]) == []


def test_video_of_detections(detector: Detector, config: Config, video: Path) -> None:
    config = replace(config, detect=replace(config.detect, score_threshold=0.0))
    with VideoReader(Video(video)) as reader, closing(detect_images(detector, reader, config, batch=5)) as results:
        assert len(found(results)) == 12
