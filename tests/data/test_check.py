"""`check` names every problem; the command line around it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detkit.cli import run_command
from detkit.data.check import check_root
from detkit.errors import UserError
from tests.data.roots import make_root, random_image, xml

CHECKOUT = Path(__file__).resolve().parents[2]


def test_a_clean_root_has_no_problems(small_root):
    report = check_root(small_root)
    assert report.problems == []
    assert (report.images, report.objects, report.splits) == (9, 12, ("test", "trainval"))


@pytest.fixture
def broken_root(tmp_path):
    files = {
        "beyond": xml([("x", (1, 1, 61, 40)), ("x", (0, 1, 9, 9))]),
        "flipped": xml([("x", (1, 1, 9, 9)), ("x", (9, 9, 8, 8))]),
        "twice": xml([("x", (1, 1, 9, 9)), ("y", (1, 1, 9, 9)), ("x", (1, 1, 9, 9))]),
        "size": xml([], size=(61, 40)),
        "nosize": xml([], size=None),
        "noimage": xml([]),
        "text": xml([]),
        "twin": xml([]),
        "notxml": "<annotation>",
        "class": xml([("z", (1, 1, 9, 9))]),
    }
    root = make_root(tmp_path / "broken", files, {"all": [*files, "noxml", "twin"], "empty": []})
    random_image(root / "JPEGImages" / "noxml.jpg", seed=99)
    (root / "JPEGImages" / "noimage.jpg").unlink()
    (root / "JPEGImages" / "text.jpg").write_text("hello")
    shutil.copy(root / "JPEGImages" / "size.jpg", root / "JPEGImages" / "twin.jpg")
    return root


def test_every_problem_is_named(broken_root):
    report = check_root(broken_root, classes=["x", "y"])
    assert {(p.file, p.object, p.kind) for p in report.problems} == {
        ("Annotations/beyond.xml", 1, "box outside"),
        ("Annotations/beyond.xml", 2, "box outside"),
        ("Annotations/flipped.xml", 2, "broken box"),
        ("Annotations/twice.xml", 3, "duplicate object"),
        ("Annotations/class.xml", 1, "unknown class"),
        ("Annotations/nosize.xml", 0, "size"),
        ("Annotations/notxml.xml", 0, "broken file"),
        ("Annotations/noxml.xml", 0, "missing file"),
        ("JPEGImages/size.jpg", 0, "size"),
        ("JPEGImages/noimage.jpg", 0, "missing file"),
        ("JPEGImages/text.jpg", 0, "unreadable image"),
        ("JPEGImages/twin.jpg", 0, "duplicate image"),
        ("ImageSets/Main/all.txt", 0, "duplicate image"),
        ("ImageSets/Main/empty.txt", 0, "split"),
    }
    lines = [str(problem) for problem in report.problems]
    assert "Annotations/beyond.xml: object 1: x: xmax 61 is beyond the image's 60 pixels" in lines
    assert "Annotations/beyond.xml: object 2: x: xmin 0 is before the first pixel, which is 1" in lines
    assert "Annotations/flipped.xml: object 2: x: xmax 8 < xmin 9" in lines
    assert "Annotations/twice.xml: object 3: the same x as object 1" in lines


def test_a_missing_split_is_a_problem(small_root):
    (problem,) = check_root(small_root, ["trainval", "tset"]).problems
    assert "did you mean 'test'?" in problem.text
    with pytest.raises(UserError, match="fetch it with"):
        check_root(Path("VOC2007"))


def test_exit_status_of_check(small_root, broken_root, capsys):
    assert run_command("dataset", ["check", "--root", str(small_root)]) == 0
    assert "9 images, 12 objects, splits test, trainval: no problems" in capsys.readouterr().out
    assert run_command("dataset", ["check", "--root", str(broken_root), "--split", "all"]) == 1
    out = capsys.readouterr().out
    assert "Annotations/flipped.xml: object 2:" in out
    assert "12 problems" in out
    assert run_command("dataset", ["check", "--root", str(small_root / "x")]) == 2
    assert run_command("dataset", ["check"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: which data set?")


def test_a_root_without_splits_is_checked_and_counted_as_a_whole(small_root, capsys):
    shutil.rmtree(small_root / "ImageSets")
    assert run_command("dataset", ["check", "--root", str(small_root)]) == 0
    assert f"{small_root}: 9 images, 12 objects, no splits: no problems" in capsys.readouterr().out
    assert run_command("dataset", ["stats", "--root", str(small_root)]) == 0
    assert "small: 9 images" in capsys.readouterr().out


def test_every_root_is_checked_in_its_own_format(broken_root, tmp_path, capsys):
    """Also where one before it has problems."""
    for name in ("a", "b"):
        shutil.copytree(broken_root, tmp_path / "roots" / name)
    splits = [word for name in ("a", "b") for word in ("--split", f"{name}/all")]
    assert run_command("dataset", ["check", "--root", str(tmp_path / "roots"), *splits]) == 1
    assert capsys.readouterr().out.count("12 problems") == 2


def test_stats(small_root, capsys):
    assert run_command("dataset", ["stats", "--root", str(small_root), "--split", "trainval"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "small/trainval: 9 images" in out
    assert "none in 1" in out


def test_show(small_root, tmp_path, capsys):
    cv2 = pytest.importorskip("cv2")
    out = tmp_path / "images" / "show.png"
    command = [
        "show",
        "--root",
        str(small_root),
        "--split",
        "trainval",
        "--out",
        str(out),
        "--images",
        "4",
        "--size",
        "80",
    ]
    assert run_command("dataset", command) == 0
    assert cv2.imread(str(out)).shape[1] > 160
    assert [path.name for path in out.parent.iterdir()] == ["show.png"]
    for wrong in (["--out", "x.txt"], ["--images", "0"], ["--start", "99"], ["--size", "0"], ["--split", "no"]):
        assert run_command("dataset", [*command, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("behind", [False, True])
def test_show_draws_what_training_sees(small_root, tmp_path, capsys, behind):
    """key=value stands before options, or behind them."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{name: ssd, backbone: {{name: tiny}}}}\ndata: {{root: {small_root}, augment: [HorizontalFlip]}}\n"
        "train: {iterations: 1}\n"
    )
    out = tmp_path / "show.png"
    parts = (["data.test=[test]"], ["--out", str(out), "--size", "64"])
    words = [word for part in (reversed(parts) if behind else parts) for word in part]
    assert run_command("dataset", ["show", str(config), *words]) == 0
    assert "augmented for training, 64x64" in capsys.readouterr().out
    assert out.is_file()


@pytest.mark.parametrize("name", ["Mosaic", "MixUp"])
def test_show_draws_images_that_are_made_of_several(small_root, tmp_path, name):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {{name: ssd, backbone: {{name: tiny}}}}\ndata: {{root: {small_root}}}\ntrain: {{iterations: 1}}\n"
    )
    drawn = []
    for number, augment in enumerate(("[]", f"[{{{name}: {{p: 1}}}}]")):
        out = tmp_path / f"{number}.png"
        words = ["show", str(config), "data.test=[test]", f"data.augment={augment}", "--out", str(out), "--size", "64"]
        assert run_command("dataset", words) == 0
        drawn.append(out.read_bytes())
    assert drawn[0] != drawn[1]


def test_help_is_quick():
    """No heavy import for --help."""
    code = "import sys, detkit.cli as c; c.command_parser('dataset'); print({'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert result.stdout.strip() == "set()"
