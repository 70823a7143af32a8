"""What a run says on the screen."""

from pathlib import Path

import pytest

from detkit.engine.log import Log, read_log

TIMES = {"images_per_second": 20.0, "data_share": 0.01}
METRICS = {"mAP": 0.5, "metric": "voc07", "iou": 0.5, "images": 9, "seconds": 1.0, "split": "val"}


def test_a_line_says_images_epochs_time_left_and_the_best_map_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Log(tmp_path, 0, 40) as log:
        log.losses(20, {"loss": 1.5}, TIMES, 0.01, "320 images, epoch 0.50")
    assert capsys.readouterr().out.startswith(
        "20/40  320 images, epoch 0.50  loss 1.500  lr 0.01  20.0 images/s  data 1%  0:00:00 left"
    )
    with Log(tmp_path, 20, 40, best=0.4) as log:
        log.losses(30, {"loss": 1.5}, TIMES, 0.01, "480 images, epoch 0.75")
        log.evaluation(30, METRICS, best=True)
        log.evaluation(35, {**METRICS, "mAP": 0.3}, best=False)
        log.losses(40, {"loss": 1.5}, TIMES, 0.01, "640 images, epoch 1.00")
    lines = capsys.readouterr().out.splitlines()
    assert "best val mAP 0.4000" in lines[0]
    assert lines[1].endswith("the best so far")
    assert "best val mAP 0.5000" in lines[-1]
    assert [record["iteration"] for record in read_log(tmp_path / "log.jsonl")] == [20, 30, 30, 35, 40]
