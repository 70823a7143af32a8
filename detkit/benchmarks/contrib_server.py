"""OpenCV's selective search for another process; a script for a Python that has opencv-contrib and needs nothing else.

Reads requests from standard input until it ends: a line of JSON {"mode": MODE, "shape": [height, width]}, then the
pixels, BGR uint8. Answers each on standard output: a line of JSON {"seconds": SECONDS, "boxes": N}, then N boxes of
four int32 (left, top, right, bottom), best rank first. The first line of all is OpenCV's version.
"""

import json
import sys
import time

import cv2
import numpy as np

MODES = {
    "single": "switchToSingleStrategy",
    "fast": "switchToSelectiveSearchFast",
    "quality": "switchToSelectiveSearchQuality",
}


def main() -> None:
    """Serve, on one core; the seconds are the processor's, which other work disturbs least."""
    segmentation = cv2.ximgproc.segmentation  # pyright: ignore[reportAttributeAccessIssue]
    cv2.setNumThreads(1)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(f"{cv2.__version__}\n".encode())
    answers.flush()
    for line in requests:
        request = json.loads(line)
        height, width = request["shape"]
        image = np.frombuffer(requests.read(height * width * 3), np.uint8).reshape(height, width, 3)
        start = time.process_time()
        search = segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(image)
        getattr(search, MODES[request["mode"]])()
        found = search.process()
        seconds = time.process_time() - start
        boxes = np.array(found, np.int32).reshape(-1, 4)  # OpenCV has a tuple for nothing
        boxes[:, 2:] += boxes[:, :2]
        answers.write(json.dumps({"seconds": seconds, "boxes": len(boxes)}).encode() + b"\n" + boxes.tobytes())
        answers.flush()


if __name__ == "__main__":
    main()
