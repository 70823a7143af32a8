"""Images that are nearly the same: saved again, made smaller; others are not."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.data.alike import group_alike
from tests.builders import sample_image

pytestmark = pytest.mark.filterwarnings("error")


def write(folder: Path, name: str, image: np.ndarray, *options: int) -> str:
    assert cv2.imwrite(str(folder / name), image, options)
    return str(folder / name)


def test_groups(tmp_path: Path) -> None:
    image, other = sample_image(300, 400, seed=1), sample_image(300, 400, seed=2)
    moved = image.copy()
    moved[100:140, 100:140] = 255  # a small object that came by
    paths = [
        write(tmp_path, "a.jpg", image),
        write(tmp_path, "other.jpg", other),
        write(tmp_path, "again.jpg", image, cv2.IMWRITE_JPEG_QUALITY, 60),
        write(tmp_path, "small.png", cv2.resize(image, (200, 150), interpolation=cv2.INTER_AREA)),
        write(tmp_path, "mirrored.jpg", image[:, ::-1].copy()),
        write(tmp_path, "moved.jpg", moved),
        write(tmp_path, "plain.png", np.full((50, 50, 3), 90, np.uint8)),
        write(tmp_path, "also_plain.png", np.full((60, 50, 3), 180, np.uint8)),
        str(tmp_path / "none.jpg"),
    ]
    groups = group_alike(paths).tolist()
    assert groups[0] == groups[2] == groups[3] == groups[5]
    assert len({groups[0], groups[1], groups[4], *groups[6:]}) == 6
    assert sorted(set(groups)) == list(range(6))
    assert group_alike([]).tolist() == []


def test_a_chain_is_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that each are like the next."""
    bits = np.zeros((5, 256), np.uint8)
    for row in range(5):
        bits[row, : 18 * row] = 1
    packed = np.packbits(bits, axis=1)
    monkeypatch.setattr("detkit.data.alike._signs", lambda path: packed[int(path)])
    assert group_alike([*"01234"]).tolist() == [0] * 5
    assert len(set(group_alike([*"024"]).tolist())) == 3  # 36 bits apart


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_those_of_every_pair(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (40, 256), dtype=np.uint8)
    for row in range(1, 40, 2):  # each second is like the one before, more or less
        bits[row] = bits[row - 1]
        bits[row, random.choice(256, random.integers(12, 37), replace=False)] ^= 1
    packed = np.packbits(bits, axis=1)
    monkeypatch.setattr("detkit.data.alike._signs", lambda path: packed[int(path)])
    groups = group_alike([str(row) for row in range(40)])
    near = (bits[:, None] != bits[None]).sum(-1) <= 24
    assert ((groups[:, None] == groups[None]) == near).all()
