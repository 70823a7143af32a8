"""R-FCN: the paper's numbers, its vote, hard examples."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detkit
from detkit.backbones import create_backbone
from detkit.backbones.base import dilate
from detkit.config import BackboneConfig
from detkit.experiment import load_config
from detkit.models import build_detector
from detkit.models.region import label_regions, sample_regions
from detkit.models.rfcn import VoteHead
from detkit.ops import hard_regions, ohem_loss, smooth_l1
from detkit.structures import Proposals
from tests import zoo
from tests.builders import objects_of

VOC = tuple(f"class {k}" for k in range(20))


@pytest.mark.parametrize(("name", "parameters", "gigaflops"), [("resnet101", 50.6, 280), ("resnet50", 31.6, 189)])
def test_the_papers_numbers(name: str, parameters: float, gigaflops: float) -> None:
    with torch.device("meta"):
        config: Any = load_config(f"configs/voc/rfcn_{name}.yaml").model
        config.backbone.weights = None
        detector: Any = build_detector(config, VOC)
        assert (detector.score_maps.out_channels, detector.box_maps.out_channels) == (7 * 7 * 21, 7 * 7 * 4)
        assert detector.rpn.objectness.out_channels == 9
        assert sum(p.numel() for p in detector.parameters()) / 1e6 == pytest.approx(parameters, abs=0.1)
        flops = detector.flops(600, 1000)
        assert (flops.image / 1e9, flops.region) == (pytest.approx(gigaflops, abs=1), 0)
    assert (config.post_nms_top_n, config.test_post_nms_top_n, config.batch_size_per_image) == (300, 300, 128)
    assert [info.stride for info in (*detector.map_info, detector.backbone.info[-1])] == [16, 16]


def test_a_dilated_backbone_computes_every_cell() -> None:
    """Of the dilated map's cells every second one, in both directions, is the undilated map's."""
    torch.manual_seed(0)
    for name in ("tiny", "resnet18", "mobilenet_v2"):
        plain, dilated = (create_backbone(BackboneConfig(name)).eval() for _ in range(2))
        dilated.load_state_dict(plain.state_dict())
        dilated.dilate()
        x = torch.randn(1, 3, 128, 128)
        names = [info.name for info in dilated.info]
        coarse, fine = plain(x)[names[-1]], dilated(x)[names[-1]]
        assert fine.shape[-1] == dilated(x)[names[-2]].shape[-1] == 2 * coarse.shape[-1]
        assert dilated.info[-1].stride == dilated.info[-2].stride
        torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_dilated_stays() -> None:
    for layers in (
        [nn.Conv2d(1, 1, 3, 2, 1), nn.MaxPool2d(2)],  # another layer shrinks the map
        [nn.Conv2d(1, 1, 3, 2)],  # which is not padded
    ):
        assert not dilate(layers)
        assert layers[0].stride == (2, 2)
    backbone = create_backbone(BackboneConfig("inception_v3"))
    backbone.dilate()
    assert backbone.info[-1].name == backbone.region


def test_parts_vote_by_their_mean() -> None:
    pooled = torch.randn(2, 4, 3 + 5, 3, 3)
    logits, deltas = VoteHead(3, None)(pooled)
    torch.testing.assert_close(logits[1, 2, 1], pooled[1, 2, 1].sum() / 9)
    torch.testing.assert_close(deltas[1, 2, 3], pooled[1, 2, 7].sum() / 9)


def test_each_part_is_pooled_from_its_own_map() -> None:
    """The map of the upper left part moves a region's score by its mean there, a ninth of it, and nothing else."""
    detector: Any = zoo.build("rfcn", geometry="published").eval()
    maps = [torch.zeros(1, 1, 12, 12), torch.zeros(1, 27, 12, 12), torch.zeros(1, 36, 12, 12)]
    maps[1][0, 0, :3, :3] = 9.0  # class a, upper left part
    box = torch.tensor([[[0.0, 0.0, 72.0, 72.0], [24.0, 0.0, 96.0, 72.0]]])  # of nine cells a side, and beside it
    logits, _ = detector.head(detector.features.pool(maps, box))
    torch.testing.assert_close(logits[0], torch.tensor([[1.0, 0, 0], [0, 0, 0]]))


def random_regions(seed: int = 0) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    logits, deltas, target_deltas = (torch.randn(2, 9, count, generator=random) for count in (4, 4, 4))
    target = torch.randint(4, (2, 9), generator=random)
    return logits, deltas, target, target_deltas, torch.rand(2, 9, generator=random) > 0.2


@pytest.mark.parametrize("number", [1, 3, 9, 20, None])
def test_hard_regions_are_those_of_the_largest_loss(number: int | None) -> None:
    logits, deltas, target, target_deltas, valid = random_regions()
    total = entropy = box = 0.0
    counted = 0
    for image in range(2):
        losses = []
        for region in valid[image].nonzero().squeeze(1).tolist():
            label = int(target[image, region])
            of_class = -float(logits[image, region].log_softmax(0)[label])
            of_box = float(smooth_l1(deltas[image, region], target_deltas[image, region]).sum()) if label < 3 else 0.0
            losses.append((of_class + of_box, of_class, of_box))
        for chosen in sorted(losses, reverse=True)[:number]:
            total, entropy, box, counted = total + chosen[0], entropy + chosen[1], box + chosen[2], counted + 1
    found = ohem_loss(logits, deltas, target, target_deltas, valid, number)
    assert float(found["classification"]) == pytest.approx(entropy / counted, rel=1e-5)
    assert float(found["box"]) == pytest.approx(box / counted, rel=1e-5)
    assert int(hard_regions(logits, deltas, target, target_deltas, valid, number)[2].sum()) == counted


def test_only_hard_regions_have_gradients() -> None:
    logits, deltas, target, target_deltas, valid = random_regions()
    logits, deltas = logits.requires_grad_(), deltas.requires_grad_()
    *_, hard = hard_regions(logits, deltas, target, target_deltas, valid, 3)
    torch.stack([*ohem_loss(logits, deltas, target, target_deltas, valid, 3).values()]).sum().backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, hard)  # pyright: ignore[reportOptionalMemberAccess]
    assert hard.sum(1).tolist() == [3, 3]


def test_nothing_to_learn_from_is_no_loss() -> None:
    logits, deltas, target, target_deltas, valid = random_regions()
    losses = ohem_loss(logits.requires_grad_(), deltas, target, target_deltas, valid & False, 3)
    assert all(loss.detach() == 0 for loss in losses.values())
    torch.stack([*losses.values()]).sum().backward()


def test_training_is_of_the_proposals_and_the_objects() -> None:
    """All that are labelled, less what overlaps a difficult object alone; a sample without OHEM."""
    targets = objects_of([[0, 0, 40, 40], [60, 60, 90, 90]], [[0, 0, 30, 30]])
    targets = type(targets)(targets.boxes, targets.labels, torch.tensor([[False, True], [False, True]]))
    boxes = torch.tensor([[0.0, 0, 40, 36], [60, 60, 90, 88], [100, 100, 120, 120], [0, 0, 0, 0]])
    proposals = Proposals(boxes.expand(2, -1, -1), torch.tensor([[True, True, True, False]] * 2))
    config: Any = zoo.build("rfcn").config
    found = label_regions(proposals, targets, 2, config)
    assert found.valid[0].tolist() == [True, False, True, False, True, False]
    assert found.labels[0].tolist() == [targets.labels[0, 0], 2, 2, 2, targets.labels[0, 0], 2]
    assert found.matched_gt_index[0][[0, 4]].tolist() == [0, 0]
    sampled = sample_regions(proposals, targets, 2, config)
    assert sampled.valid.sum(1).tolist() == found.valid.sum(1).tolist()


def test_what_explain_shows_as_learnt_is_what_the_loss_is_of() -> None:
    torch.manual_seed(0)
    detector: Any = zoo.build("rfcn", batch_size_per_image=4).eval()
    targets = zoo.some_objects(detector).part(slice(0, 1))
    images = zoo.sample_images(detector).part(slice(0, 1))
    prepared = [x.detach().requires_grad_() for x in detector.features.prepare(images, detector)]
    proposals = detector.propose(images, prepared)
    step = detector.sample_step(prepared, proposals, targets)
    assert len(step.boxes) == 4
    pooled = detector.features.pool(prepared, step.boxes.unsqueeze(0))
    expected = detector.region_losses(prepared, proposals, targets)
    labels = torch.where(step.matched_gt_index >= 0, targets.labels[0][step.matched_gt_index.clamp(min=0)], 2)
    entropy = nn.functional.cross_entropy(detector.head(pooled)[0][0], labels)
    torch.testing.assert_close(entropy, expected["classification"])


def test_new_classes_leave_all_but_the_score_maps() -> None:
    detector: Any = detkit.create_model("rfcn", backbone="tiny", classes=("a", "b"), **zoo.KEYS["rfcn"])
    other: Any = detkit.create_model("rfcn", backbone="tiny", classes=("a", "b", "c"), **zoo.KEYS["rfcn"])
    differ = {
        name
        for name, value in detector.state_dict().items()
        if value.shape != other.state_dict()[name].shape and not name.startswith(type(detector).class_layers)
    }
    assert not differ
