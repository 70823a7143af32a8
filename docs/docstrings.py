"""How detkit's docstrings become pages: what they say of parameters and attributes, one by one, becomes a list.

So do their lists, which in Markdown begin behind an empty line, and their examples are code.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import griffe

CODE = ("    ", ">>> ")  # how such a paragraph begins


def with_lists(text: str, names: Iterable[str]) -> str:
    """Return a docstring in which sentences such as `boxes: (N, 4) float32.`, of one of `names`, are items of a list.

    What follows the last of them is part of it, up to the end of the paragraph or a sentence that says what is raised.
    """
    one = rf"\*{{0,2}}(?:{'|'.join(map(re.escape, names))})"
    item = re.compile(rf"(?:^|(?<=[.;:)`\]\"] )|(?<=\n))({one}(?:(?:, | and ){one})*):\s")
    paragraphs = []
    for paragraph in text.split("\n\n"):
        before, *parts = item.split(paragraph) if not paragraph.startswith(CODE) else [paragraph]
        paragraphs += [re.sub(";$", ".", before.rstrip())] if before.strip() else []
        raised = ""
        if parts:
            parts[-1], *rest = re.split(r"(?<=[.)])\s(?=Raises )", parts[-1], maxsplit=1)
            raised = "".join(rest)
        items = [f"- {named(keys)}: {meaning.strip().removesuffix(';')}" for keys, meaning in zip(*[iter(parts)] * 2)]
        paragraphs += ["\n".join(items)] if items else []
        paragraphs += [raised] if raised else []
    return "\n\n".join(paragraphs)


def with_room(text: str) -> str:
    """Return a docstring with an empty line in front of each list."""
    return re.sub(r"^(?!- )(\S.*\n)(?=- )", r"\1\n", text, flags=re.MULTILINE)


def with_code(text: str) -> str:
    """Return a docstring whose indented paragraphs and examples are marked as Python, as they are below a list, too."""
    paragraphs = text.split("\n\n")
    for index, paragraph in enumerate(paragraphs):
        if paragraph.startswith(CODE):
            paragraphs[index] = f"```python\n{textwrap.dedent(paragraph)}\n```"
    return "\n\n".join(paragraphs).replace("\n```\n\n```python\n", "\n\n")


def named(keys: str) -> str:
    return re.sub(r"(?<!\w)(?!and\b)[\w*]+", lambda name: f"`{name[0]}`", keys)


def explained(item: Any) -> list[str]:
    """Return the names that a docstring may explain: a function's parameters; those of a class, and its attributes."""
    if item.is_function:
        return [parameter.name for parameter in item.parameters if parameter.name not in ("self", "cls")]
    if not item.is_class:
        return []
    own = [name for name, member in item.members.items() if not member.is_alias and member.is_attribute]
    start = item.members.get("__init__")
    return own + (explained(start) if start is not None and start.is_function else [])


def documented(item: Any) -> Iterator[Any]:
    """Yield what has a docstring: a module, and all that is defined in it."""
    if item.docstring:
        yield item
    if item.is_module or item.is_class:
        for member in item.members.values():
            if not member.is_alias:
                yield from documented(member)


class Lists(griffe.Extension):
    """Rewrites the docstrings of a package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for item in documented(pkg):
            text, names = with_room(item.docstring.value), explained(item)
            item.docstring.value = with_code(with_lists(text, names) if names else text)
