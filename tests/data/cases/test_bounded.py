"""What is read is bounded: no endless search, no memory without end, an index as large as what is there.

What would go on for ever runs in a process of its own, with a limit of memory and of processor time.
"""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.cases.builders import BOX, FOLDER, FORMATS, ROW, make, voc_object, voc_xml, yolo, yolo_row
from tests.data.cases.seen import seen, thing

MEMORY = 8 << 30  # of addresses, most of which PyTorch only reserves
SECONDS = 20  # of the processor
CODE = "import sys; from detkit.cli import main; sys.exit(main(sys.argv[1:]))"


def bounded(*arguments: object) -> tuple[int, str]:
    """Return status and words of `detkit dataset ...`; the status is below zero where a limit ended it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    command = [sys.executable, "-c", CODE, "dataset", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_class_of_two_billions_without_names(tmp_path):
    root = yolo(tmp_path / "root", {"a.jpg": f"2000000000 {ROW[2:]}"}, None)
    status, said = bounded("check", "--root", root)
    assert status == 1, said[-300:]
    assert "labels/all/a.txt: line 1" in said
    assert "2000000000" in said


@pytest.mark.parametrize("kind", FORMATS)
def test_a_link_to_its_own_folder(tmp_path, paths, kind):
    """Each image is seen once, however many ways lead to it."""
    root = make(kind, tmp_path / "root", {"a.jpg": [("cat", BOX)], "b.jpg": []})
    (root / FOLDER[kind] / "loop").symlink_to(".", target_is_directory=True)
    expected = {f"{FOLDER[kind]}/a.jpg": seen(thing()), f"{FOLDER[kind]}/b.jpg": seen([])}
    paths.see(root, expected)


def test_links_whose_ways_have_no_end(tmp_path):
    root = make("yolo", tmp_path / "root", {"a.jpg": [("cat", BOX)], "b.jpg": []})
    for name in ("one", "two", "three"):
        (root / "images" / "all" / name).symlink_to(root, target_is_directory=True)
    status, said = bounded("check", "--root", root)
    assert status == 0, said[-300:]
    assert "2 images, 1 objects" in said


@pytest.mark.parametrize("kind", FORMATS)
def test_folders_and_files_that_are_links(tmp_path, paths, kind):
    """Links that lead elsewhere are followed."""
    other = make(kind, tmp_path / "other", {"a.jpg": [("cat", BOX)], "b.jpg": [("dog", BOX)]})
    root = tmp_path / "root"
    root.mkdir()
    for path in other.iterdir():
        (root / path.name).symlink_to(path)
    status, said = paths.run("check", "--root", root)
    assert status == 0, said
    assert "2 images, 2 objects" in said


@pytest.mark.parametrize("entry", [".", "/"])
def test_a_path_of_the_whole_disk(tmp_path, entry):
    """`path: /`, or a split that is a folder above the data set: said, or no more than the data set."""
    root = yolo(tmp_path / "root", {"a.jpg": ROW}, f"path: /\nall: '{entry}'\nnames: [cat, dog]\n")
    status, said = bounded("check", "--root", root, "--split", "all")
    assert status in (0, 1, 2), said[-300:]
    assert "Traceback" not in said
    if status == 0:
        assert "1 images, 1 objects" in said
    else:
        assert "all" in said


def test_a_path_of_the_whole_disk_and_a_folder_below(tmp_path, paths):
    root = yolo(tmp_path / "root", {"a.jpg": ROW}, "path: /\nall: images/all\nnames: [cat, dog]\n")
    paths.see(root, {"images/all/a.jpg": seen(thing())})


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("what", ["broken objects", "a long class", "a long name"])
def test_the_index_is_as_large_as_what_is_there(tmp_path, paths, kind, what):
    """One image with much to say among many with little."""
    many = {f"{i:03d}.jpg": [("cat", BOX)] for i in range(200)}
    if what == "a long name":
        many[f"{'n' * 240}.jpg"] = [("cat", BOX)]
    root = make(kind, tmp_path / "root", many)
    if what == "broken objects":
        break_objects(kind, root, 1000)
    elif what == "a long class":
        if kind == "voc":
            (root / "Annotations" / "000.xml").write_text(voc_xml(voc_object("c" * 20_000)))
        elif kind == "coco":
            file = root / "annotations" / "instances_all.json"
            file.write_text(file.read_text().replace('"dog"', f'"{"c" * 20_000}"'))
        else:
            (root / "data.yaml").write_text(f"all: images/all\nnames: [cat, {'c' * 20_000}]\n")
    paths.run("check", "--root", root)
    read = [path for path in root.rglob("*") if path.suffix in (".xml", ".json", ".txt", ".yaml")]
    written = [path for path in root.rglob(".detkit-index*") if path.is_file()]
    assert written
    assert sum(path.stat().st_size for path in written) < 100_000 + 10 * sum(path.stat().st_size for path in read)


def break_objects(kind: str, root: Path, count: int) -> None:
    """Give the first image so many broken objects."""
    if kind == "voc":
        xml = voc_xml(*["<object><name>cat</name></object>"] * count)
        (root / "Annotations" / "000.xml").write_text(xml)
    elif kind == "coco":
        file = root / "annotations" / "instances_all.json"
        broken = ",".join(f'{{"id":{1000 + i},"image_id":1,"category_id":1,"bbox":0}}' for i in range(count))
        file.write_text(file.read_text().replace('"annotations": [', f'"annotations": [{broken},'))
    else:
        (root / "labels" / "all" / "000.txt").write_text(f"{yolo_row()}\n" + "0 x\n" * count)
