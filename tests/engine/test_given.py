"""Data sets that are given in Python: torch's, with images of a user's own, and those that detkit has opened."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

import detkit
from detkit.data.given import as_dataset
from detkit.data.loader import train_loader
from detkit.engine.trained import TrainedRun
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.structures import InputSpec

BOX = [[4.0, 4.0, 20.0, 18.0]]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Mine(torch.utils.data.Dataset):
    """Images of a data set in files, as torchvision's references have them. shift: augmentation of its own."""

    def __init__(self, root: Path, split: str, shift: bool = False, own: bool = True) -> None:
        self.data, self.shift = detkit.open_dataset(root, split), shift
        if own:
            self.classes = self.data.classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image, target = self.data[range(len(self.data))[index]].target()
        if self.shift and random.random() < 0.5:
            image, boxes = image.flip(-1), target["boxes"][:, [2, 1, 0, 3]]
            target = {
                **target,
                "boxes": (boxes * torch.tensor([-1.0, 1, -1, 1])) + torch.tensor([image.shape[-1], 0] * 2),
            }
        return image, target


def losses(run: Any) -> list[float]:
    return [one["loss"] for one in run.log if "loss" in one]


def test_it_trains_as_the_same_images_in_files_do(config: Path, toys: Path) -> None:
    short = {"iterations": 20, "evaluate_every": 20}
    by_root = detkit.train(config, out="root", train=short)
    splits = {split: Mine(toys, split) for split in ("train", "val", "test")}
    given = detkit.train(config, out="given", data=splits["train"], val=splits["val"], test=splits["test"], train=short)
    assert losses(given) == losses(by_root)
    assert given.metrics["AP"] == by_root.metrics["AP"]
    assert detkit.load(given.best).evaluate(splits["test"]).mAP == given.metrics["mAP"]
    assert load_config("given/config.yaml").data.format == "given"
    with pytest.raises(UserError, match="the data of this run were given in Python: give them again"):
        detkit.train(resume="given")
    with pytest.raises(UserError, match="the data of this run were given in Python"):
        detkit.load(given.best).evaluate()


def test_random_items_are_the_same_in_every_process_and_after_a_resume(config: Path, toys: Path) -> None:
    """An augmentation in the data set itself, image and boxes of one reading."""
    settings = load_config(config)
    dataset = as_dataset(Mine(toys, "train", shift=True), "train")
    streams = []
    for workers, start in ((0, 0), (2, 0), (0, 3)):
        settings.train.workers, settings.train.batch, settings.data.augment = workers, 4, []
        batches = [*train_loader(dataset, InputSpec((36, 40)), settings.data, settings.train, start=start, stop=6)]
        streams.append(batches[3 - start :])
    for other in streams[1:]:
        for (images, targets), (again, objects) in zip(streams[0], other, strict=True):
            assert torch.equal(images.pixels, again.pixels)
            assert torch.equal(targets.boxes, objects.boxes)
    flipped, plain = 0, detkit.open_dataset(toys, "train")
    for images, targets in streams[0]:
        for pixels, boxes, labels in zip(images.pixels, targets.boxes, targets.labels):
            for x1, y1, x2, y2 in boxes[labels >= 0].long().tolist():
                assert pixels[:, (y1 + y2) // 2, (x1 + x2) // 2].float().std() > 30  # a coloured square, not the grey
        flipped += sum(
            not np.array_equal(plain[int(name)].pixels, pixels.permute(1, 2, 0))
            for name, pixels in zip(images.ids, images.pixels)
        )
    assert 0 < flipped < 12


class One:
    """One image and its target."""

    classes = ("cat", "dog")

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.item() if callable(self.item) else self.item


def target(boxes: Any = BOX, labels: Any = (1,), **others: Any) -> dict[str, Any]:
    return {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), **others}


PIXELS = torch.zeros(3, 36, 40, dtype=torch.uint8)
XYWH = tv_tensors.BoundingBoxes(BOX, format="XYWH", canvas_size=(36, 40))


@pytest.mark.parametrize(
    "image",
    [
        PIXELS + 51,
        tv_tensors.Image(PIXELS + 51),
        torch.full((3, 36, 40), 0.2),
        np.full((36, 40, 3), 51, np.uint8),
        Image.new("RGB", (40, 36), (51, 51, 51)),
        Image.new("L", (40, 36), 51),
    ],
    ids=["uint8", "tv_tensor", "float", "array", "pillow", "grey"],
)
def test_images_may_be_of_any_kind(image: Any) -> None:
    boxes = tv_tensors.BoundingBoxes(BOX, format="XYXY", canvas_size=(36, 40))
    sample = as_dataset(One((image, {"boxes": boxes, "labels": [1], "iscrowd": [0]})), "train")[0]
    assert sample.pixels.shape == (36, 40, 3)
    assert (sample.pixels == 51).all()
    assert [tuple(one) for one in sample] == [((4.0, 4.0, 20.0, 18.0), 1, "dog", False)]


def test_an_image_without_objects_and_a_crowd() -> None:
    assert len(as_dataset(One((PIXELS, target([], []))), "train")[0]) == 0
    (crowd,) = as_dataset(One((PIXELS, target(iscrowd=torch.tensor([1])))), "train")[0]
    assert crowd.ignore


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (PIXELS, "train[0] is of type Tensor; it should be (image, {'boxes': ..., 'labels': ...})"),
        ((PIXELS, {"boxes": BOX}), "train[0]: its target has no 'labels', only 'boxes'"),
        ((PIXELS[:1], target()), "the image has the shape (1, 36, 40); it should be (3, H, W)"),
        ((PIXELS.permute(1, 2, 0).numpy()[..., :1], target()), "it should be (H, W, 3)"),
        ((PIXELS.int(), target()), "pixels are int32; they should be uint8, or floats from 0 to 1"),
        (
            (PIXELS.float() - 2.1, target()),
            "pixels from -2.1 to -2.1; floats should be from 0 to 1, and not normalised",
        ),
        ((PIXELS.float() + 255, target()), "pixels from 255 to 255"),
        ((PIXELS, target([4.0, 4, 20, 18])), "boxes have the shape (4,); it should be (n, 4)"),
        ((PIXELS, target(labels=[[1]])), "labels have the shape (1, 1); it should be (1,), one a box"),
        (
            (PIXELS, target([[20.0, 4, 16, 14]])),
            "box 0 is no box: [20.0, 4.0, 16.0, 14.0]; it should be x1, y1, x2, y2",
        ),
        ((PIXELS, target([[4.0, 4, float("nan"), 18]])), "box 0 is no box"),
        ((PIXELS, target([[4.0, 4, 60, 18]])), "box 0 reaches beyond the image of 40x36"),
        ((PIXELS, target([[0.1, 0.1, 0.5, 0.5]])), "boxes lie between 0 and 1"),
        (
            (PIXELS, target(labels=[2])),
            "label 2; labels count from 0 to 1; torchvision's references count from 1",
        ),
        ((PIXELS, target(labels=[-1])), "label -1; labels count from 0 to 1"),
        ((PIXELS, target(iscrowd=torch.zeros(2))), "iscrowd has the shape (2,); it should be (1,)"),
        (lambda: 1 / 0, "train[0]: ZeroDivisionError: division by zero"),
        ((PIXELS, {"boxes": XYWH, "labels": [1]}), "boxes are XYWH; they should be XYXY"),
    ],
)
def test_what_is_wrong_with_an_item_is_one_line(item: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        as_dataset(One(item), "train")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_given_is_one_line(config: Path, toys: Path) -> None:
    mine = Mine(toys, "train")
    drawing = iter(range(100))
    for keys, words in (
        ({"data": 5}, "train is of type int; it should be a data set"),
        ({"data": Mine(toys, "train", own=False)}, "train: what are its classes? give their names"),
        ({"data": mine, "classes": ["circle"]}, "label 1; labels count from 0 to 0"),
        ({"val": mine}, "train: val and test are data sets in Python, and so must data be"),
        ({"data": mine, "data.cache": True}, "data.cache: a data set that is given may change its images"),
        (
            {"data": mine, "val": One(lambda: (PIXELS + next(drawing), target())), "classes": ["circle", "square"]},
            "val[0] is another each time it is read",
        ),
    ):
        with pytest.raises(UserError) as error:
            detkit.train(config, out="run", **keys)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    assert not Path("run").exists()


def test_opened_data_sets_are_given_as_they_are(config: Path, toys: Path) -> None:
    splits = [detkit.open_dataset(toys, split) for split in ("train", "val")]
    run = detkit.train(config, out="run", data=splits[0], val=splits[1], train={"iterations": 2})
    assert run.metrics == {}  # there is no test
    other = detkit.open_dataset(toys, "val", classes=["square", "circle"])
    with pytest.raises(UserError, match="val has the classes square, circle, not circle, square"):
        detkit.train(config, out="other", data=splits[0], val=other)


# indexed


def test_items_of_a_data_set_have_a_picture(toys: Path, tmp_path: Path) -> None:
    dataset = detkit.open_dataset(toys, "test")
    assert repr(dataset) == f"<VOCDataset {toys.name}/test: 9 images, 2 classes>"
    samples = [*dataset]
    assert [one.id for one in samples] == list(dataset.ids)
    assert [one.id for one in dataset[2:5]] == list(dataset.ids[2:5])
    assert dataset[-1] == samples[-1]
    with pytest.raises(IndexError):
        dataset[9]
    sample = next(one for one in samples if len(one))
    assert sample.size == (36, 40)
    assert sample.plot().shape == (36, 40, 3)
    assert not np.array_equal(sample.plot(), sample.pixels)
    assert sample.save(tmp_path / "drawn.png").is_file()
    assert "data:image/jpeg" in sample._repr_html_()
    record = dataset.record(samples.index(sample))
    assert sample.boxes.tolist() == record.annotations.boxes.tolist()
    assert sample.names == [dataset.classes[label] for label in record.annotations.labels]
    assert repr(sample).startswith(f"<Sample {sample.id} 40x36: ")


def test_a_run_has_a_picture(trained: Path, tmp_path: Path) -> None:
    run = TrainedRun(trained)
    assert run.plot().shape[2] == 3
    assert run.plot().std() > 10
    assert run.save(tmp_path / "curves.png").is_file()
    assert "data:image/png" in run._repr_html_()
    assert f"mAP {run.metrics['mAP']:.4f}" in run._repr_html_()
