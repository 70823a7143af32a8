"""What has a picture: shown in a notebook or a window, and written to a file."""

import base64
import html
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from detkit.errors import UserError
from detkit.files import encode_image, write_image
from detkit.viz.window import Window

PAGE_SIDE = 1000  # pixels of the longer side of a notebook's image


class Shown:
    """A mixin of what `plot` draws."""

    def plot(self) -> np.ndarray:
        """Return the picture, (H, W, 3) RGB uint8."""
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Write what `plot` returns to an image file, of the format of its suffix; return its path."""
        write_image(Path(path), self.plot())
        return Path(path)

    def show(self) -> None:
        """Show what `plot` returns: in a notebook below its cell, else in a window, until it is closed.

        Raises UserError where there is no display.
        """
        if shell := _notebook():
            shell.display(self)
            return
        window = Window(self._title())
        window.show(self.plot())
        window.wait()

    def _title(self) -> str:
        return "detkit"

    def _picture(self, suffix: str = ".jpg") -> str:
        """The picture as HTML, or why there is none."""
        import cv2  # only here: commands that read no image begin without it

        try:
            picture = self.plot()
            factor = min(1.0, PAGE_SIDE / max(picture.shape[:2]))  # notebooks keep all that they have shown
            picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            content = base64.b64encode(encode_image(suffix, picture)).decode()
        except UserError as error:
            return html.escape(str(error))
        kind = {".jpg": "jpeg"}.get(suffix, suffix[1:])
        return f'<img style="max-width:100%" alt="" src="data:image/{kind};base64,{content}">'


def _notebook() -> Any:
    """IPython's display functions where the code runs in a notebook, else None."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return import_module("IPython.display") if getattr(shell, "kernel", None) else None
