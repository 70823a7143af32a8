"""VGG's weights in the layouts that files of Caffe's have come to, renamed to torchvision's keys.

- the layers alone: `0.weight`, also behind `vgg.`; of the reduced VGG16 31 and 33 are fc6 and fc7
- Caffe's names, also of a `.caffemodel`: `conv1_1.weight`, `fc6.weight`
- torchvision's, in which dropout stands in front of the classifier's layers: fc6 is `classifier.1`, fc7 `classifier.4`
"""

import re

from torch import Tensor, nn

from detkit.backbones.base import rename_layers

BARE = re.compile(r"(?:vgg\.)?(\d+\.\w+)")
CLASSIFIER = {"fc6": "classifier.0", "fc7": "classifier.3"}
DROPOUT_FIRST = {"classifier.1": "classifier.0", "classifier.4": "classifier.3"}
REDUCED = {"features.31": "fc6", "features.33": "fc7"}


def torchvision_keys(state: dict[str, Tensor], features: nn.Sequential) -> dict[str, Tensor]:
    """Return the tensors of a VGG's file under torchvision's keys; what is no layer of it keeps its name.

    features: the network's convolutions, as torchvision numbers them. fc6 and fc7 become `classifier.0` and
    `classifier.3` where they are fully connected, and `fc6` and `fc7` where they are convolutions.
    """
    state = {f"features.{bare[1]}" if (bare := BARE.fullmatch(key)) else key: tensor for key, tensor in state.items()}
    names = caffe_names(features)
    if "classifier.1.weight" in state:
        names |= DROPOUT_FIRST
    for layer, name in CLASSIFIER.items():
        if f"{layer}.weight" in state and state[f"{layer}.weight"].ndim == 2:
            names[layer] = name
    return rename_layers(state, names)


def caffe_names(features: nn.Sequential) -> dict[str, str]:
    """Return torchvision's name of each convolution by Caffe's, such as `conv3_1`, which counts from pool to pool."""
    names, block, number = {}, 1, 0
    for key, layer in features.named_children():
        if isinstance(layer, nn.MaxPool2d):
            block, number = block + 1, 0
        elif isinstance(layer, nn.Conv2d):
            number += 1
            names[f"conv{block}_{number}"] = f"features.{key}"
    return names
