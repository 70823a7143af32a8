"""darknet's networks, and its files byte by byte."""

import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones import create_backbone
from detkit.backbones.darknet import LocallyConnected, convolution
from detkit.backbones.darknet_file import read_weights
from detkit.config import BackboneConfig
from detkit.errors import UserError
from tests.darknet import write_weights

TINY = "darknet_yolov1_tiny"


class Net(nn.Module):
    """One layer of each kind that a file can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first = convolution(1, 2, 1, 1)
        self.second = convolution(2, 1, 1, 1, batch_norm=False)
        self.local = LocallyConnected(1, 1, 1, (1, 2))
        self.last = nn.Linear(2, 3)


# in the file's order: bias, scale, mean, variance, weight; bias, weight; biases, weights; biases, weights
NUMBERS = [1.0, 2, 3, 4, -5, -6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26]


def file_of(path: Path, header: bytes, numbers: list[float]) -> Path:
    path.write_bytes(header + struct.pack(f"<{len(numbers)}f", *numbers))
    return path


@pytest.mark.parametrize("version", [(0, 1, "<iiii"), (0, 2, "<iiiq"), (1, 0, "<iiiq")])
def test_a_file_made_by_hand(version: tuple[int, int, str], tmp_path: Path) -> None:
    major, minor, layout = version
    header = struct.pack(layout, major, minor, 5, 640_000)
    state = read_weights(file_of(tmp_path / "a.weights", header, NUMBERS), Net())
    assert {key: value.flatten().tolist() for key, value in state.items()} == {
        "first.1.bias": [1, 2],
        "first.1.weight": [3, 4],
        "first.1.running_mean": [-5, -6],
        "first.1.running_var": [7, 8],
        "first.0.weight": [9, 10],
        "second.0.bias": [11],
        "second.0.weight": [12, 13],
        "local.bias": [14, 15],
        "local.weight": [16, 17],
        "last.bias": [18, 19, 20],
        "last.weight": [21, 22, 23, 24, 25, 26],
    }
    Net().load_state_dict(state)  # of batch norm, only the counter is left out


def test_the_first_files_have_floats_for_a_version_and_connected_layers_transposed(tmp_path: Path) -> None:
    header = struct.pack("<fffi", 0.001, 0.9, 0.0005, 64)
    state = read_weights(file_of(tmp_path / "a.weights", header, NUMBERS), Net())
    assert state["last.weight"].tolist() == [[21, 24], [22, 25], [23, 26]]
    assert state["local.weight"].flatten().tolist() == [16, 17]


def test_a_written_file_is_read_back_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = Net(), tmp_path / "a.weights"
    with torch.no_grad():
        for tensor in (*net.parameters(), *(buffer for buffer in net.buffers() if buffer.is_floating_point())):
            tensor.uniform_(0.1, 1)
    write_weights(path, net)
    assert path.stat().st_size == 20 + 4 * len(NUMBERS)
    state = read_weights(path, net)
    for key, value in net.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(state[key], value)


def test_files_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    header, path = struct.pack("<iiii", 0, 1, 0, 0), tmp_path / "a.weights"
    cases = [
        (header, NUMBERS[:-1], "holds 25 numbers, but the network has 26: the file is cut short or another network's"),
        (header, [*NUMBERS, 1.0], "holds 27 numbers, but the network has 26: the file is another network's"),
        (header, [], "holds 0 numbers"),
        (header + b"x", NUMBERS, "121 bytes are not a header and whole numbers"),
        (b"hello", [], "5 bytes are too few"),
        (header, [*NUMBERS[:6], -1.0, *NUMBERS[7:]], r"negative variances where first\.1\.running_var should be"),
        (header, [*NUMBERS[:-1], float("nan")], r"not finite where last\.weight should be"),
    ]
    for start, numbers, words in cases:
        with pytest.raises(UserError, match=words) as error:
            read_weights(file_of(path, start, numbers), Net())
        assert str(path) in str(error.value)
    with pytest.raises(UserError, match="no file"):
        read_weights(tmp_path / "none.weights", Net())


def test_a_backbone_takes_the_first_layers_of_a_longer_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole, path = create_backbone(BackboneConfig(TINY)), tmp_path / "darknet.weights"
    write_weights(path, whole)
    path.write_bytes(path.read_bytes() + bytes(400))
    copy = create_backbone(BackboneConfig(TINY, str(path)))
    for key, value in whole.state_dict().items():
        assert torch.equal(copy.state_dict()[key], value)
    line = capsys.readouterr().err
    assert "35 of 35 tensors" in line
    assert "left as initialised" not in line
    with pytest.raises(UserError, match=r"holds \d+ numbers, but the network has \d+: the file is cut short"):
        create_backbone(BackboneConfig("darknet_yolov1", str(path)))
    with pytest.raises(UserError, match="darknet's weights fit darknet's networks"):
        create_backbone(BackboneConfig("resnet18", str(path)))
    with pytest.raises(UserError, match=r"model\.backbone\.weights: no file"):
        create_backbone(BackboneConfig(TINY, str(tmp_path / "none.weights")))


def test_files_with_and_without_batch_norm_fit_the_backbone_of_their_kind(tmp_path: Path) -> None:
    """Alone or followed by the layers of a whole classifier, which are more than what batch norm adds."""
    plain = f"{TINY}_plain"
    for kind, other in ((TINY, plain), (plain, TINY)):
        network, path = create_backbone(BackboneConfig(kind)), tmp_path / f"{kind}.conv.weights"
        write_weights(path, network)
        for behind in (0, 1_025_000):
            path.write_bytes(path.read_bytes() + bytes(4 * behind))
            copy = create_backbone(BackboneConfig(kind, str(path)))
            for key, value in network.state_dict().items():
                assert torch.equal(copy.state_dict()[key], value)
            with pytest.raises(UserError, match="has batch norm where the backbone has none, or the reverse"):
                create_backbone(BackboneConfig(other, str(path)))


def test_yolos_backbone_has_as_many_numbers_as_the_authors_files() -> None:
    """extraction.conv.weights: 22,403,136 without batch norm, as in the paper, and 22,430,400 with it."""
    for name, count in (("darknet_yolov1", 22_430_400), ("darknet_yolov1_plain", 22_403_136)):
        with torch.device("meta"):
            state = create_backbone(BackboneConfig(name)).state_dict()
        assert sum(tensor.numel() for key, tensor in state.items() if "num_batches" not in key) == count


def test_darknet19_reads_what_darknet_cut_off_behind_23_layers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its pretrained file holds 18 convolutions and 5 pools, and is called `darknet19_448.conv.23`."""
    network, path = create_backbone(BackboneConfig("darknet19")), tmp_path / "darknet19_448.conv.23"
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())):
            tensor.uniform_(0.1, 1)
    write_weights(path, network)
    assert path.stat().st_size == 20 + 79_327_104
    copy = create_backbone(BackboneConfig("darknet19", str(path)))
    assert "90 of 90 tensors" in capsys.readouterr().err
    for key, value in network.state_dict().items():
        assert torch.equal(copy.state_dict()[key], value)


def test_the_papers_layers() -> None:
    convolutions = [
        (layer.out_channels, layer.kernel_size[0], layer.stride[0])
        for layer in create_backbone(BackboneConfig("darknet_yolov1")).modules()
        if isinstance(layer, nn.Conv2d)
    ]
    assert len(convolutions) == 20
    assert convolutions[:3] == [(64, 7, 2), (192, 3, 1), (128, 1, 1)]
    assert convolutions[6:14] == [(256, 1, 1), (512, 3, 1)] * 4
    assert convolutions[-4:] == [(512, 1, 1), (1024, 3, 1)] * 2
    tiny = create_backbone(BackboneConfig(TINY))
    assert [info.channels for info in tiny.info] == [64, 128, 256, 512, 1024]
    assert [info.stride for info in tiny.info] == [4, 8, 16, 32, 64]


@pytest.mark.parametrize("name", ["darknet_yolov1", TINY, "darknet53"])
@torch.no_grad()
def test_cut_and_tail_leave_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    backbone, x = create_backbone(BackboneConfig(name), tail=True).eval(), torch.rand(1, 3, 128, 128)
    maps = backbone(x)
    tail = backbone.tail(8).eval()
    assert [info.name for info in backbone.info] == ["c2", "c3", "c4"]
    torch.testing.assert_close(tail(backbone(x)["c4"]), list(maps.values())[-1].mean((2, 3)))
    backbone.truncate("c3")
    assert list(backbone(x)) == ["c2", "c3"]
    assert torch.equal(backbone(x)["c3"], maps["c3"])


def test_locally_connected_equals_a_convolution_of_each_place() -> None:
    torch.manual_seed(0)
    layer, x = LocallyConnected(3, 5, 3, (4, 6)), torch.randn(2, 3, 4, 6)
    nn.init.normal_(layer.bias)
    out = layer(x)
    padded = F.pad(x, (1, 1, 1, 1))
    for row in range(4):
        for column in range(6):
            kernel: Tensor = layer.weight[row * 6 + column].view(5, 3, 3, 3)
            window = padded[:, :, row : row + 3, column : column + 3]
            wanted = F.conv2d(window, kernel).flatten(1) + layer.bias[:, row, column]
            torch.testing.assert_close(out[:, :, row, column], wanted, rtol=1e-4, atol=1e-4)
    shared = layer.weight.detach()[:1].expand_as(layer.weight)
    layer.load_state_dict({"weight": shared, "bias": torch.zeros(5, 4, 6)})
    torch.testing.assert_close(layer(x), F.conv2d(x, shared[0].view(5, 3, 3, 3), padding=1), rtol=1e-4, atol=1e-4)
