"""COCO's results: what is read, what is refused, and what their ids mean for a data set."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.cli import main
from detkit.data.coco import COCODataset
from detkit.errors import UserError
from detkit.evaluation import parse_coco_results
from tests.data.roots import make_root, xml
from tests.real_data import DATA, needs

GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3.5, 4], "score": 0.5}
TWELVE = ("mAP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: str, content: Any) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))
    return Path(path)


def evaluate(results: object, root: str, *options: str) -> dict[str, Any]:
    arguments = ["--detections", str(results), "--dataset", root, "--out", "out", *options]
    assert main(["evaluate", *arguments]) == 0
    # pycocotools' floats make 0.9999999999999998 of a 1
    return json.loads(Path("out/metrics.json").read_text(), parse_float=lambda text: round(float(text), 13))


def refused(capsys: pytest.CaptureFixture[str], results: object, root: str) -> str:
    capsys.readouterr()
    assert main(["evaluate", "--detections", str(results), "--dataset", root]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error.strip()


def entry(image: object, category: object, box: tuple[float, ...] = (0, 0, 20, 20), score: float = 0.9) -> dict:
    return {"image_id": image, "category_id": category, "bbox": [*box], "score": score}


def coco(ids: list, categories: dict[int, str], files: list[str] | None = None) -> str:
    """A root in COCO layout, an object of each category, of 20 x 20 pixels, in its first images."""
    files = files or [f"{number:06d}.jpg" for number in range(1, len(ids) + 1)]
    objects = [
        {"id": number, "image_id": image, "category_id": key, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0}
        for number, (image, key) in enumerate(zip(ids, categories), 1)
    ]
    content = {
        "images": [{"id": key, "file_name": file, "width": 60, "height": 40} for key, file in zip(ids, files)],
        "categories": [{"id": key, "name": name} for key, name in categories.items()],
        "annotations": objects,
    }
    write("coco/annotations/instances_test.json", content)
    return "coco"


def voc() -> str:
    annotations = {"000007": xml([("cat", (1, 1, 20, 20))]), "b": xml([("dog", (1, 1, 20, 20))])}
    make_root(Path("voc"), annotations, {"test": ["000007", "b"]}, image_files=False)
    return "voc"


def test_boxes_become_edges_in_float64() -> None:
    results = parse_coco_results(Path("x.json"), [GOOD, {**GOOD, "image_id": "a", "bbox": [0.1, 0, 0, 0], "area": 3}])
    assert results.boxes.tolist() == [[1, 2, 4.5, 6], [0.1, 0, 0.1, 0]]
    assert results.scores.tolist() == [0.5, 0.5]
    assert (results.image_ids, results.category_ids) == ([1, "a"], [1, 1])
    assert parse_coco_results(Path("x.json"), []).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (5, "5 is not a mapping with image_id, category_id, bbox, score"),
        ({"bbox": None, "segmentation": {}}, "no 'bbox' in it; keypoints, and masks without boxes, are not scored"),
        ({"score": None, "image_id": None}, "no 'image_id' and no 'score' in it"),
        ({"image_id": [1]}, "image_id [1] is neither a whole number nor a text"),
        ({"image_id": True}, "image_id true is neither"),
        ({"category_id": 1.5}, "category_id 1.5 is neither"),
        ({"bbox": [1, 2, 3]}, "bbox [1, 2, 3] is not four finite numbers"),
        ({"bbox": "1234"}, 'bbox "1234" is not four'),
        ({"bbox": [1, 2, 3, "4"]}, "is not four"),
        ({"bbox": [1, 2, float("nan"), 4]}, "is not four"),
        ({"bbox": [1, 2, 10**400, 4]}, "is not four"),
        ({"bbox": [1, 2, -3, 4]}, "bbox [1, 2, -3, 4] has a negative width or height"),
        ({"score": "0.5"}, 'score "0.5" is not a finite number'),
        ({"score": [0.5]}, "score [0.5] is not a finite number"),
        ({"score": float("inf")}, "score Infinity is not a finite number"),
    ],
)
def test_a_wrong_entry_is_named(changes: Any, words: str) -> None:
    wrong = changes
    if isinstance(changes, dict):
        wrong = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    for content, number in (([GOOD, wrong], 1), ([wrong], 0)):
        with pytest.raises(UserError) as error:
            parse_coco_results(Path("x.json"), content)
        assert str(error.value).startswith(f"x.json: entry {number}: ")
        assert words in str(error.value)


def test_ids_are_those_of_a_coco_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Gaps and another order among them, too; file names stand for images, as some tools write them."""
    root = coco([40, 7], {18: "dog", 3: "cat"})
    results = [entry(40, 18), entry(7, 3)]
    assert evaluate(write("r.json", results), root)["AP"] == {"cat": 1, "dog": 1}
    assert evaluate(write("r.json", results), root)["metric"] == "coco"
    assert evaluate(write("r.json", [entry("000001", 18), entry("000002", 3)]), root)["mAP"] == 1
    assert evaluate(write("r.json", [entry(7, 18), entry(40, 3)]), root)["mAP"] == 0
    assert evaluate(write("r.json", []), root)["mAP"] == 0
    assert evaluate(write("r.json", results), root, "--metric", "voc", "--classes", "dog")["AP"] == {"dog": 1}
    for wrong, words in (
        (entry(1, 18), "r.json: entry 1: image_id 1 is not in "),
        (entry(40, 1), "entry 1: category_id 1 is not in"),
        (entry("40", 18), 'image_id "40" is not in'),
    ):
        assert words in refused(capsys, write("r.json", [results[0], wrong]), root)
    assert "expected 'detkit detections 1', as evaluate writes detections.json, or COCO's results" in refused(
        capsys, write("r.json", {"annotations": results}), root
    )


def test_a_data_set_without_ids_is_read_by_names_and_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Only where the category ids tell where they begin; what was assumed is said."""
    root = voc()
    for image, first in (("000007", 0), (7, 1)):
        results = write("r.json", [entry(image, first), entry("b", first + 1)])
        capsys.readouterr()
        assert evaluate(results, root)["mAP"] == 1
        line = capsys.readouterr().out.splitlines()[0]
        assert line.startswith("voc/test has no ids: images are taken by the names of their files")
        assert line.endswith(f"categories {first} to {first + 1} as cat, dog")
    for entries, words in (
        ([entry("b", 1)], "category ids may begin at 0 or at 1: voc/test has 2 classes"),
        ([entry("b", 0), entry("b", 2)], "0 and 2 are both used"),
        ([entry("b", 3)], "category_id 3, but voc/test has 2 classes"),
        ([entry("b", "dog")], "category_id 'dog', but"),
        ([entry(8, 0)], "image_id 8 is not in voc/test"),
    ):
        assert words in refused(capsys, write("r.json", entries), root)


def companion(files: list[str], **names: int) -> None:
    images = [{"id": key, "file_name": file, "width": 60, "height": 40} for key, file in enumerate(files, 1)]
    categories = [{"id": key, "name": name} for name, key in names.items()]
    write("coco_images.json", {"images": images, "categories": categories, "annotations": []})


def test_ids_of_detkits_own_results(capsys: pytest.CaptureFixture[str]) -> None:
    """coco_images.json says what they mean, whatever the data set's own ids are."""
    results = write("r.json", [entry(1, 2), entry(2, 1)])
    for root in (voc(), coco([2, 1], {5: "cat", 2: "dog"}, ["000007.jpg", "b.jpg"])):
        companion(["x/b.jpg", "x/000007.jpg"], cat=1, dog=2, owl=3)
        capsys.readouterr()
        metrics = evaluate(results, root)
        assert (metrics["mAP"], [*metrics["AP"]]) == (1, ["cat", "dog", "owl"])
        assert capsys.readouterr().out.splitlines()[0] == "image and category ids are those of coco_images.json"
        companion(["x/b.jpg"], cat=1, dog=2)
        write("one.json", [entry(1, 2)])
        assert evaluate("one.json", root)["AP"] == {"cat": 0, "dog": 1}
        assert "without 1 of the 2 images: they count as without detections" in capsys.readouterr().out
        assert "entry 1: image_id 2 is not in coco_images.json" in refused(capsys, results, root)
        companion(["b.jpg", "c.jpg"], cat=1, dog=2)
        assert f"coco_images.json: image c.jpg is not in {root}/test" in refused(capsys, results, root)
        companion(["b.jpg", "x/b.jpg"], cat=1, dog=2)
        assert "image b of" in refused(capsys, results, root)
        companion(["b.jpg", "000007.jpg"], cot=1, dog=2)
        assert "has no detections of class 'cat'; did you mean 'cot'?" in refused(capsys, results, root)


def test_another_file_of_the_same_name_is_another_image(capsys: pytest.CaptureFixture[str]) -> None:
    """Where both are there to be compared: a train and a test image may be called alike."""
    root, results = voc(), write("r.json", [entry(1, 1), entry(2, 2)])
    companion(["train/000007.jpg", "voc/JPEGImages/b.jpg"], cat=1, dog=2)
    for name in ("train/000007.jpg", "voc/JPEGImages/000007.jpg", "voc/JPEGImages/b.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    error = refused(capsys, results, root)
    assert "image train/000007.jpg is another file than" in error
    assert "voc/JPEGImages/000007.jpg" in error
    Path("train/000007.jpg").unlink()
    Path("train/000007.jpg").symlink_to(Path("voc/JPEGImages/000007.jpg").absolute())
    assert evaluate(results, root)["mAP"] == 1


@needs("bccd")
def test_equals_pycocotools_on_the_same_two_files(capsys: pytest.CaptureFixture[str]) -> None:
    """Crowds, many equal scores, and ids in no order, on which the order of equal scores depends."""
    assert main(["dataset", "convert", str(DATA / "bccd"), "--to", "coco", "--out", "set", "--split", "test"]) == 0
    (path,) = Path("set/annotations").iterdir()
    content, random = json.loads(path.read_text()), np.random.default_rng(0)
    ids = {image["id"]: int(key) for image, key in zip(content["images"], 1 + random.permutation(1000))}
    for image in content["images"]:
        image["id"] = ids[image["id"]]
    for category in content["categories"]:
        category["id"] = 7 * category["id"] + 3
    results = []
    for one in content["annotations"]:
        one.update(image_id=ids[one["image_id"]], category_id=7 * one["category_id"] + 3)
        one["iscrowd"] = int(random.random() < 0.05)
        for _ in range(3):
            left, top, width, height = np.round(one["bbox"] + random.normal(0, 6, 4), 2).tolist()
            category = 10 if random.random() < 0.1 else one["category_id"]
            box = (left, top, max(0.0, width), max(0.0, height))
            results.append(entry(one["image_id"], category, box, round(random.random(), 2)))
    random.shuffle(results)
    path.write_text(json.dumps(content))
    write("r.json", results)

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluator = COCOeval(truth, truth.loadRes("r.json"), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    metrics = evaluate("r.json", "set", "--reference", "--report")
    assert [metrics[name] for name in TWELVE] == pytest.approx(evaluator.stats.tolist(), abs=1e-12, rel=0)
    assert "0 of 12 numbers differ" in capsys.readouterr().out
    assert Path("out/report.html").is_file()
    dataset = COCODataset([(Path("set"), "test")])
    assert [*dataset.ids] != [*dataset.ranked_truth().ids]
