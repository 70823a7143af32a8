"""A data set without any oddity: what all paths must see of the others, too."""

import pytest

from tests.data.cases.builders import BOX, FOLDER, FORMATS, make
from tests.data.cases.seen import seen, thing


@pytest.mark.parametrize("kind", FORMATS)
def test_all_paths_see_the_same(tmp_path, paths, kind):
    objects = {"a.jpg": [("cat", BOX), ("dog", (0, 0, 8, 9))], "b.png": []}
    root = make(kind, tmp_path / "root", objects)
    expected = {
        f"{FOLDER[kind]}/a.jpg": seen([thing(), thing("dog", (0, 0, 8, 9))]),
        f"{FOLDER[kind]}/b.png": seen([]),
    }
    paths.see(root, expected, classes=["cat", "dog"])
    status, said, out = paths.train(root)
    assert status == 0, said
    assert (out / "last.pt").is_file()


@pytest.mark.parametrize("kind", FORMATS)
def test_all_paths_say_the_same(tmp_path, paths, kind):
    root = make(kind, tmp_path / "root", {"a.jpg": [("cat", BOX)], "b.jpg": [("cat", (1, 2, 3, 4))]})
    file, old, new, words = {
        "voc": ("Annotations/b.xml", "<xmin>2<", "<xmin>two<", ("Annotations/b.xml", "xmin", "two")),
        "coco": ("annotations/instances_all.json", "[1, 2, 2, 2]", '["two", 2, 2, 2]', ("all.json", "b.jpg", "two")),
        "yolo": ("labels/all/b.txt", "0 0.", "0 two", ("labels/all/b.txt", "line 1", "two")),
    }[kind]
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
    paths.refuse(root, *words)
