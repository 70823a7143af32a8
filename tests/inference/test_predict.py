"""detkit.inference.predict and sources: what is read, and that detection is the evaluator's."""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, UnidentifiedImageError

from detkit.config import Config, DataConfig, DetectConfig, TrainConfig
from detkit.data.image_file import decode_image, from_pillow
from detkit.errors import UserError
from detkit.inference import predict
from detkit.inference.predict import detect_images, proposal_method
from detkit.inference.results import ImageDetections
from detkit.inference.sources import Video, VideoReader, find_sources, video_writer
from detkit.models import Detector, build_detector
from detkit.proposals.methods import Method
from detkit.structures import DetectionSet, Targets
from tests.builders import images_of, random_image, tiny_ssd_config
from tests.matching import assert_same_detections

CLASSES = ("ace", "king", "queen")
SIZES = ((60, 90), (131, 77), (96, 96), (40, 200), (75, 50))


def sample_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.ascontiguousarray(random_image(height, width, seed)[0].permute(1, 2, 0).numpy())


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("all") / "images"
    root.mkdir()
    for number, size in enumerate(SIZES):
        Image.fromarray(sample_image(*size, seed=number)).save(root / f"{number}.png")
    return root


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


# images


@pytest.mark.parametrize(
    ("suffix", "mode", "error"),
    [
        (".png", "RGB", 0),
        (".png", "L", 0),
        (".png", "P", 0),
        (".png", "1", 0),
        (".png", "I;16", 0),
        (".bmp", "RGB", 0),
        (".tif", "RGB", 0),
        (".tif", "CMYK", 1),
        (".gif", "P", 0),
        (".jpg", "RGB", 2),
        (".jpg", "L", 2),
        (".jpg", "CMYK", 3),
        (".webp", "RGB", 3),
    ],
)
def test_photos_of_every_kind(tmp_path: Path, suffix: str, mode: str, error: float) -> None:
    image = Image.fromarray(sample_image(48, 64)).filter(ImageFilter.GaussianBlur(4))  # or lossy formats lose its noise
    if mode == "I;16":
        grey = np.asarray(image.convert("L"))
        expected = np.repeat(grey[..., None], 3, 2)
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    path = tmp_path / f"image{suffix}"
    image.save(path, **({"quality": 95} if suffix in (".jpg", ".webp") else {}))
    pixels = decode_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - expected).mean() <= error


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "LA", "RGBA", "PA", "CMYK", "I;16"])
def test_images_of_pillow_are_read_as_their_files(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(sample_image(48, 64)).filter(ImageFilter.GaussianBlur(4))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA", "PA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    turned = Image.Exif()
    turned[0x0112] = 6
    if mode in ("CMYK", "PA"):  # Pillow itself reads some turned TIFFs from a file otherwise than from its bytes
        path, size = tmp_path / "x.tif", (48, 64, 3)
        image.save(path)
    else:
        path, size = tmp_path / "x.png", (64, 48, 3)
        image.save(path, exif=turned)
    pixels = from_pillow(Image.open(path))
    assert pixels.shape == size
    assert np.abs(pixels.astype(int) - decode_image(path)).mean() <= 1
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with suppress(UnidentifiedImageError), pytest.raises(UserError, match=str(path)):
        from_pillow(Image.open(path))


def test_transparent_is_white_also_where_turned(tmp_path: Path) -> None:
    colour = sample_image(40, 60)
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 20:] = 128
    alpha[:, 40:] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "x.png", exif=turned)
    pixels = np.rot90(decode_image(tmp_path / "x.png"), 1)
    assert (pixels[:, :20] == 255).all()
    assert np.abs(pixels[:, 20:40] - (colour[:, 20:40] * (128 / 255) + 127)).max() <= 1
    assert (pixels[:, 40:] == colour[:, 40:]).all()


# names


def test_find_sources(folder: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_files = [folder / f"{number}.png" for number in range(len(SIZES))]
    assert find_sources([folder]) == image_files
    assert find_sources([str(folder / "[0-2].png")]) == image_files[:3]
    assert find_sources([folder / "3.png", folder]) == [image_files[3], *image_files[:3], image_files[4]]  # each once
    assert find_sources([str(folder.parent / "**" / "4.png")]) == [image_files[4]]
    assert find_sources([video, "0", 1]) == [Video(video), Video(0), Video(1)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    Image.fromarray(sample_image(8, 8)).save("7/odd[1].JPG")
    (tmp_path / "7" / "notes.txt").write_text("no image")
    (tmp_path / "7" / "._odd.jpg").write_text("no image")
    assert find_sources(["7"]) == [Path("7/odd[1].JPG")]  # a folder called 7 is no camera
    assert find_sources(["7/odd[1].JPG"]) == [Path("7/odd[1].JPG")]  # nor is a file with brackets a glob
    Path("7/odd[1].JPG").rename("7/without_suffix")
    assert find_sources(["7/without_suffix"]) == [Path("7/without_suffix")]
    for name, words in (
        ("7", "no images"),
        ("missing", "no image, folder or video missing"),
        ("*.jpg", "matches no"),
        ("", "empty"),
    ):
        with pytest.raises(UserError, match=words):
            find_sources([name])


# videos


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 12 frames 64x48 whose green tells the number; a noisy corner makes it worth its header."""
    path = tmp_path_factory.mktemp("videos") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (64, 48))
    for number in range(12):
        frame = np.full((48, 64, 3), (0, 20 * number, 200), np.uint8)
        frame[24:, 32:] = np.random.default_rng(number).integers(0, 256, (24, 32, 3))
        writer.write(frame)
    writer.release()
    return path


def test_video_frames_in_order_and_rgb(video: Path) -> None:
    with VideoReader(Video(video)) as reader:
        assert (reader.fps, reader.size, reader.count) == (12.5, (48, 64), 12)
        frames = np.stack(list(reader)).astype(int)
    assert frames.shape == (12, 48, 64, 3)
    frames = frames[:, :16]
    assert np.abs(frames[..., 1].mean((1, 2)) - 20 * np.arange(12)).max() < 8
    assert frames[..., 0].mean() > 180
    assert frames[..., 2].mean() < 20
    assert not reader.cut_off


def test_cut_off_video_is_noticed(video: Path, tmp_path: Path) -> None:
    content = video.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    with VideoReader(Video(tmp_path / "cut.avi")) as reader:
        assert 0 < len(list(reader)) < 12
    assert reader.cut_off


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_written_video_reads_back(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "new" / "x.mp4"
    frame = np.zeros((*size, 3), np.uint8)
    frame[..., 0] = 200
    with video_writer(path, 12.5, size) as append:
        for number in range(5):
            append(frame, number / 12.5)
        assert not path.exists()
    with VideoReader(Video(path)) as reader:
        assert (reader.fps, reader.size, reader.count) == (12.5, (48 - 2 * (size[0] % 2), 64 - 2 * (size[1] % 2)), 5)
        assert next(iter(reader))[..., 0].mean() > 180
    with suppress(KeyboardInterrupt), video_writer(tmp_path / "half.mp4", 25, size) as append:
        append(frame, 0.0)
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]


def test_video_of_detections(detector: Detector, config: Config, video: Path) -> None:
    config = replace(config, detect=replace(config.detect, score_threshold=0.0))
    with VideoReader(Video(video)) as reader, closing(detect_images(detector, reader, config, batch=5)) as results:
        assert len(found(results)) == 12
