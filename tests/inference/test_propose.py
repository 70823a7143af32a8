"""A store of a Faster R-CNN's proposals: the boxes of its RPN, in pixels of the images, also when interrupted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.checkpoints import checkpoint
from detkit.config import Config, DataConfig, EvaluateConfig, TrainConfig
from detkit.data.proposal_store import StoredProposals, open_store
from detkit.data.transforms import resize
from detkit.data.voc import VOCDataset
from detkit.errors import UserError
from detkit.inference.propose import load_proposer, make_rpn_store
from detkit.models import build_detector
from detkit.structures import Images
from tests.builders import tiny_faster_rcnn_config
from tests.matching import assert_same_detections
from tests.toys.toy import CLASSES, draw_toys


@pytest.fixture
def best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the checkpoint of an untrained Faster R-CNN, whose scores differ."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw_toys(tmp_path / "toys")
    torch.manual_seed(0)
    model = tiny_faster_rcnn_config(test_post_nms_top_n=20)
    detector = build_detector(model, CLASSES)
    for name in ("objectness", "deltas"):
        torch.nn.init.normal_(detector.get_submodule(f"rpn.{name}").weight, std=0.3)  # pyright: ignore
    train = TrainConfig(iterations=7, workers=0)
    config = Config(model, DataConfig(root=str(tmp_path / "toys")), train, evaluate=EvaluateConfig(batch=4))
    checkpoint.save(tmp_path / "run" / "best.pt", detector, config)
    return tmp_path / "run" / "best.pt"


def toys(best: Path, split: str = "test") -> VOCDataset:
    return VOCDataset([(best.parents[1] / "toys", split)])


def test_boxes_are_those_of_the_rpn_on_the_image(best: Path, tmp_path: Path) -> None:
    detector, config = load_proposer(best)
    dataset = toys(best)
    store = make_rpn_store(tmp_path / "a.npz", dataset, detector, config, best)
    assert store.ids == dataset.ids
    assert store.manifest.method == "rpn"
    parameters = dict(store.manifest.parameters)
    assert len(parameters.pop("weights")) == 16
    assert parameters == {
        "checkpoint": "run/best.pt",
        "size": [64, 96],
        "pre_nms_top_n": 60,
        "post_nms_top_n": 20,
        "nms_iou": 0.7,
        "min_size": 2.0,
    }
    spread = set()
    for i, name in enumerate(dataset.ids):
        image = dataset.image(i)
        assert image.shape == (36, 40, 3)
        pixels = torch.from_numpy(resize(image, (64, 71))).permute(2, 0, 1)[None]
        with torch.inference_mode():
            images = Images(pixels, torch.tensor([[64, 71]]), torch.tensor([[36, 40]]), (name,))
            expected = detector.propose_regions(images)
        assert expected.scores is not None
        boxes, scores = store.boxes(name), store.scores(name)
        assert scores is not None
        assert 10 <= len(boxes) <= 20
        valid = expected.valid[0]
        scale = torch.tensor([40, 36] * 2) / torch.tensor([71, 64] * 2)
        own = (torch.tensor(boxes), torch.tensor(scores), torch.zeros(len(boxes)))
        alone = (expected.boxes[0][valid] * scale, expected.scores[0][valid], torch.zeros(int(valid.sum())))
        assert_same_detections(own, alone, score=0, iou=0.7, keep=20, score_atol=1e-5, box_atol=1e-3, box_rtol=0)
        assert (np.diff(scores) <= 0).all()
        spread |= set(scores.tolist())
    assert 0 < min(spread) < max(spread) < 1
    StoredProposals([store], dataset)  # inside of the images
    fewer = make_rpn_store(tmp_path / "b.npz", dataset, *load_proposer(best, count=3), best)
    assert fewer.counts.tolist() == [3] * 9
    np.testing.assert_array_equal(fewer.boxes(2), store.boxes(2, 3))


def test_going_on_gives_the_same(best: Path, tmp_path: Path) -> None:
    detector, config = load_proposer(best)
    dataset, seen = toys(best), []
    whole = make_rpn_store(tmp_path / "a.npz", dataset, detector, config, best)

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^6 of 9 images are done; the same command goes on from there$"):
        make_rpn_store(tmp_path / "b.npz", dataset, detector, config, best, stop)
    (part,) = tmp_path.glob("b.npz.parts-*/*.npz")
    assert open_store(part).ids == dataset.ids[:6]
    assert open_store(part).scored
    # what is there isn't looked at again, but for the rest of a batch begun
    for name in dataset.ids[:4]:
        (best.parents[1] / "toys" / "JPEGImages" / f"{name}.jpg").unlink()
    again = make_rpn_store(tmp_path / "b.npz", dataset, detector, config, best, lambda *count: seen.append(count))
    assert seen == [(count, 9) for count in range(1, 10)]
    for name in dataset.ids:
        np.testing.assert_array_equal(again.boxes(name), whole.boxes(name))
        np.testing.assert_array_equal(again.scores(name), whole.scores(name))
    assert not list(tmp_path.glob("b.npz.parts-*"))


def test_other_weights_make_another_store(best: Path, tmp_path: Path) -> None:
    detector, config = load_proposer(best)
    make_rpn_store(tmp_path / "a.npz", toys(best), detector, config, best)
    assert make_rpn_store(tmp_path / "a.npz", toys(best), *load_proposer(best), best).ids == toys(best).ids
    with torch.no_grad():
        detector.get_parameter("rpn.conv.bias")[3] += 1e-6
    with pytest.raises(
        UserError, match=r"a\.npz holds rpn\(.*post_nms_top_n=20, .*weights=\w+\), not rpn\(.*; remove .*a\.npz, or"
    ):
        make_rpn_store(tmp_path / "a.npz", toys(best), detector, config, best)
    with pytest.raises(UserError, match=r"post_nms_top_n=20.*not rpn\(.*post_nms_top_n=19"):
        make_rpn_store(tmp_path / "a.npz", toys(best), *load_proposer(best, count=19), best)
    with pytest.raises(UserError, match=r"a\.npz holds 9 other images"):
        make_rpn_store(tmp_path / "a.npz", toys(best, "val"), *load_proposer(best), best)
