"""All pages: their names, files and links exist; tables and lists are whole."""

import ast
import importlib
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from detkit.backbones import BACKBONES
from detkit.cli import command_parser
from detkit.experiment import load_config
from tests.docs.pages import (
    CONFIG_PAGE,
    DOCS,
    PAGES,
    REPOSITORY,
    commands,
)


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if commands(text)])
def test_commands_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for line in commands(PAGES[name]):
        words = shlex.split(line.replace("NAME", "ssd").replace("$split", "train"))
        assert Path(words[0]).is_file(), line
        arguments = shlex.split(re.sub(r"--import \S+", "", shlex.join(words[1:])))  # an option of all commands
        _, parser = command_parser(Path(words[0]).stem)
        try:
            parser.parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{name}: {line}")
        overrides = [word for word in arguments if re.match(r"[a-z]\w*\.[\w.]+=", word)]
        for config in (word for word in arguments if re.fullmatch(r"configs/.*\.yaml", word)):
            load_config(config, overrides)


@pytest.mark.parametrize("name", PAGES)
def test_files_and_links_exist(name: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        path = (REPOSITORY / name).parent / target
        assert "://" in target or path.exists() or path == CONFIG_PAGE, f"{name}: {target}"
    here = re.sub(r"https?://\S+", "", PAGES[name])  # others have files of such names, too
    for target in re.findall(r"\b((?:detkit|configs|tests|tools)/[\w/]+\.(?:py|yaml))\b", here):
        assert (REPOSITORY / target).is_file() or "NAME" in target, f"{name}: {target}"


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "[`detkit." in text])
def test_named_objects_exist(name: str) -> None:
    named = re.findall(r"\[`(detkit[\w.]+)`\]\[\]", PAGES[name])
    assert len(named) == PAGES[name].count("[`detkit.")
    for path in named:
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            try:
                value: Any = importlib.import_module(".".join(parts[:length]))
                break
            except ImportError:
                continue
        for part in parts[length:]:
            assert hasattr(value, part), f"{name}: {path}"
            value = getattr(value, part)


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if "\n::: " in text])
def test_modules_of_the_api_exist(name: str) -> None:
    for module in re.findall(r"^::: (\S+)", PAGES[name], re.MULTILINE):
        importlib.import_module(module)


@pytest.mark.parametrize("name", PAGES)
def test_listings_are_python_or_yaml(name: str) -> None:
    for language, code in re.findall(r"```(python|yaml)\n(.*?)```", PAGES[name], re.DOTALL):
        assert ast.parse(code) if language == "python" else yaml.safe_load(code)


@pytest.mark.parametrize("name", PAGES)
def test_lists_begin_behind_an_empty_line(name: str) -> None:
    """As Markdown has it, where else they are part of the paragraph or follow the listing in front as text."""
    text = re.sub(r"```\w*\n.*?```", "code", PAGES[name], flags=re.DOTALL)
    for before, line in zip(text.splitlines(), text.splitlines()[1:]):
        if re.match(r"(-|\d+\.) ", line):
            assert re.match(r"(-|\d+\.) |  |#|$", before), f"{name}: {line}"


@pytest.mark.parametrize("name", PAGES)
def test_rows_of_a_table_have_its_columns(name: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    for rows in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in rows.splitlines()}
        assert len(columns) == 1, f"{name}: {rows}"


def test_contents_have_every_page() -> None:
    nav = json.dumps(tomllib.loads((REPOSITORY / "zensical.toml").read_text())["project"]["nav"])
    listed = re.findall(r'"([^"]+\.md)"', nav)
    pages = [name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")]
    notebooks = [f"notebooks/{path.stem}.md" for path in (DOCS / "notebooks").glob("*.ipynb")]
    assert sorted(listed) == sorted({*pages, *notebooks, "config.md"})


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in (DOCS / "images").iterdir()}
    assert all(size < 120_000 for name, size in sizes.items() if name != "shapes_ssd.jpg"), sizes
    assert sum(sizes.values()) < 1_500_000
    used = "".join(PAGES.values())
    assert all(name in used for name in sizes)


def test_numbers_of_what_there_is() -> None:
    shipped = [name for name, kind in BACKBONES._entries.items() if not kind.__module__.startswith("tests.")]
    (number,) = re.findall(r"on (\d+) backbones", PAGES["README.md"])
    (beside,) = re.findall(r"\[(\d+), and any of timm's\]", PAGES["docs/features.md"])
    assert int(number) == int(beside) == len(shipped)
