"""The colour spaces of selective search (Uijlings et al., IJCV 2013, section 3.2).

Each function takes (H, W, 3) RGB uint8 and returns (H, W, 3) uint8 that fills 0 to 255, as the authors' code has it:
there too a space of one channel is repeated, so that distances keep their scale.
"""

from collections.abc import Callable

import cv2
import numpy as np


def hsv(image: np.ndarray) -> np.ndarray:
    """Hue, saturation, value; the hue's circle is cut at red."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))


def lab(image: np.ndarray) -> np.ndarray:
    """CIE `L*a*b*` of sRGB: 2.55 L, a + 128, b + 128."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB))


def rgi(image: np.ndarray) -> np.ndarray:
    """Normalised red and green, R / (R + G + B) and G / (R + G + B), and intensity; black counts as grey."""
    total = image.sum(2, dtype=np.int32)
    black = (total == 0)[..., None]
    red_green = (image[..., :2] + black) / (total[..., None] + 3 * black)
    intensity = total / (3 * 255)
    return np.rint(np.concatenate([red_green, intensity[..., None]], 2) * 255).astype(np.uint8)


def hue(image: np.ndarray) -> np.ndarray:
    """The hue of HSV, three times."""
    return np.repeat(hsv(image)[..., :1], 3, 2)


def intensity(image: np.ndarray) -> np.ndarray:
    """The luma of an RGB image, three times."""
    return np.repeat(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[..., None], 3, 2)


COLOURS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "HSV": hsv,
    "Lab": lab,
    "rgI": rgi,
    "H": hue,
    "I": intensity,
}
