"""The strongest patches of a data set (Zeiler and Fergus, 2014, figure 2): of each unit the nine images that it
responds to most, with the cell where it does.

One pass over the images for all layers. Only the best nine of each unit are kept, so that memory does not grow with
the images. Kept in a file, which an interrupted pass goes on from, with a fingerprint of weights, input and data.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit.config import DataConfig
from detkit.data.dataset import DetectionDataset
from detkit.data.loader import dataset_pass_loader
from detkit.errors import UserError
from detkit.files import save_atomic
from detkit.inside.network import Network, as_maps, watched
from detkit.runtime.signals import Interrupt
from detkit.structures import Images
from detkit.verified import read_torch

TOP = 9
BATCH = 8
SAVE_EVERY = 25  # batches
FORMAT = 1
WHAT = "a file of strongest patches"


@dataclass
class Best:
    """Of each of C units of a layer the best so far.

    values: (C, 9), best first, -inf where there were fewer images. images: (C, 9) int64, index into the data set.
    cells: (C, 9, 2) int64, row and column.
    """

    values: Tensor
    images: Tensor
    cells: Tensor

    @classmethod
    def none(cls, units: int) -> "Best":
        empty = torch.zeros(units, TOP, dtype=torch.int64)
        return cls(torch.full((units, TOP), -torch.inf), empty - 1, torch.zeros(units, TOP, 2, dtype=torch.int64))

    def add(self, maps: Tensor, first: int) -> None:
        """Take in the maps (B, C, h, w) of the images from index `first` on; of equal values the first stays."""
        values, index = maps.flatten(2).max(2)
        columns = maps.shape[-1]
        cells = torch.stack((index // columns, index % columns), -1).transpose(0, 1).cpu()
        images = torch.arange(first, first + len(maps)).expand(maps.shape[1], -1)
        values = torch.cat((self.values, values.T.float().cpu()), 1)
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :TOP]
        self.values = values.gather(1, order)
        self.images = torch.cat((self.images, images), 1).gather(1, order)
        both = torch.cat((self.cells, cells), 1)
        self.cells = both.gather(1, order[..., None].expand(-1, -1, 2))


def strongest(
    network: Network,
    dataset: DetectionDataset,
    layers: list[str],
    path: Path,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> dict[str, Best]:
    """Return the strongest patches of layers, from `path` where the pass is done, else by it, which is saved there.

    progress: is told a text, the images done and all. Raises KeyboardInterrupt, with all saved, once the user ends the
    pass; UserError for a file at `path` that is none of these, or damaged.
    """
    mark, total = _fingerprint(network, dataset), len(dataset)
    best, done = _restore(path, mark, layers)
    if best is None:
        best, done = {name: Best.none(network.shapes[name][0]) for name in layers}, 0
    if done == total:
        return best

    def save() -> None:
        parts = {name: vars(one) for name, one in best.items()}
        content = {"format": FORMAT, "mark": mark, "done": done, "best": parts}
        save_atomic(path, lambda file: torch.save(content, file))

    # batches begin at the same images whether or not the pass was interrupted: values hang on them in the last bits
    rows = range(done, total)
    loader = dataset_pass_loader(dataset, network.input, DataConfig(root=""), rows, batch=BATCH)
    with Interrupt() as stop, torch.inference_mode():
        for number, (images, _) in enumerate(loader, 1):
            _see(network, images, layers, best, done)
            done += len(images)
            progress("strongest patches", done, total)
            if stop.received or done == total or number % SAVE_EVERY == 0:
                save()
            if stop.received and done < total:
                raise KeyboardInterrupt(f"strongest patches of {done} of {total} images are in {path}; again goes on")
    return best


def _see(network: Network, images: Images, layers: list[str], best: dict[str, Best], first: int) -> None:
    def see(name: str, output: Tensor) -> None:
        best[name].add(as_maps(output), first)

    pixels = images.pixels.to(network.device).float()
    with watched(network.body, layers, see):
        if network.detector is not None:  # whose padding is no part of the images
            network.body(network.detector.normalise(pixels, images.sizes.to(network.device)))
        else:
            network.run(pixels)


def _fingerprint(network: Network, dataset: DetectionDataset) -> str:
    """A digest of what the patches depend on."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in network.body.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps([str(network.input), network.input.mean, network.input.std]).encode())
    digest.update(json.dumps([dataset.fingerprint(), [str(root.resolve()) for root, _ in dataset.sources]]).encode())
    return digest.hexdigest()


def _restore(path: Path, mark: str, layers: list[str]) -> tuple[dict[str, Best] | None, int]:
    """What a file has of these layers, and how many images they have seen; None of another network or data."""
    if not path.exists():
        return None, 0
    content: Any = read_torch(path, WHAT)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not {WHAT} of this version of detkit; remove it, or give another --out")
    if content["mark"] != mark or not set(layers) <= set(content["best"]):
        return None, 0
    return {name: Best(**one) for name, one in content["best"].items()}, content["done"]
