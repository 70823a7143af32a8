"""detkit detect: names of images that are long or no UTF-8."""

import os
import shutil
from pathlib import Path

import pytest

from tests.cli.detecting import detect, files, report

NAMES = {
    "249 bytes": "n" * 245,
    "255 bytes": "n" * 251,
    "255 bytes of two a letter": "é" * 125 + "n",
    "no UTF-8": "caf\udce9",
}


@pytest.mark.parametrize("which", NAMES)
def test_names_that_a_file_system_takes(image_files, weights, capsys, which):
    name = f"{NAMES[which]}.jpg"
    assert len(os.fsencode(name)) <= 255
    shutil.copy(image_files / "0.jpg", image_files / name)
    assert detect(weights, image_files / name, image_files / "1.jpg", "--json", "--out", "out") == 0
    assert "Traceback" not in capsys.readouterr().err
    written = [os.fsencode(one) for one in files("out") if one.endswith(".jpg")]
    assert len(written) == 2
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]
    assert len(report("out")["images"]) == 2
