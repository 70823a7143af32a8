"""Names of classes are the text as it is written, in data.yaml, classes.txt, JSON, XML and configs."""

import pytest
import yaml as pyyaml

from detkit.data.opening import open_dataset
from detkit.experiment import load_config
from tests.data.cases.builders import ROW, coco, coco_image, coco_object, voc, voc_object, voc_xml, yolo
from tests.data.cases.seen import seen, thing

WRITTEN = (
    *("no", "yes", "off", "on", "n", "True", "007", "1.50", "1e3", "0x1F", "1_000", ".5", "null", "~", "12:30"),
    *("2001-01-01", "+1", "-1", "=", "a b", "é", "猫", "[bold]", "x:y", "#1", "0"),
)


def quoted(name: str) -> str:
    """A name as YAML has it: quoted only where it would not be one plain text else."""
    return f'"{name}"' if name in ("[bold]", "#1") else name


def see_names(root, paths, names) -> None:
    paths.see(root, {"images/all/a.jpg": seen(thing(names[-1]))}, classes=names)


@pytest.mark.parametrize("form", ["flow list", "block list", "flow mapping", "block mapping"])
def test_names_of_data_yaml(tmp_path, paths, form):
    pairs = [*enumerate(map(quoted, WRITTEN))]
    names = {
        "flow list": f"[{', '.join(name for _, name in pairs)}]",
        "block list": "".join(f"\n- {name}" for _, name in pairs),
        "flow mapping": f"{{{', '.join(f'{key}: {name}' for key, name in pairs)}}}",
        "block mapping": "".join(f"\n  {key}: {name}" for key, name in pairs),
    }[form]
    root = yolo(tmp_path / "root", {"a.jpg": f"{len(WRITTEN) - 1} {ROW[2:]}"}, f"names: {names}\n")
    see_names(root, paths, WRITTEN)


@pytest.mark.parametrize("name", ["no", "007", "null", "12:30", "[bold]"])
def test_each_name_alone(tmp_path, paths, name):
    see_names(yolo(tmp_path / "root", {"a.jpg": ROW}, f"names: [{quoted(name)}]\n"), paths, [name])


def test_numbers_of_classes_are_decimal(tmp_path, paths):
    names = "names: {08: a, 010: b}\n"
    root = yolo(tmp_path / "root", {"a.jpg": f"10 {ROW[2:]}"}, names)
    see_names(root, paths, ["a", "b"])


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt", "labels/all/classes.txt"])
def test_names_of_classes_txt(tmp_path, paths, place):
    root = yolo(tmp_path / "root", {"a.jpg": f"1 {ROW[2:]}"}, None)
    (root / place).write_text("007\nno\n")
    paths.see(root, {"images/all/a.jpg": seen(thing("no"))}, classes=["007", "no"])


def test_classes_txt_beside_images(tmp_path, paths):
    """labelImg's own layout: images, labels and classes.txt in one folder."""
    root = yolo(tmp_path / "root", {"a.jpg": None}, None)
    (root / "images" / "all").rename(root / "all")
    (root / "all" / "a.txt").write_text(f"1 {ROW[2:]}")
    (root / "all" / "classes.txt").write_text("cat\ndog\n")
    (root / "all.txt").write_text("all/a.jpg\n")
    paths.see(root, {"all/a.jpg": seen(thing("dog"))}, classes=["cat", "dog"])


def test_lists_of_classes_that_differ_are_said(tmp_path, paths):
    root = yolo(tmp_path / "root", {"a.jpg": ROW, "b.jpg": ROW}, None)
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "labels" / "all" / "classes.txt").write_text("dog\ncat\n")
    paths.refuse(root, "classes.txt", "labels/all/classes.txt")


def test_names_of_coco(tmp_path, paths):
    categories = [{"id": key, "name": name} for key, name in enumerate(WRITTEN)]
    objects = [coco_object(category=key, box=(key, 0, key + 5, 9)) for key in range(len(WRITTEN))]
    root = coco(tmp_path / "root", [coco_image("a.jpg")], objects, categories)
    things = [thing(name, (key, 0, key + 5, 9)) for key, name in enumerate(WRITTEN)]
    paths.see(root, {"all/a.jpg": seen(things)}, classes=WRITTEN)


@pytest.mark.parametrize("number", [0, 7])
def test_numbers_as_names_of_coco(tmp_path, paths, number):
    root = coco(tmp_path / "root", [coco_image("a.jpg")], [coco_object()], [{"id": 1, "name": number}])
    paths.see(root, {"all/a.jpg": seen(thing(str(number)))}, classes=[str(number)])


@pytest.mark.parametrize("name", [None, "", " ", False, True, ["cat"], {"cat": 1}])
def test_what_is_no_name_in_coco_is_said(tmp_path, paths, name):
    root = coco(tmp_path / "root", [coco_image("a.jpg")], [coco_object(category=9)], [{"id": 9, "name": name}])
    paths.refuse(root, "instances_all.json", "category", "9", "name")


def test_names_of_voc(tmp_path, paths):
    objects = [voc_object(f" {name}\n", (key, 0, key + 5, 9)) for key, name in enumerate(WRITTEN)]
    root = voc(tmp_path / "root", {"a": voc_xml(*objects)})
    things = [thing(name, (key, 0, key + 5, 9)) for key, name in enumerate(WRITTEN)]
    paths.see(root, {"JPEGImages/a.jpg": seen(things)}, classes=sorted(WRITTEN))


@pytest.mark.parametrize("names", ["[cat, '']", "[cat, ]\n# ", "{0: }", "[cat, [dog]]", "[cat, {dog: 1}]", "''", "[]"])
def test_what_is_no_name_in_data_yaml_is_said(tmp_path, paths, names):
    if names.startswith("[cat, ]"):
        names = "\n- cat\n-\n"
    paths.refuse(yolo(tmp_path / "root", {"a.jpg": ROW}, f"names: {names}\n"), "data.yaml", "names")


@pytest.mark.parametrize("names", ["[cat, cat]", "{0: cat, 1: cat}", "[no, 'no']", "[1.5, '1.5']", "[' cat', cat]"])
def test_a_name_of_two_classes_is_said(tmp_path, paths, names):
    root = yolo(tmp_path / "root", {"a.jpg": f"{ROW}\n1 .5 .5 .1 .1\n"}, f"names: {names}\n")
    (name,) = {
        str(name).strip()
        for name in pyyaml.load(
            names.replace("0: ", "").replace("1: ", "").replace("{", "[").replace("}", "]"), pyyaml.BaseLoader
        )
    }
    paths.refuse(root, "data.yaml", name)


@pytest.mark.parametrize("names", ["[no, yes]", "[007, 1.50, 12:30]"])
@pytest.mark.parametrize("place", ["file", "override"])
def test_names_of_a_config(tmp_path, names, place):
    written = pyyaml.load(names, pyyaml.BaseLoader)
    root = voc(tmp_path / "root", {"a": voc_xml(*(voc_object(name) for name in written))})
    path = tmp_path / "config.yaml"
    inside = f", classes: {names}" if place == "file" else ""
    path.write_text(f"model: {{name: toy}}\ndata: {{root: {root}, train: [all]{inside}}}\ntrain: {{iterations: 1}}\n")
    config = load_config(path, [] if place == "file" else [f"data.classes={names.replace(', ', ',')}"])
    assert open_dataset(config.data, "train").classes == tuple(written)
