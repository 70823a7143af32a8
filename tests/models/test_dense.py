"""What all dense detectors share: the order of its parts, and what the constructors ask for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models import DenseDetector, build_detector
from detkit.models.ssd import SSDConfig
from detkit.models.yolov1 import YOLOv1Config
from detkit.structures import Images, InputSpec, Predictions, Targets
from tests import zoo
from tests.builders import images_of, objects_of, random_image, tiny_ssd_config

SMALL_SSD = SSDConfig(backbone=BackboneConfig("tiny"), size=64)
SMALL_YOLO = YOLOv1Config(backbone=BackboneConfig("tiny"), size=64, convolutions=[[16, 3, 1]], hidden=[16])


class Recorder(DenseDetector):
    """Notes which of its parts are called, in order, and with what."""

    def __init__(self) -> None:
        super().__init__(None, ("a",), InputSpec((8, 8)))
        self.calls: list[tuple[Any, ...]] = []

    def network(self, pixels: Tensor) -> str:
        self.calls.append(("network",))
        return "raw"

    def assign(self, raw: Any, targets: Targets) -> str:
        self.calls.append(("assign", raw))
        return "assignment"

    def loss(self, raw: Any, assignment: Any, targets: Targets) -> dict[str, Tensor]:
        self.calls.append(("loss", raw, assignment))
        return {}

    def decode(self, raw: Any) -> Predictions:
        self.calls.append(("decode", raw))
        return Predictions(torch.zeros(1, 1, 4), torch.zeros(1, 1, 1))


@pytest.mark.parametrize("first", [False, True])
def test_assign_comes_before_the_network_where_it_reads_none_of_it(
    first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Recorder()
    monkeypatch.setattr(Recorder, "assigns_before_network", first)
    detector.losses(images_of(random_image(8, 8)), objects_of([]))
    assign = ("assign", None if first else "raw")
    order = [assign, ("network",)] if first else [("network",), assign]
    assert detector.calls == [*order, ("loss", "raw", "assignment")]
    detector.calls.clear()
    detector.predict(images_of(random_image(8, 8)))
    assert detector.calls == [("network",), ("decode", "raw")]


def test_random_numbers_are_drawn_by_the_network_and_then_by_assign() -> None:
    """YOLOv1 draws for dropout, then for objects that share a cell; SSD's matching reads nothing of the network."""
    assert build_detector(SMALL_SSD, ("a",)).assigns_before_network
    detector: Any = build_detector(SMALL_YOLO, ("a", "b"))
    assert not detector.assigns_before_network
    images = images_of(random_image(64, 64).repeat(2, 1, 1, 1))
    targets = objects_of([[10.0, 10, 40, 40], [12.0, 12, 38, 38]], [[0.0, 0, 30, 30]])
    torch.manual_seed(0)
    losses = detector.losses(images, targets)
    torch.manual_seed(0)
    raw = detector.network(detector.normalise(images.pixels))
    expected = detector.loss(raw, detector.assign(raw, targets), targets)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)


def test_maps_come_in_the_order_of_their_names_or_all_from_a_stride_on() -> None:
    detector: Any = build_detector(SMALL_SSD, ("a",))
    assert [(info.name, info.stride) for info in detector.backbone.info] == [("c3", 8), ("c4", 16), ("c5", 32)]

    def chosen(*arguments: Any) -> list[str]:
        return [info.name for info in detector.choose_maps(*arguments)]

    assert chosen(["c5", "c3"], "features") == ["c5", "c3"]
    assert chosen(None, "features", 16) == ["c4", "c5"]
    assert chosen(None, "features", 17) == ["c5"]
    assert chosen(None, "features") == chosen([], "features") == ["c3", "c4", "c5"]


@pytest.mark.parametrize("config", [SMALL_SSD, SMALL_YOLO], ids=["ssd", "yolov1"])
def test_building_leaves_the_statistics_and_the_mode_alone(config: Any) -> None:
    """The constructors pass an image through the network for the sides of its maps."""
    detector: Any = build_detector(config, ("a",))
    norms = [layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    for mode in (True, False):
        detector.train(mode)
        assert len(detector.dry_run()) == len(detector.feature_maps(torch.zeros(2, 3, 64, 64)))
        assert all(module.training == mode for module in detector.modules())
    for layer in norms:
        layer.reset_running_stats()
    detector.train().dry_run()
    assert all(layer.num_batches_tracked == 0 and not layer.running_mean.any() for layer in norms)
    fresh = build_detector(config, ("a",))
    assert fresh.training
    assert all(layer.num_batches_tracked == 0 for layer in fresh.modules() if isinstance(layer, nn.BatchNorm2d))


def test_one_image_is_enough_where_no_batch_norm_sees_a_single_cell_in_training() -> None:
    one, two = (images_of(random_image(64, 64).repeat(count, 1, 1, 1)) for count in (1, 2))
    objects = [[10.0, 10, 40, 40]]

    def finite(detector: Any, images: Images) -> bool:
        losses = detector.losses(images, objects_of(*[objects] * len(images)))
        return all(bool(loss.isfinite()) for loss in losses.values())

    single: Any = build_detector(SMALL_SSD, ("a",))
    assert single.single_cell_norm
    assert finite(single, two)
    assert finite(single.eval(), one)
    larger: Any = build_detector(replace(tiny_ssd_config(), batch_norm=True), ("a",))
    assert larger.sides[-1] > 1
    assert finite(larger, images_of(random_image(96, 96)))


@pytest.mark.parametrize("name", ["ssd", "torchvision_ssd", "yolov1"])
def test_frozen_layers_stay_as_they_are_and_keep_nothing_for_a_gradient(name: str) -> None:
    detector = zoo.build(name, freeze_stages=2, freeze_norms=True).train()
    outputs: list[Tensor] = []
    for group in detector.backbone.layer_groups()[:2]:
        group[0].register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    sum(detector(zoo.sample_images(detector), zoo.some_objects(detector)).values()).backward()
    torch.optim.SGD(trained, lr=0.1).step()
    assert [output.requires_grad for output in outputs] == [False, False]
    moved = {key for key, tensor in detector.state_dict().items() if not torch.equal(tensor, before[key])}
    modules = dict(detector.named_modules())
    norms = {key for key in before if isinstance(modules[key.rpartition(".")[0]], nn.BatchNorm2d) and "stage" in key}
    frozen = {key for key in before if "stem" in key or "stage3" in key} | norms
    assert moved.isdisjoint(frozen)
    assert {key for key, value in detector.named_parameters() if value.requires_grad} == {
        key for key, _ in detector.named_parameters()
    } - frozen


@pytest.mark.parametrize("name", ["ssd", "fast_rcnn"])
def test_more_layer_groups_than_there_are_cannot_be_frozen(name):
    with pytest.raises(UserError, match=r"model\.freeze_stages: 99, but the backbone has \d layer groups"):
        zoo.build(name, freeze_stages=99)
