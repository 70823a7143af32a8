"""Names, stems and values that are there twice: exact where they can be told apart, else said."""

import pytest

from tests.data.cases.builders import (
    BOX,
    CATEGORIES,
    FOLDER,
    FORMATS,
    ROW,
    coco,
    coco_image,
    coco_object,
    make,
    photo,
    voc,
    voc_object,
    voc_xml,
    yolo,
)
from tests.data.cases.seen import seen, thing

SPELLINGS = ("b.jpg", "./b.jpg", ".\\b.jpg", " b.jpg ", "../{folder}/b.jpg", "{folder}//b.jpg", "{root}/{folder}/b.jpg")


@pytest.mark.parametrize("again", SPELLINGS)
@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_twice_is_said(tmp_path, paths, kind, again):
    """However it is spelt the second time; `check` says it as training does."""
    root = tmp_path / "root"
    again = again.format(folder=FOLDER[kind], root=root)
    if kind == "coco":
        images = [coco_image("a.jpg", 1), coco_image("b.jpg", 2), coco_image(again, 3)]
        coco(root, images, [coco_object(2), coco_object(3, 2)], photos=False)
        for name in ("a.jpg", "b.jpg"):
            photo(root / "all" / name, seed=ord(name[0]))
    else:
        make(kind, root, {"a.jpg": [], "b.jpg": [("cat", BOX)]})
        if kind == "voc":
            (root / "ImageSets" / "Main" / "all.txt").write_text(f"a\nb\n{again}\n")
        else:
            (root / "data.yaml").write_text("all: all.txt\nnames: [cat, dog]\n")
            again = again if FOLDER[kind] in again else again.replace("b.jpg", f"{FOLDER[kind]}/b.jpg")
            (root / "all.txt").write_text(f"images/all/a.jpg\nimages/all/b.jpg\n{again}\n")
    paths.refuse(root, "b", "twice", divide=False)


def test_a_folder_twice_is_said(tmp_path, paths):
    root = yolo(tmp_path / "root", {"a.jpg": ROW}, "all: [images/all, ./images/all]\nnames: [cat, dog]\n")
    paths.refuse(root, "images/all/a.jpg", "twice", divide=False)


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg"])
def test_two_photos_of_one_label_file_are_said(tmp_path, paths, suffix):
    root = yolo(tmp_path / "root", {"a.jpg": ROW, f"a{suffix}": ROW, "b.jpg": ROW})
    paths.refuse(root, "labels/all/a.txt", "a.jpg", f"a{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg"])
def test_two_photos_of_one_xml(tmp_path, paths, suffix):
    """<filename> says which; where it names neither, that is said."""
    for stated, root in ((f"a{suffix}", tmp_path / "stated"), ("x.jpg", tmp_path / "open")):
        voc(root, {"a": voc_xml(voc_object(), filename=stated)})
        photo(root / "JPEGImages" / f"a{suffix}", seed=7)
    paths.see(tmp_path / "stated", {f"JPEGImages/a{suffix}": seen(thing())})
    paths.refuse(tmp_path / "open", "Annotations/a.xml", "a.jpg", f"a{suffix}")


@pytest.mark.parametrize(
    "names", [("a.jpg", "a.png"), ("a.jpg", "A.jpg"), ("x/1.jpg", "y/1.jpg"), ("x/1.jpg", "x_1.jpg")]
)
def test_images_of_coco_that_are_alike_in_name(tmp_path, paths, names):
    images = [coco_image(name, key) for key, name in enumerate(names)]
    objects = [coco_object(key, key + 1) for key in range(2)]
    expected = {f"all/{name}": seen(thing(one)) for name, one in zip(names, ("cat", "dog"))}
    paths.see(coco(tmp_path / "root", images, objects), expected)


@pytest.mark.parametrize("kind", ["voc", "yolo"])
@pytest.mark.parametrize("names", [("a.jpg", "A.jpg"), ("x/1.jpg", "y/1.jpg"), ("x/1.jpg", "x_1.jpg")])
def test_images_that_are_alike_in_name(tmp_path, paths, kind, names):
    root = make(kind, tmp_path / "root", {name: [(one, BOX)] for name, one in zip(names, ("cat", "dog"))})
    expected = {f"{FOLDER[kind]}/{name}": seen(thing(one)) for name, one in zip(names, ("cat", "dog"))}
    paths.see(root, expected)


@pytest.mark.parametrize(
    ("images", "objects", "categories", "words"),
    [
        ([coco_image("a.jpg", 7), coco_image("b.jpg", 7)], [], CATEGORIES, ("image", "7")),
        ([coco_image("a.jpg")], [], [*CATEGORIES, {"id": 2, "name": "cow"}], ("category", "2")),
        ([coco_image("a.jpg")], [coco_object(id=5), coco_object(category=2, id=5)], CATEGORIES, ("annotation", "5")),
    ],
)
def test_an_id_twice_is_said(tmp_path, paths, images, objects, categories, words):
    root = coco(tmp_path / "root", images, [coco_object(images[0]["id"], id=1), *objects], categories)
    paths.refuse(root, "instances_all.json", *words)


@pytest.mark.parametrize("unused", [0, 2])
def test_an_unused_category_of_a_used_name_is_left_out(tmp_path, paths, unused):
    categories = [{"id": unused, "name": "face", "supercategory": "none"}, {"id": 1, "name": "face"}]
    root = coco(tmp_path / "root", [coco_image("a.jpg")], [coco_object()], [*categories, {"id": 9, "name": "eye"}])
    expected = {"all/a.jpg": seen(thing("face"))}
    paths.see(root, expected, classes=["face", "eye"], notes=[("instances_all.json", "face")])


def test_two_used_categories_of_a_name_are_said(tmp_path, paths):
    categories = [{"id": 3, "name": "face"}, {"id": 4, "name": " face"}]
    objects = [coco_object(category=3), coco_object(category=4, box=(0, 0, 9, 9))]
    root = coco(tmp_path / "root", [coco_image("a.jpg")], objects, categories)
    paths.refuse(root, "instances_all.json", "face")


TWICE = {
    "bndbox": "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>",
    "name": "<name>dog</name>",
    "difficult": "<difficult>0</difficult><difficult>1</difficult>",
}


@pytest.mark.parametrize("element", TWICE)
def test_an_element_twice_in_an_object(tmp_path, paths, element):
    """Two boxes are two objects or said; what contradicts itself is said."""
    root = voc(tmp_path / "root", {"a": voc_xml(voc_object(more=TWICE[element]))})
    words = ("Annotations/a.xml", "object 1", element)
    if element == "bndbox":
        both = [thing(box=(0, 0, 9, 9)), thing()]
        paths.see_or_refuse(root, {"JPEGImages/a.jpg": seen(both)}, *words)
    else:
        paths.refuse(root, *words)


def test_an_edge_twice_is_said(tmp_path, paths):
    xml = voc_xml(voc_object()).replace("<xmin>", "<xmin>3</xmin><xmin>")
    paths.refuse(voc(tmp_path / "root", {"a": xml}), "Annotations/a.xml", "object 1", "xmin")


def test_parts_of_an_object_are_no_second_box(tmp_path, paths):
    """VOC's persons have heads and hands, each with a name and a box of its own."""
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
    xml = voc_xml(voc_object().replace("</object>", f"{part}{part}</object>"))
    paths.see(voc(tmp_path / "root", {"a": xml}), {"JPEGImages/a.jpg": seen(thing())})


@pytest.mark.parametrize(
    ("yaml", "key"),
    [
        ("all: images/all\nnames: [cat, dog]\nnames: [dog, cat]\n", "names"),
        ("all: images/all\nall: images/other\nnames: [cat, dog]\n", "all"),
        ("all: images/all\nnames: {0: cat, 0: dog}\n", "0"),
        ("all: images/all\nnames: {0: cat, 00: dog}\n", "0"),
    ],
)
def test_a_key_of_data_yaml_twice_is_said(tmp_path, paths, yaml, key):
    root = yolo(tmp_path / "root", {"a.jpg": ROW}, yaml)
    photo(root / "images" / "other" / "b.jpg")
    paths.refuse(root, "data.yaml", key)
