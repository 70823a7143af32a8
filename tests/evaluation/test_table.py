"""The table on screen."""

from rich.console import Console

from detkit.evaluation import per_class_table, voc_ap
from tests.evaluation.sets import detection_set, truth_set

BOX = (0.0, 0.0, 10.0, 10.0)


def shown(found, truth) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(per_class_table(voc_ap(found, truth), split="cats/test", source="runs/[1]/best.pt"))
    return capture.get()


def test_a_row_for_each_class_and_the_protocol():
    truth = truth_set([("a", "cat", BOX), ("b", "cat", BOX)])
    text = shown(detection_set([("a", "cat", 0.9, BOX), ("a", "cat", 0.8, BOX)]), truth)
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in text.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["cat"]] == ["0.5455", "2", "1", "2"]
    assert [cell.strip() for cell in rows["dog"]] == ["no objects", "0", "0", "0"]
    assert [cell.strip() for cell in rows["mAP of 1 classes"]] == ["0.5455", "2", "1", "2"]
    for part in ("voc07 (11-point AP), IoU >= 0.5, difficult ignored", "cats/test: 2 images", "runs/[1]/best.pt"):
        assert part in text


def test_without_objects():
    assert "no objects" in shown(detection_set([]), truth_set([]))
