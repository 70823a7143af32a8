"""detkit.inference.sources: which images and videos a name stands for, and reading and writing videos."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.errors import UserError
from detkit.inference.sources import Video, VideoReader, find_sources, video_writer
from tests.builders import sample_image
from tests.inference import SIZES


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
