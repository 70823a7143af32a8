"""What a unit can learn: an image that makes it respond strongly (Erhan et al., 2009; Simonyan et al., 2014).

Gradient ascent from noise. Regularised as in the papers: pixels decay towards the mean (L2, Simonyan), are blurred
now and then (Yosinski et al., 2015), move about by a few pixels from step to step (jitter), and stay between black and
white.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from detkit.inside.fields import Field
from detkit.inside.network import Network
from detkit.inside.rectify import open_last_rectifiers

STEPS = 64
RATE = 0.1  # of Adam, in the units of the normalised input
DECAY = 0.005  # of a pixel's distance from the mean, a step
BLUR_EVERY, BLUR = 6, 0.6  # steps; standard deviation, pixels
JITTER = 4  # pixels at most
MARGIN = 16  # pixels around a unit's field


def maximise(
    network: Network, layer: str, units: Sequence[int], field: Field, *, seed: int = 0, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Return an image (U, 3, h, w), 0 to 255, for each unit of a layer, and the units' values (U,) in them.

    What is raised is the unit's value in the layer's middle cell, before its rectifier; the images are cut to its
    field. The same seed gives the same images.
    """
    for unit in units:
        network.check(layer, unit)
    spec, device = network.input, network.device
    wanted = [min(whole, int(min(size, whole)) + MARGIN) for size, whole in zip(field.size, network.side)]
    # as wide as the layer has a cell for, as those of whole images are
    side = network.side if network.shapes[layer][1:] == (1, 1) else (max(wanted), max(wanted))
    generator = torch.Generator().manual_seed(seed)
    x = (0.3 * torch.randn(len(units), 3, *side, generator=generator)).to(device).requires_grad_()
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (spec.mean, spec.std))
    low, high = (0 - mean) / std, (255 / spec.divisor - mean) / std
    ascent = torch.optim.Adam([x], lr=RATE)
    own = torch.arange(len(units), device=device)
    index = torch.tensor(units, device=device)

    def values(seen: Tensor) -> Tensor:
        maps = network.record_seen(seen, [layer])[layer]
        open_last_rectifiers(maps)
        return maps[own, index, maps.shape[2] // 2, maps.shape[3] // 2]

    # a field of a few pixels would be moved out of, and blurred away
    jitter = int(min(JITTER, field.size.min() // 8))
    for step in range(steps):
        down, right = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        x.grad = -torch.autograd.grad(values(x.roll((down, right), (2, 3))).sum(), x)[0]
        ascent.step()
        with torch.no_grad():
            x.mul_(1 - DECAY)
            if jitter and step % BLUR_EVERY == BLUR_EVERY - 1 and step < steps - BLUR_EVERY:
                x.copy_(gaussian_blur(x, [5, 5], [BLUR, BLUR]))
            x.copy_(x.clamp(low, high))
    with torch.no_grad():
        reached = values(x)
        cell = [rows // 2 for rows in network.record_seen(x[:1], [layer])[layer].shape[-2:]]
    left, top, right, bottom = field.box(cell, side).round().astype(int).tolist()
    images = ((x.detach() * std + mean) * spec.divisor).clamp(0, 255)
    return images[..., top:bottom, left:right], reached
