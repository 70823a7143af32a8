"""Faster R-CNN: its parts against torchvision's and loops, and all of it on small inputs."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detkit import cli
from detkit.backbones import FeatureInfo
from detkit.checkpoints import checkpoint
from detkit.config import BackboneConfig, DataConfig, DetectConfig
from detkit.data.opening import open_dataset
from detkit.data.proposal_store import ProposalStore, open_store
from detkit.errors import UserError
from detkit.models import build_detector, postprocess
from detkit.models.faster_rcnn import FasterRCNN
from detkit.models.fpn import pad_to
from detkit.models.region import sample_regions
from detkit.models.region_features import MapFeatures
from detkit.models.region_head import CODER
from detkit.ops import box_iou
from detkit.structures import Images, Proposals, Targets
from tests.builders import images_of, objects_of, random_image, tiny_faster_rcnn_config
from tests.toys.toy import draw_toys

IMAGES = images_of(random_image(64, 80).repeat(2, 1, 1, 1))
TWO = objects_of([[10.0, 20, 40, 50], [30, 5, 70, 40]], [])


@pytest.mark.parametrize("neck", ["none", "fpn"])
@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v2", "resnet18", "vgg16"])
def test_any_backbone_learns(neck: str, backbone: str) -> None:
    torch.manual_seed(0)
    size = 7 if backbone == "vgg16" else 3
    extra = {"channels": 24} if neck == "fpn" else {}
    scales = [2.0] if neck == "fpn" else [1.0, 2.0]
    keys = {"backbone": BackboneConfig(backbone), "neck": neck, "scales": scales, "pool_size": size, **extra}
    detector = build_detector(tiny_faster_rcnn_config(**keys), ("a", "b"))
    losses = detector(IMAGES, TWO)
    assert set(losses) == {"objectness", "rpn_box", "classification", "box"}
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    detector.eval()
    with torch.inference_mode():
        found, _ = postprocess(
            detector.predict(IMAGES), IMAGES, DetectConfig(score_threshold=0.0, detections_per_image=9)
        )
    assert found.boxes.shape == (2, 9, 4)


@pytest.mark.parametrize(
    ("backbone", "strides"), [("vgg16", [4, 8, 16]), ("resnet18", [4, 8, 16, 32]), ("mobilenet_v2", [8, 16, 32])]
)
def test_the_coarsest_map_of_a_pyramid_serves_the_rpn_alone(backbone: str, strides: list[int]) -> None:
    keys = {"backbone": BackboneConfig(backbone), "neck": "fpn", "scales": [2.0], "pool_size": 7, "channels": 8}
    detector = build_detector(tiny_faster_rcnn_config(**keys), ("a",))
    assert detector.rpn.anchors.strides == [*strides, 2 * strides[-1]]
    assert detector.features.strides == strides


@pytest.mark.parametrize("ignore", [False, True])
def test_batches_without_objects_have_finite_losses(ignore: bool) -> None:
    detector = build_detector(tiny_faster_rcnn_config(), ("a", "b"))
    batch = objects_of([[10.0, 20, 40, 50]], [[1.0, 1, 2, 2]], ignore=True) if ignore else objects_of([], [])
    losses = detector(IMAGES, batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["rpn_box"] == losses["box"] == 0


def test_a_batch_equals_its_images_one_by_one() -> None:
    torch.manual_seed(0)
    detector = build_detector(tiny_faster_rcnn_config(), ("a", "b")).eval()
    pixels = torch.cat([random_image(64, 96, seed) for seed in range(2)])
    sizes = torch.tensor([[64, 96], [64, 72]])
    both = detector.predict(Images(pixels, sizes, sizes, ("a", "b")))
    second = detector.predict(Images(pixels[1:, ..., :72].contiguous(), sizes[1:], sizes[1:], ("b",)))
    found, _ = postprocess(
        both, Images(pixels, sizes, sizes, ("a", "b")), DetectConfig(score_threshold=0.0, detections_per_image=5)
    )
    boxes, _, _ = found.image(1)
    assert (boxes[:, 2] <= 72).all()
    # what lies outside of an image is 0 to the network, as its own padding is, up to the depth of the convolutions
    assert both.boxes[1].shape == second.boxes[0].shape


def test_the_min_size_of_a_proposal_is_in_pixels_of_the_original() -> None:
    """Two images of other sizes than the network sees, larger and smaller; the lesser of two factors counts."""
    torch.manual_seed(0)
    pixels = random_image(64, 80).repeat(2, 1, 1, 1)
    sizes = torch.tensor([[64, 80]] * 2)
    keys = {"test_post_nms_top_n": 1000, "test_pre_nms_top_n": 1000, "rpn_nms_iou": 1.0, "scales": [1.0, 2.0, 4.0]}

    def sides(min_size: float, original: Tensor) -> list[Tensor]:
        detector = build_detector(tiny_faster_rcnn_config(min_size=min_size, **keys), ("a", "b")).eval()
        detector.load_state_dict(state)
        proposals = detector.propose_regions(Images(pixels, sizes, original, ("a", "b")))
        shorter = (proposals.boxes[..., 2:] - proposals.boxes[..., :2]).amin(-1)
        return [image[valid] for image, valid in zip(shorter, proposals.valid)]

    state = build_detector(tiny_faster_rcnn_config(**keys), ("a", "b")).state_dict()
    unlimited = sides(0.0, sizes)
    limited = sides(18.0, torch.tensor([[128, 128], [48, 40]]))
    for threshold, kept, candidates in zip((9.0, 24.0), limited, unlimited):
        assert 0 < len(kept) < len(candidates)
        assert torch.equal(kept, candidates[candidates >= threshold])


def test_padding_is_zero_after_normalising() -> None:
    detector = build_detector(tiny_faster_rcnn_config(), ("a",))
    pixels = torch.full((1, 3, 8, 10), 200, dtype=torch.uint8)
    x = detector.normalise(pixels, torch.tensor([[6, 7]]))
    assert (x[0, :, :6, :7] != 0).all()
    assert not x[0, :, 6:].any()
    assert not x[0, :, :, 7:].any()
    # without sizes all of it is valid
    assert (detector.normalise(pixels) != 0).all()


def test_batches_are_padded_to_the_next_multiple() -> None:
    pixels = random_image(64, 70).float()
    padded = pad_to(pixels, 32)
    assert padded.shape == (1, 3, 64, 96)
    assert torch.equal(padded[..., :70], pixels)
    assert not padded[..., 70:].any()
    assert pad_to(padded, 32).shape == padded.shape
    assert pad_to(pixels, 1) is pixels


def test_regions_are_pooled_from_the_map_of_their_size() -> None:
    """FPN, equation 1, against a loop over torchvision's kernel."""
    torch.manual_seed(0)
    info = [FeatureInfo(f"p{level}", 4, 1 << level) for level in (2, 3, 4, 5)]
    maps = [torch.randn(2, 4, 256 >> level, 256 >> level) for level in (2, 3, 4, 5)]
    sides = torch.tensor([3.0, 27, 28.1, 55, 57, 111, 113, 200])
    boxes = torch.stack((sides * 0, sides * 0 + 5, sides, sides + 5), -1).expand(2, -1, 4).contiguous()
    pooled = MapFeatures(info, "align", 7, canonical_scale=112.0).pool(maps, boxes)
    assert pooled.shape == (2, len(sides), 4, 7, 7)
    for image in range(2):
        for row, side in enumerate(sides.tolist()):
            level = 2 if side < 56 else 3 if side < 112 else 4
            roi = torch.cat((torch.tensor([image]), boxes[image, row])).unsqueeze(0)
            expected = roi_align(maps[level - 2], roi, 7, 1 / (1 << level), 2, True)[0]
            torch.testing.assert_close(pooled[image, row], expected)


def test_sampled_regions_carry_their_class_and_deltas() -> None:
    torch.manual_seed(0)
    objects = objects_of([[10.0, 20, 40, 50], [50, 10, 70, 40]], [[0.0, 0, 20, 20]])
    regions = torch.rand(2, 200, 4) * 40
    regions[..., 2:] += regions[..., :2] + 10
    regions[:, :40] = objects.boxes[:, :1] + torch.randn(2, 40, 4)
    valid = torch.ones(2, 200, dtype=torch.bool)
    valid[1, 100:] = False
    sampled = sample_regions(Proposals(regions, valid), objects, 2, tiny_faster_rcnn_config(batch_size_per_image=32))
    assert sampled.valid.all()
    positive = sampled.labels < 2
    assert (positive.sum(1) == 8).all()
    assert torch.equal(positive, sampled.matched_gt_index >= 0)
    deltas = sampled.target_deltas(CODER)
    decoded = CODER.decode(deltas, sampled.boxes)
    for image in range(2):
        rows = positive[image]
        positives = decoded[image][rows], sampled.labels[image][rows], sampled.matched_gt_index[image][rows]
        for box, label, index in zip(*positives):
            torch.testing.assert_close(box, objects.boxes[image, index], atol=1e-3, rtol=0)
            assert objects.labels[image, index] == label
    torch.testing.assert_close(decoded[positive], sampled.gt_boxes[positive], atol=1e-3, rtol=0)
    assert not deltas[~positive].any()


def test_frozen_layers_stay_as_they_are() -> None:
    detector = build_detector(tiny_faster_rcnn_config(freeze_stages=2, freeze_norms=True), ("a", "b"))
    assert isinstance(detector, FasterRCNN)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    detector.train()
    sum(detector(IMAGES, TWO).values()).backward()
    optimizer.step()
    moved = {name for name, tensor in detector.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith(("backbone.stem", "backbone.stage3.0")) for name in moved)
    norms = [name for name, module in detector.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(name.startswith(norm) for name in moved for norm in norms)
    assert moved == {name for name in before if name.startswith(("head.", "rpn.")) and ".delta_" not in f".{name}"}


def test_a_misfit_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.features: tiny gives the maps c3, c4, c5, not 'c9'"):
        build_detector(tiny_faster_rcnn_config(neck="fpn", features=["c9"]), ("a",))
    with pytest.raises(UserError, match=r"model\.pool_size: 5, but fc6 of VGG reads"):
        build_detector(tiny_faster_rcnn_config(backbone=BackboneConfig("vgg16"), pool_size=5), ("a",))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"neck": "fnp"}, "model.neck: 'fnp' is not one of none, fpn"),
        ({"pool": "max"}, "model.pool: 'max' is not one of pool, align"),
        ({"size": [600]}, r"model.size: \[600\] is not"),
        ({"bg_iou": [0.5]}, r"model.bg_iou: \[0.5\] is not"),
        ({"positive_fraction": 2.0}, "model.positive_fraction: 2.0"),
        ({"batch_size_per_image": 0}, r"model\.batch_size_per_image: 0 is not in \[1, inf\)"),
    ],
)
def test_a_wrong_value_is_named(keys: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tiny_faster_rcnn_config(**keys)


def overfit(detector: torch.nn.Module, images: Images, objects: Targets, steps: int) -> Tensor:
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    for _ in range(steps):
        total = torch.stack(list(detector(images, objects).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return total.detach()


def test_it_finds_what_it_was_trained_on() -> None:
    torch.manual_seed(0)
    pixels = torch.full((2, 3, 64, 80), 90, dtype=torch.uint8)
    objects = objects_of([[8.0, 8, 40, 40], [50, 30, 76, 60]], [[20.0, 10, 60, 50]])
    for image in range(2):
        for box, label in zip(objects.boxes[image].int().tolist(), objects.labels[image].tolist()):
            if label >= 0:
                pixels[image, label, box[1] : box[3], box[0] : box[2]] = 230
    sizes = torch.tensor([[64, 80]] * 2)
    images = Images(pixels, sizes, sizes, ("a", "b"))
    detector = build_detector(
        tiny_faster_rcnn_config(neck="fpn", channels=32, scales=[3.0], canonical_scale=64.0, pool="align"), ("a", "b")
    )
    overfit(detector.train(), images, objects, 200)
    detector.eval()
    with torch.inference_mode():
        found, _ = postprocess(detector.predict(images), images, DetectConfig(score_threshold=0.5, nms_iou=0.3))
    for image in range(2):
        valid = objects.labels[image] >= 0
        boxes, _, labels = found.image(image)
        assert sorted(labels.tolist()) == sorted(objects.labels[image][valid].tolist())
        for box, label in zip(objects.boxes[image][valid], objects.labels[image][valid]):
            assert ((boxes - box).abs().amax(1)[labels == label] < 4).any()


ALTERNATING = """
model:
  name: faster_rcnn
  training: alternating
  backbone: {name: tiny}
  size: [64, 80]
  freeze_stages: 0
  freeze_norms: false
  neck: fpn
  channels: 16
  scales: [2.0]
  rpn_width: 16
  pre_nms_top_n: null
  post_nms_top_n: 20
  batch_size_per_image: 8
  min_size: 2.0
data: {root: toys, train: [train], val: [val], test: [test], difficult: false, augment: [HorizontalFlip]}
train: {iterations: 3, batch: 4, workers: 0, evaluate_every: 1, milestones: [2], schedule: steps}
evaluate: {batch: 4}
"""


def assert_statistics(store: ProposalStore, found: dict[str, Tensor], where: str) -> None:
    """Compare the statistics of a head with a loop over the boxes of a store at 64 pixels, objects included."""
    dataset = open_dataset(DataConfig(root="toys", train=["train"]), "train")
    deltas: dict[int, list[Tensor]] = {}
    for i, name in enumerate(dataset.ids):
        annotations = dataset.record(i).annotations
        gt_boxes = torch.from_numpy(annotations.boxes)[~torch.from_numpy(annotations.difficult)]
        labels = annotations.labels[~annotations.difficult]
        for box in (*torch.from_numpy(store.boxes(name)), *gt_boxes):
            overlap = box_iou(gt_boxes, box[None])[:, 0]
            if len(labels) and overlap.max() >= 0.5:
                best = int(overlap.argmax())
                deltas.setdefault(int(labels[best]), []).append(CODER.encode(gt_boxes[best], box).double())
    assert set(deltas) == {0, 1}
    for label, values in deltas.items():
        rows = torch.stack(values)
        torch.testing.assert_close(found["delta_mean"][label].double(), rows.mean(0), atol=1e-5, rtol=1e-5, msg=where)
        torch.testing.assert_close(
            found["delta_std"][label].double(), rows.std(0, False), atol=1e-4, rtol=1e-4, msg=where
        )


def test_alternating_training_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step learns its own part and leaves the others; interrupted in any, it ends with the same weights."""
    monkeypatch.chdir(tmp_path)
    draw_toys(tmp_path / "toys")
    (tmp_path / "config.yaml").write_text(ALTERNATING)
    seen: dict[str, list[dict[str, Tensor]]] = {}
    batches: dict[str, set[int]] = {}
    losses, begin_stage = FasterRCNN.losses, FasterRCNN.begin_stage

    def watch(self: FasterRCNN, images: Images, targets: Targets) -> dict[str, Tensor]:
        seen.setdefault(self.stage, []).append({name: value.clone() for name, value in self.state_dict().items()})
        batches.setdefault(self.stage, set()).add(len(images))
        return losses(self, images, targets)

    monkeypatch.setattr(FasterRCNN, "losses", watch)
    assert cli.main(["train", "config.yaml", "--out", "whole"]) in (0, None)
    assert {stage: len(steps) for stage, steps in seen.items()} == {
        "rpn": 6,
        "fast_rcnn": 3,
        "rpn_shared": 6,
        "fast_rcnn_shared": 3,
    }
    assert batches == {"rpn": {2}, "fast_rcnn": {4}, "rpn_shared": {2}, "fast_rcnn_shared": {4}}

    def changed(first: dict[str, Tensor], last: dict[str, Tensor]) -> set[str]:
        return {name.split(".")[0] for name, value in first.items() if not torch.equal(value, last[name])}

    within = {stage: changed(steps[0], steps[-1]) for stage, steps in seen.items()}
    assert within == {
        "rpn": {"backbone", "neck", "rpn"},
        "fast_rcnn": {"backbone", "neck", "head"},
        "rpn_shared": {"rpn"},
        "fast_rcnn_shared": {"head"},
    }
    # what a step begins with: ImageNet's backbone in step 2, a new RPN in step 3, step 2's head in step 4; both of Fast
    # R-CNN with statistics of their own proposals
    statistics = [{name: steps[0][f"head.{name}"] for name in ("delta_mean", "delta_std")} for steps in seen.values()]
    assert changed(*statistics[:2]) == changed(*statistics[2:]) == {"delta_mean", "delta_std"}
    assert not changed(*statistics[1:3])
    for states in seen.values():
        for state in states:
            del state["head.delta_mean"], state["head.delta_std"]
    assert changed(seen["rpn"][-1], seen["fast_rcnn"][0]) == {"backbone", "neck", "rpn"}
    assert changed(seen["fast_rcnn"][-1], seen["rpn_shared"][0]) == {"backbone", "neck", "head", "rpn"}
    assert changed(seen["rpn_shared"][0], seen["fast_rcnn_shared"][0]) == {"rpn"}
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "mAP" in line] == [16, 17, 18]
    assert [set(line) & {"objectness", "classification"} for line in lines if "lr" in line] == [
        {"objectness"},
        {"classification"},
        {"objectness"},
        {"classification"},
    ]
    for number, (store, found) in enumerate((("step1", statistics[1]), ("step3", statistics[3]))):
        stored = open_store(tmp_path / f"whole/proposals/{store}.npz")
        assert stored.counts.max() == 20
        assert stored.manifest.parameters["pre_nms_top_n"] is None
        assert_statistics(stored, found, f"{number}")

    whole = checkpoint.load(Path("whole/best.pt"))["model"]
    for stage in ("fast_rcnn", "rpn_shared", "fast_rcnn_shared"):

        def cut(self: FasterRCNN, begun: str, stage: str = stage) -> None:
            begin_stage(self, begun)
            if begun == stage:
                monkeypatch.setattr(FasterRCNN, "losses", interrupt)

        def interrupt(self: FasterRCNN, images: Images, targets: Targets) -> dict[str, Tensor]:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(FasterRCNN, "losses", losses)
            return losses(self, images, targets)

        monkeypatch.setattr(FasterRCNN, "begin_stage", cut)
        assert cli.main(["train", "config.yaml", "--out", stage]) == 128 + signal.SIGTERM
        monkeypatch.setattr(FasterRCNN, "begin_stage", begin_stage)
        assert cli.main(["train", "--resume", stage]) in (0, None)
        for name, value in checkpoint.load(Path(stage) / "best.pt")["model"].items():
            assert torch.equal(value, whole[name]), (stage, name)


@pytest.mark.parametrize("neck", ["none", "fpn"])
def test_what_each_step_of_alternating_training_leaves_as_it_is(neck: str) -> None:
    """Frozen layers of the backbone stay frozen; what an earlier step froze is free again."""
    keys = {"neck": neck, "scales": [2.0], "freeze_stages": 2, "freeze_norms": True, "training": "alternating"}
    detector = build_detector(tiny_faster_rcnn_config(**keys), ("a", "b"))
    assert isinstance(detector, FasterRCNN)

    def trained() -> set[str]:
        return {name for name, parameter in detector.named_parameters() if parameter.requires_grad}

    joint = trained()
    assert not any(name.startswith("backbone.stem") for name in joint)
    assert any(name.startswith("backbone.") for name in joint) == (neck == "fpn")
    for stage, frozen in {
        "rpn": ("head.",),
        "fast_rcnn": ("rpn.",),
        "rpn_shared": ("head.", "backbone.", "neck."),
        "fast_rcnn_shared": ("rpn.", "backbone.", "neck."),
    }.items():
        detector.begin_stage(stage)
        assert trained() == {name for name in joint if not name.startswith(frozen)}, stage
        norms = [module for module in detector.train().backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms), stage


@pytest.mark.parametrize(
    ("stage", "renewed"),
    [
        ("rpn", ()),
        ("propose", ()),
        ("delta_statistics", ()),
        ("fast_rcnn", ("backbone.", "neck.")),
        ("rpn_shared", ("rpn.",)),
        ("fast_rcnn_shared", ()),
    ],
)
def test_what_a_step_of_alternating_training_begins_anew(stage: str, renewed: tuple[str, ...]) -> None:
    """As a network that has just been built; all else is what the steps before made of it."""
    config = tiny_faster_rcnn_config(neck="fpn", scales=[2.0], training="alternating")
    detector = build_detector(config, ("a", "b"))
    assert isinstance(detector, FasterRCNN)
    for value in (*detector.parameters(), *detector.buffers()):
        value.data.fill_(7)
    torch.manual_seed(5)
    fresh = build_detector(config, ("a", "b")).state_dict()
    torch.manual_seed(5)
    detector.begin_stage(stage)
    for name, value in detector.state_dict().items():
        expected = fresh[name] if name.startswith(renewed) else torch.full_like(value, 7)
        assert torch.equal(value, expected), name
