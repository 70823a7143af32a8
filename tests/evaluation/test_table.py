"""The table on screen."""

from rich.console import Console

from detkit.evaluation import coco_ap, per_class_table, reference_table, voc_ap
from tests.evaluation.sets import detection_set, truth_set

BOX = (0.0, 0.0, 10.0, 10.0)


def printed(table) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def shown(found, truth, metric=voc_ap) -> str:
    return printed(per_class_table(metric(found, truth), split="cats/test", source="runs/[1]/best.pt"))


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {name: rest for name, *rest in rows}


def test_a_row_for_each_class_and_the_protocol():
    truth = truth_set([("a", "cat", BOX), ("b", "cat", BOX)])
    text = shown(detection_set([("a", "cat", 0.9, BOX), ("a", "cat", 0.8, BOX)]), truth)
    rows = cells(text)
    assert rows["cat"] == ["0.5455", "2", "1", "2"]
    assert rows["dog"] == ["no objects", "0", "0", "0"]
    assert rows["mAP of 1 classes"] == ["0.5455", "2", "1", "2"]
    for part in ("voc07 (11-point AP), IoU >= 0.5, difficult ignored", "cats/test: 2 images", "runs/[1]/best.pt"):
        assert part in text


def test_coco_numbers_of_each_class_and_the_others_below():
    truth = truth_set([("a", "cat", BOX), ("b", "cat", BOX)])
    text = shown(detection_set([("a", "cat", 0.9, (0, 0, 10, 7))]), truth, coco_ap)
    # half of the objects, at IoU .5 to .7, of which .7 is reached in float64 as well
    expected = [f"{51 / 101 / 2:.4f}", f"{51 / 101:.4f}", "0.0000", "0.2500", "2"]
    assert cells(text) == {"cat": expected, "dog": ["-"] * 4 + ["0"], "mAP of 1 classes": expected}
    for part in (
        "APs 0.2525  APm -  APl -",
        "AR1 0.2500  AR10 0.2500  ARs 0.2500  ARm -",
        "IoU 0.50 to 0.95",
        "2 images",
    ):
        assert part in text


def test_differences_from_a_reference():
    text = printed(reference_table({"AP": 0.5, "APl": float("nan")}, {"AP": 0.25, "APl": float("nan")}, "pycocotools"))
    assert cells(text) == {"AP": ["0.500000000", "0.250000000", "2.5e-01"], "APl": ["nan", "nan", "nan"]}


def test_without_objects():
    assert "no objects" in shown(detection_set([]), truth_set([]))
