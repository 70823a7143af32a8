"""Detection's layers give what the detector's own give, of whatever weights it has, and leave it as it is."""

import copy
import pickle
from contextlib import nullcontext
from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import detkit
from detkit.backbones import Backbone, FeatureInfo, create_backbone
from detkit.cli import main
from detkit.config import BackboneConfig, Config, TrainConfig
from detkit.errors import UserError
from detkit.files import write_image
from detkit.inference import fast
from detkit.inference.backends import open_detector
from detkit.inference.evaluate import detect_batch
from detkit.inference.fast import Convolution, Fast
from detkit.models import Detector
from tests import zoo
from tests.builders import images_of, random_image, sample_image, save_checkpoint

# one of each family, with what stands behind its convolutions
BACKBONES = (
    *("alexnet", "darknet19", "efficientnet_lite0", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small"),
    *("nin", "resnet18", "resnet50", "squeezenet1_1", "tiny", "vgg11_bn", "vgg16_reduced", "zfnet"),
)


def spread_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # pyright: ignore
            layer.running_var.uniform_(0.5, 1.5)  # pyright: ignore
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.1)


def count_of(detector: Detector, kind: type) -> int:
    """How many layers of a kind a prediction runs."""
    ran: list[nn.Module] = []
    hook = nn.modules.module.register_module_forward_hook(lambda layer, *_: ran.append(layer))
    with torch.inference_mode(), detector.fast.running():
        detector.predict(zoo.sample_images(detector))
    hook.remove()
    return sum(type(layer) is kind for layer in ran)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest."""
    finite = expected.isfinite()
    assert torch.equal(finite, found.isfinite())
    found, expected = found[finite], expected[finite]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_detector_finds_the_same(name: str) -> None:
    detector = zoo.trained(name)
    detector.fast = Fast(detector)
    with torch.inference_mode():
        for batch in (1, 2, 3):
            images = zoo.sample_images(detector, batch)
            expected = detector.raw_outputs(images)
            with detector.fast.running():
                found = detector.raw_outputs(images)
            for one, other in zip(found, expected, strict=True):
                assert_near(one, other)
    assert count_of(detector, nn.BatchNorm2d) == 0
    assert count_of(detector, Convolution) > 0


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_family_of_backbones(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneConfig(name)).eval()
    spread_norms(backbone)
    network = fast._graph(backbone)
    assert network is not None, "it is drawn as one graph"
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    x = torch.randn(2, 3, 96, 80).contiguous(memory_format=layout)
    with torch.inference_mode():
        for images in (x, x[:1]):
            expected, found = backbone(images), network(images)
            assert list(found) == list(expected)
            for one, other in zip(found.values(), expected.values()):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, other.abs().max().item()))


def test_what_stands_behind_a_convolution() -> None:
    """Its norm and activation go inside only where nobody else reads what is between, and in that order."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
            self.twice, self.frozen = nn.Conv2d(4, 4, 1), FrozenBatchNorm2d(4)
            self.last = nn.Conv2d(4, 4, 3, padding="same")

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = x + self.relu(self.norm(x))  # between is read twice
            x = self.norm(self.relu(self.twice(x)))  # activation first
            x = self.frozen(self.twice(x)).relu_()  # the same convolution with others behind
            return torch.relu(self.last(x))

    Between.__module__ = "torchvision.between"
    torch.manual_seed(0)
    network = Between().eval()
    spread_norms(network)
    for buffer in network.frozen.buffers():
        buffer.uniform_(0.5, 1.5)
    graph = fast._graph(network)
    assert graph is not None
    kinds = [type(graph.get_submodule(str(node.target))) for node in graph.graph.nodes if node.op == "call_module"]
    left = [kind.__name__ for kind in kinds if kind is not Convolution]
    assert left == ["BatchNorm2d", "ReLU", "BatchNorm2d", "Conv2d"]
    x = torch.randn(2, 3, 9, 9)
    with torch.inference_mode():
        assert_near(graph(x), network(x))


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_fully_connected_layers(slow: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "MKL_IS_SLOW", slow)
    plain = nn.Linear(40, 30, bias)
    other = fast.Linear(plain)
    with torch.inference_mode():
        for shape in ((50, 40), (3, 40), (2, 20, 40), (40,)):
            assert_near(other(x := torch.randn(shape)), plain(x))
        assert_near(other(x := torch.randn(40, 50).T), plain(x))
        assert other(torch.zeros(0, 40)).shape == (0, 30)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(other(x), plain(x))


def test_fully_connected_layers_run_fast_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "MKL_IS_SLOW", True)
    for name in ("fast_rcnn", "rcnn", "yolov1"):
        detector = zoo.trained(name)
        detector.fast = Fast(detector)
        layers = sum(type(layer) is nn.Linear for layer in detector.modules())
        assert count_of(detector, fast.Linear) == layers > 0


def test_sums() -> None:
    """A sum goes inside where what is added is there by then, of the same shape, and nothing changes in between."""

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = (
                nn.Conv2d(4, 4, 3, 2, 1),
                nn.Conv2d(4, 4, 3, 1, 1),
                nn.ReLU(inplace=True),
            )
            self.norm, self.down, self.act = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, 2), nn.Hardswish()
            self.one = nn.Conv2d(4, 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.second(x)  # what is added is there
            out = self.norm(self.second(self.relu(self.first(x))))
            out += self.down(x)  # it comes later, and nobody reads between
            out = self.relu(out)
            out = self.act(out + self.second(out))  # an activation that no sum has
            late = self.second(out)
            out = late + out.relu_()  # reads what is changed before the sum
            return out + self.one(out)  # broadcast

    Sums.__module__ = "torchvision.sums"
    torch.manual_seed(0)
    network = Sums().eval()
    spread_norms(network)
    graph = fast._graph(network)
    assert graph is not None
    sums = [node for node in graph.graph.nodes if node.op == "call_function"]
    assert len(sums) == 1, "but one is inside"
    with torch.inference_mode():
        for batch in (1, 3):
            x = torch.randn(batch, 4, 9, 9)
            assert_near(graph(x.clone()), network(x.clone()))


class Own(Backbone):
    """A user's, that a graph would get wrong: it looks at the image."""

    info = (FeatureInfo("c4", 8, 16),)

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Sequential(nn.Conv2d(3, 8, 3, 16, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"c4": self.row(x) if mask is None else self.row(x) * 0}


def test_own_networks_become_graphs_row_by_row() -> None:
    backbone = Own().eval()
    holder = nn.ModuleDict({"backbone": backbone})
    assert [(layer, type(other).__name__) for layer, other in fast._fast_layers(holder)] == [
        (backbone.row, "GraphModule")
    ]


def test_new_weights_and_layers_count() -> None:
    detector = zoo.trained("ssd")
    detector.fast = Fast(detector)
    images = zoo.sample_images(detector)

    def check() -> Tensor:
        with torch.inference_mode():
            expected = detector.predict(images).scores
            with detector.fast.running():
                found = detector.predict(images).scores
        assert_near(found, expected)
        return expected

    seen = [check()]
    other = zoo.trained("ssd")
    spread_norms(other)
    detector.load_state_dict(other.state_dict())
    seen.append(check())
    with torch.no_grad():
        next(detector.backbone.parameters()).mul_(0.5)
    seen.append(check())
    norm = next(layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d))
    norm.running_mean.data = norm.running_mean + 1  # pyright: ignore
    seen.append(check())
    classifiers: Any = detector.get_submodule("head.classifiers")
    classifiers[0] = copy.deepcopy(classifiers[0])
    classifiers[0].bias.data.add_(1)
    seen.append(check())
    detector.train()
    detector.losses(images, zoo.some_objects(detector))["classification"].backward()
    torch.optim.SGD(detector.parameters(), 1e-3).step()
    detector.eval()
    seen.append(check())
    assert all(not torch.equal(one, other) for one, other in pairwise(seen))


def test_hooks_see_their_layers() -> None:
    """Those of a layer within a backbone, too, as long as they are there; so does a forward that a user put in."""
    detector = zoo.trained("ssd")
    detector.fast = Fast(detector)
    images = zoo.sample_images(detector)
    seen: list[Tensor] = []

    def predict() -> int:
        seen.clear()
        with torch.inference_mode():
            expected = detector.predict(images).scores
            count = len(seen)
            with detector.fast.running():
                assert_near(detector.predict(images).scores, expected)
        assert len(seen) == 2 * count
        if count:
            assert_near(seen[1], seen[0])
        return count

    assert predict() == 0
    norm = next(layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d))
    hook = norm.register_forward_hook(lambda layer, inputs, output: seen.append(output.clone()))
    assert predict() == 1
    hook.remove()
    assert predict() == 0
    detector.fast = Fast(detector)
    norm.forward = lambda input: seen.append(input.clone()) or input * 2
    assert predict() == 1


def test_the_detector_stays_as_it_is(tmp_path) -> None:
    """From Python: saved, copied, trained, counted, with gradients, it is what the checkpoint has."""
    plain = zoo.trained("ssd")
    loaded = detkit.load(save_checkpoint(tmp_path / "best.pt", plain), "cpu")
    image = random_image(96, 96)
    images = images_of(image)
    found = loaded.detect(image, score=0.1)
    assert loaded.fast._instead, "it was used"
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    for one, other in zip(loaded.state_dict().values(), plain.state_dict().values()):
        assert torch.equal(one, other)
    assert_near(loaded.predict(images).scores, plain.predict(images).scores)
    assert loaded.predict(images).scores.requires_grad
    assert loaded.flops(96, 96) == plain.flops(96, 96)
    with loaded.fast.running():  # gradients are wanted
        assert loaded.predict(images).scores.requires_grad
    for twin in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert twin.fast is None
        assert_near(twin.detect(image, score=0.1)[0].scores, found[0].scores)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_weights_are_in_the_order_of_each_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pyramid's maps each its own; where there are too many, those of the first of as many images."""
    layer = nn.Conv2d(16, 36, 3, padding=1).eval()
    convolution = Convolution(layer)
    monkeypatch.setattr(fast, "ORDERS", 3)
    seen = ((1, 40), (1, 5), (2, 40), (4, 40), (1, 5), (1, 9), (3, 9))
    kept: list[int] = []
    with torch.inference_mode():
        for images, side in seen:
            x = torch.randn(images, 16, side, side)
            assert_near(convolution(x), layer(x))
            kept.append(len(convolution.reordered))
    assert kept == [1, 2, 3, 3, 3, 3, 3]
    large = Convolution(nn.Conv2d(1024, 256, 3))
    with torch.inference_mode():
        for images, side in seen:
            large(torch.randn(images, 1024, side, side))
    assert [images for _, images, _ in large.reordered] == [False, True], "9 MB each"


BF16 = pytest.mark.skipif(torch.bfloat16 not in fast.FORMATS, reason="the processor has no bfloat16")


@BF16
@pytest.mark.parametrize("images", [1, 3])
def test_bf16_rounds_once_behind_a_convolution(images: int) -> None:
    """Sums and the norm's shift are float32: of weights that bf16 holds exactly, the result alone is rounded."""
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(16, 8, 3, 2, bias=False), nn.BatchNorm2d(8, eps=0.0)
    x = torch.randint(0, 4, (images, 16, 9, 9)).float().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        convolution.weight.copy_(torch.randint(0, 4, convolution.weight.shape))
        norm.running_mean = convolution(x).mean((0, 2, 3)) + 0.3  # hundreds, much larger than what is left
    layer, instead = nn.Sequential(convolution, norm, nn.ReLU()).eval(), Convolution(convolution, norm, nn.ReLU())
    exact = copy.deepcopy(layer).double()
    with torch.inference_mode():
        shifted = exact[:2](x.double())
        with torch.autocast("cpu", torch.bfloat16):
            found, own = instead(x), layer(x)
            found_sum = instead(x, torch.ones_like(found))
    assert found.dtype == torch.bfloat16
    expected = shifted.relu()
    assert_rounded(found, expected)
    assert_rounded(found_sum, (shifted.bfloat16().double() + 1).relu())
    assert (own.double() - expected).abs().max() > 4 * (found.double() - expected).abs().max()


def assert_rounded(found: Tensor, expected: Tensor) -> None:
    """bf16 has 8 digits, and float32 leaves some 1e-4 of hundreds."""
    assert ((found.double() - expected).abs() <= expected.abs() * 2.0**-8 + 3e-4).all()


@BF16
@pytest.mark.parametrize("name", ["ssd", "faster_rcnn", "yolov3"])
def test_bf16_is_as_near_to_float32_as_the_detectors_own_layers(name: str) -> None:
    detector = zoo.trained(name)
    spread_norms(detector)
    images = zoo.sample_images(detector)
    layers, distances = Fast(detector), []
    pixels = detector.normalise(images.pixels, images.sizes)
    with torch.inference_mode():
        expected = detector.backbone(pixels)
        for context in (nullcontext(), layers.running("bf16")):
            with context, torch.autocast("cpu", torch.bfloat16):
                found = detector.backbone(pixels)
            distances.append([float((found[key].float() - expected[key]).norm()) for key in expected])
    assert any(type(layer) is Convolution for _, _, layer in layers._instead or ())
    assert all(0 < fast <= 1.2 * own for own, fast in zip(*distances))


def test_other_number_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where oneDNN has no bf16 the detector's own layers run: norms within convolutions lose too much then."""
    monkeypatch.setattr(fast, "FORMATS", (torch.float32,))
    detector = zoo.trained("ssd")
    spread_norms(detector)
    images = zoo.sample_images(detector)
    config = Config(model=detector.config, train=TrainConfig(iterations=1, amp="bf16"))
    with torch.inference_mode():
        expected = detect_batch(detector, images, config, torch.device("cpu"))
        detector.fast = Fast(detector)
        found = detect_batch(detector, images, config, torch.device("cpu"))
    assert len(expected.scores) > 0
    for one in fields(expected):
        if isinstance(value := getattr(expected, one.name), Tensor):
            assert torch.equal(getattr(found, one.name), value)


def test_compile(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The compiler gets one batch size, as large as the first; where it fails a line says so, once."""
    path = save_checkpoint(tmp_path / "best.pt", zoo.trained("ssd"))
    images = [random_image(96, 96, seed) for seed in range(5)]
    expected = detkit.load(path, "cpu").detect(images, score=0.1)
    batches: list[int] = []

    def compile_network(network, options):
        assert options == {"freezing": True}
        return lambda x: batches.append(len(x)) or network(x)

    def check(detector: Detector) -> None:
        for one, other in zip(detector.detect(images, score=0.1, batch=3), expected, strict=True):
            assert_near(one.scores, other.scores)

    monkeypatch.setattr(torch, "compile", compile_network)
    check(detkit.load(path, "cpu", compile=True))
    assert batches == [3, 3]

    def fail(network, options):
        def broken(x: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler:\nlooked for g++")

        return broken

    monkeypatch.setattr(torch, "compile", fail)
    capsys.readouterr()
    check(detkit.load(path, "cpu", compile=True))
    line = "warning: torch.compile fails, so the network runs without: RuntimeError: no C++ compiler: looked for g++\n"
    assert capsys.readouterr().err == line
    with pytest.raises(UserError, match="compile"):
        open_detector(path, "cpu", overrides=["detect.compile=maybe"])


def test_compile_is_an_option(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "best.pt", zoo.trained("ssd"))
    write_image(tmp_path / "a.png", sample_image(40, 50))
    compiled: list[dict] = []
    monkeypatch.setattr(torch, "compile", lambda network, options: compiled.append(options) or network)
    assert main(["detect", "best.pt", "a.png", "--compile"]) == 0
    assert compiled == [{"freezing": True}]
    assert capsys.readouterr().out.splitlines()[0].endswith("; cpu, compiled")
    for arguments in (["detect", "net.onnx", "a.png"], ["detect", "best.pt", "a.png", "--backend", "auto"]):
        assert main([*arguments, "--compile"]) == 2
        assert capsys.readouterr().err.startswith("error: --compile is for a checkpoint on torch: leave it out")
    assert main(["evaluate", "--detections", "x.json", "--dataset", ".", "--compile"]) == 2
    assert "leave --compile out" in capsys.readouterr().err
    assert main(["detect", "best.pt", "a.png", "--explain", "--compile"]) == 2
    assert "leave --compile out" in capsys.readouterr().err
    assert len(compiled) == 1
