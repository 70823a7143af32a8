"""A window on the screen."""

import os
import sys
from typing import Any

import numpy as np

from detkit.errors import UserError


class Window:
    """Shows images, scaled down to the screen, until the user closes it or presses q or Escape.

    Tk's, since OpenCV's headless build has none and its other build ends the process where there is no display.
    Raises UserError where no window can be opened.
    """

    def __init__(self, title: str) -> None:
        if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
            raise UserError("no display to show images on (DISPLAY is not set); they can be written to files")
        try:
            import tkinter
        except ImportError:
            raise UserError("this Python has no tkinter to show images with; they can be written to files") from None
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise UserError(f"no display to show images on ({error}); they can be written to files") from None
        self._root.title(title)
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._image: Any = None
        self.open = True
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        for key in ("q", "<Escape>"):
            self._root.bind(key, lambda _event: self.close())

    def show(self, image: np.ndarray) -> None:
        """Show an (H, W, 3) RGB uint8 image, and hear what the user did since the last."""
        from PIL import Image, ImageTk

        if not self.open:
            return
        frame = Image.fromarray(image)
        frame.thumbnail((int(self._root.winfo_screenwidth() * 0.9), int(self._root.winfo_screenheight() * 0.9)))
        self._image = ImageTk.PhotoImage(frame, master=self._root)  # Tk itself holds none
        self._label.configure(image=self._image)
        self._root.update()

    def wait(self) -> None:
        """Return once the user has closed it."""
        if self.open:
            self._root.wait_window()

    def close(self) -> None:
        """Close it; images shown later are not seen."""
        if self.open:
            self.open = False
            self._root.destroy()
