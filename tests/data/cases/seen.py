"""What a user sees of a data set, by each path: the Python API, training, `check`, `stats`, `convert` and `split`."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import tests.toys.toy  # noqa: F401 (registers the detector)
from detkit.cli import run_command
from detkit.config import DataConfig
from detkit.data.check import check_root
from detkit.data.formats import find_format, find_splits, open_root
from detkit.data.opening import open_dataset
from detkit.errors import UserError
from tests.data.cases.builders import BOX, FORMATS, SIZE

FLAGS = ("difficult", "crowd", "truncated")
Object = tuple[str, tuple[float, ...], str]
Content = dict[str, tuple[tuple[int, int], list[Object]]]


def thing(name: str = "cat", box: Sequence[float] = BOX, flags: str = "") -> Object:
    """One object as it must be seen. flags: those of difficult, crowd, truncated that are set, with blanks between."""
    return name, tuple(float(value) for value in box), flags


def seen(objects: Sequence[Object] | Object, size: tuple[int, int] = SIZE) -> tuple[tuple[int, int], list[Object]]:
    """One image as it must be seen."""
    return size, [objects] if isinstance(objects, tuple) else [*objects]  # type: ignore[list-item]


def content(dataset, root: Path) -> Content:
    """All that a data set says, by image file relative to its root; the pixels are of the size that it says."""
    found: Content = {}
    for i in range(len(dataset)):
        record = dataset.record(i)
        objects = record.annotations
        flags = zip(objects.difficult.tolist(), objects.crowd.tolist(), objects.truncated.tolist())
        path = record.path.resolve()
        file = path.relative_to(root.resolve()).as_posix() if path.is_relative_to(root.resolve()) else str(path)
        assert dataset.image(i).shape[1::-1] == (record.width, record.height), f"{file}: another size than its pixels'"
        assert file not in found, f"{file} is seen twice"
        found[file] = (
            (record.width, record.height),
            [
                (
                    str(dataset.classes[label]),
                    tuple(round(value, 2) for value in box),
                    " ".join(name for name, is_set in zip(FLAGS, marks) if is_set),
                )
                for label, box, marks in zip(objects.labels.tolist(), objects.boxes.tolist(), flags)
            ],
        )
    return found


class Paths:
    """The paths by which a user sees a data set; all must see the same one."""

    def __init__(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.made, self.capsys = made, capsys

    def run(self, action: str, *arguments: object) -> tuple[int, str]:
        """Return the exit status of `detkit dataset ACTION ...` and all that it said."""
        self.capsys.readouterr()
        status = run_command("dataset", [action, *map(str, arguments)])
        said = self.capsys.readouterr()
        if status == 2:
            assert len(said.err.splitlines()) == 1, f"not one line: {said.err}"
        return status, self._without_folder(said.out + said.err)

    def _without_folder(self, text: str) -> str:
        """A text without the test's own folder, whose name may have any words."""
        return text.replace(str(self.made.parent), "TMP")

    def _out(self, root: Path, name: str) -> Path:
        """A short plain name, whatever the root is called."""
        return self.made / f"{hashlib.blake2b(os.fsencode(root.name), digest_size=4).hexdigest()}-{name}"

    def train(self, root: Path, split: str = "all", **keys: object) -> tuple[int, str, Path]:
        """Return exit status, words and folder of a step of training on a split."""
        config = self._out(root, "config.yaml")
        config.parent.mkdir(exist_ok=True)
        config.write_text(
            f"model: {{name: toy}}\ndata: {{root: {root}, train: [{split}], test: [{split}]}}\n"
            "train: {iterations: 1, batch: 2, lr: 0.01, workers: 0, device: cpu}\n"
        )
        self.capsys.readouterr()
        out = self._out(root, "run")
        overrides = [f"{key}={value}" for key, value in keys.items()]
        status = run_command("train", [str(config), *overrides, "--out", str(out)])
        said = self.capsys.readouterr()
        return status, self._without_folder(said.out + said.err), out

    def see(
        self,
        root: Path,
        expected: Mapping[str, tuple[tuple[int, int], list[Object]]],
        *,
        split: str = "all",
        classes: Sequence[str] | None = None,
        problems: Sequence[Sequence[str]] = (),
        notes: Sequence[Sequence[str]] = (),
        divide: bool = True,
        odd: bool = False,
    ) -> None:
        """Every path sees `expected`, which is image file -> `seen`.

        problems: words of each line that `check` must say, which is clean without any. notes: words of each line that
        `check`, `stats` and `convert` say, once, of a data set that is used nevertheless. divide: whether `split` makes
        a split of the same images. odd: whether `convert` may say that another format has no place for such names.
        """
        expected = dict(expected)
        opened = open_root(root, [split])
        assert content(opened, root) == expected
        training = open_dataset(DataConfig(root=str(root), train=[split]), "train")
        assert content(training, root) == expected
        assert (training.ids, training.classes) == (opened.ids, opened.classes)
        if classes is not None:
            assert opened.classes == tuple(classes)
        objects = sum(len(things) for _, things in expected.values())

        status, said = self.run("check", "--root", root, "--split", split)
        assert f"{len(expected)} images, {objects} objects, splits {split}: " in said
        for words in (*problems, *notes):
            assert lines_with(said, words), f"check does not say {words}: {said}"
        if not notes:
            assert (status, "no problems" in said) == ((1, False) if problems else (0, True)), said

        status, said = self.run("stats", "--root", root, "--split", split)
        assert status == 0, said
        self._once(said, notes)
        assert f": {len(expected)} images" in said
        row = re.search(r"│ all +│ +\d+ +│ +(\d+) +│ +(\d+) +│ +(\d+) +│ +(\d+)", said)
        flags = [sum(flag in one[2] for _, things in expected.values() for one in things) for flag in FLAGS]
        assert row is not None
        assert [*map(int, row.groups())] == [objects, *flags]
        for name in opened.classes:
            assert re.search(rf"│ {re.escape(name)} +│", said), f"stats does not name {name}"

        self._convert(root, expected, split, opened.classes, notes, clean=not problems and not notes, odd=odd)
        if divide:
            self._split(root, expected)

    @staticmethod
    def _one_split(root: Path) -> tuple[str, list[str]]:
        """Return the name of a new split, and the options by which `split` puts all images into it."""
        try:
            splits = find_splits(root)
        except UserError:
            splits = []
        new = next(name for name in ("train", "val", "test") if name not in splits)
        shares = [f"--{name}={int(name == new)}" for name in ("train", "val", "test")]
        return new, [*shares, *(["--from", "all"] if [*(root / "annotations").glob("*.json")] else [])]

    def _convert(self, root, expected, split, classes, notes, clean, odd) -> None:
        for kind in FORMATS:
            if kind == find_format(root):
                continue
            out = self._out(root, kind)
            status, said = self.run("convert", root, "--split", split, "--to", kind, "--out", out)
            if odd and status == 2:
                assert not out.exists()
                continue
            assert status == 0, said
            self._once(said, notes)
            (name,) = find_splits(out)
            written = open_root(out, [name])
            assert by_digest(content(written, out), out) == by_digest(expected, root), kind
            if kind != "voc":  # which knows no class without objects, and orders them
                assert written.classes == classes
            if clean:
                assert check_root(out).problems == []

    def _split(self, root, expected) -> None:
        new, arguments = self._one_split(root)
        status, said = self.run("split", root, *arguments)
        assert status == 0, said
        assert content(open_root(root, [new]), root) == expected

    def _once(self, said: str, notes: Sequence[Sequence[str]]) -> None:
        for words in notes:
            assert len(lines_with(said, words)) == 1, f"not said once: {words}: {said}"

    def refuse(self, root: Path, *words: str, split: str = "all", divide: bool = True) -> None:
        """Every path says the same line, which has all `words`, and writes nothing.

        divide: `split` does so, too, or leaves a data set that is refused.
        """
        before = files_below(root)
        with pytest.raises(UserError) as caught:
            open_root(root, [split])
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert lines_with(self._without_folder(message), words), f"the message does not say {words}: {message}"
        with pytest.raises(UserError) as caught:
            open_dataset(DataConfig(root=str(root), train=[split]), "train")
        assert str(caught.value) == message

        status, said = self.run("check", "--root", root, "--split", split)
        assert status in (1, 2), f"check finds nothing: {said}"
        assert lines_with(said, words), f"check does not say {words}: {said}"
        status, said = self.run("stats", "--root", root, "--split", split)
        assert status == 2
        assert lines_with(said, words)
        for kind in FORMATS:
            out = self._out(root, kind)
            status, said = self.run("convert", root, "--split", split, "--to", kind, "--out", out)
            assert status == 2
            assert lines_with(said, words)
            assert not out.exists()
        assert files_below(root) == before
        if divide:
            self._split_of_broken(root, words, before)

    def _split_of_broken(self, root, words, before) -> None:
        """`split` says the line, or leaves a data set that is refused by it."""
        new, arguments = self._one_split(root)
        status, _ = self.run("split", root, *arguments)
        if status == 2:
            assert files_below(root) == before
            return
        assert status == 0
        with pytest.raises(UserError) as caught:
            open_root(root, [new])
        assert lines_with(self._without_folder(str(caught.value)), words[-1:])

    def see_or_refuse(self, root: Path, expected: Content, *words: str, divide: bool = True, odd: bool = False) -> None:
        """Every path sees `expected`, or every path says `words`: not one so and one so."""
        try:
            open_root(root, ["all"])
        except UserError:
            self.refuse(root, *words, divide=divide)
        else:
            self.see(root, expected, divide=divide, odd=odd)


def lines_with(text: str, words: Sequence[str]) -> list[str]:
    """Return the lines of a text that hold all words."""
    return [line for line in text.splitlines() if all(word in line for word in words)]


def by_digest(content: Content, root: Path) -> list:
    """What images hold, whatever they are called."""
    return sorted(
        (hashlib.blake2b((root / file).read_bytes()).hexdigest(), size, objects)
        for file, (size, objects) in content.items()
    )


def files_below(root: Path) -> set[str]:
    """Names of all files, the index apart."""
    return {str(path) for path in root.rglob("*") if not path.name.startswith(".detkit-index")}
