"""OpenCV's selective search, which only opencv-contrib has, run by a Python of its own: it would replace our `cv2`."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np

from detkit.errors import UserError


class ContribSearch:
    """Selective search of opencv-contrib on one core, in another process. version: of OpenCV.

    python: an interpreter that has opencv-contrib. Raises UserError where it does not start, or has not.
    """

    def __init__(self, python: str | Path) -> None:
        script = Path(__file__).with_name("contrib_server.py")
        command = [str(python), "-I", str(script)]  # isolated: neither the script's folder nor ours offer modules
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
            )
        except OSError as error:
            raise UserError(f"{python}: expected a Python that has opencv-contrib: {error.strerror}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._python = python
        self.version = self._line().strip()

    def search(self, image: np.ndarray, mode: str) -> tuple[float, np.ndarray]:
        """(H, W, 3) RGB uint8 -> seconds that it took there, and boxes (N, 4) float32 continuous xyxy, best first."""
        request = {"mode": mode, "shape": image.shape[:2]}
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.write(np.ascontiguousarray(image[..., ::-1]))
        self._requests.flush()
        answer = json.loads(self._line())
        boxes = np.frombuffer(self._answers.read(answer["boxes"] * 16), np.int32)
        return answer["seconds"], boxes.reshape(-1, 4).astype(np.float32)

    def _line(self) -> str:
        line = self._answers.readline().decode()
        if not line:
            said = self._process.communicate()[1].decode().strip().splitlines()
            raise UserError(f"{self._python}: opencv-contrib does not run: {said[-1] if said else 'it said nothing'}")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
