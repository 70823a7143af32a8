"""Ways to damage bytes, text and plain data. All take what is chance from a `random.Random`."""

import json
import re
from random import Random
from typing import Any

NUMBERS = (
    *("nan", "NaN", "inf", "-inf", "Infinity", "-1", "0", "-0", "+5", "1.", "0.1.2", "1,5", "1e5", "65536", "1_000"),
    *("1e308", "-1e308", "1e400", "1e-320", "1e19", "4294967296", "9223372036854775808", "9" * 400, "9" * 5000),
    *("0x10", "１２", "٣", "", "  ", "true", "null"),
)
WORDS = (
    *("", "/", "..", "../../x", "a/b", "x" * 3000, "nan", "None", "~", "-", "--out", "CON", "=1+1", "é", "😀"),
    *("<b>", "&lt;", "a\nb", "a\tb", "a\u2028b", "\0", "\x1b[31m", "\u202e", "'", '"', "\\", "%s", "{}"),
    *("${oc.env:HOME}", "${x}", "no", "off", "yes", "1:2:3"),
)
LIMITS = (True, False, 0, -1, 1, 1.5, float("nan"), float("inf"), 1e308, -1e308, 10**30, 10**400, 2**63)
VALUES = (
    *(None, *LIMITS, "", "x", "1", "nan", "../../x", "/etc/passwd", "a/b", "a\nb", "\x1b[31m", "\ud800", "x" * 2000),
    *("${x}", [], {}, [[]], [1, 2, 3], {"a": 1}, [None] * 4, [0] * 4, [1, 1, -1, -1], [1e308] * 4),
)
"""What plain data may hold in the place of what it should."""
NAMES = ("x", "id", "", "name", "5")
ODD_BYTES = b'\0\xff\n\r "&<>[]{}\x7f\x80'


def damage(random: Random, content: bytes) -> bytes:
    """Change bits and bytes, take some out, put others in, or cut the rest off. Never returns `content` itself."""
    if random.random() < 0.2:
        return content[: random.randrange(len(content))]
    damaged = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at, way = random.randrange(len(damaged)), random.randrange(10)
        if way < 4:
            damaged[at] ^= 1 << random.randrange(8)
        elif way < 7:
            damaged[at] = random.choice((*ODD_BYTES, random.randrange(256)))
        elif way < 8 and len(damaged) > 64:
            del damaged[at : at + random.choice((1, 2, 8, 63))]
        elif way < 9:
            damaged[at:at] = random.randbytes(random.choice((1, 2, 8)))
        else:
            damaged[at:at] = damaged[at : at + random.choice((4, 32, 200))]
    return bytes(damaged) if damaged != content else flip_bit(random, content)


def flip_bit(random: Random, content: bytes) -> bytes:
    """Change one bit."""
    at = random.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]


def edit_words(random: Random, content: bytes) -> bytes:
    """Put odd numbers and words in the place of a text's own."""
    text = content.decode("utf-8", "replace")
    for _ in range(random.choice((1, 1, 2, 3))):
        numbers = list(re.finditer(r"-?\d+(\.\d+)?", text))
        words = list(re.finditer(r"[A-Za-z_]{2,}", text))
        if not numbers and not words:
            break
        number = bool(numbers) and (not words or random.random() < 0.5)
        place = random.choice(numbers if number else words)
        text = text[: place.start()] + random.choice(NUMBERS if number else WORDS + NUMBERS) + text[place.end() :]
    return text.encode()


def edit_lines(random: Random, content: bytes) -> bytes:
    """Remove, repeat, lengthen or indent a line, or change their order."""
    lines = content.split(b"\n")
    at, way = random.randrange(len(lines)), random.randrange(5)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(at, lines[random.randrange(len(lines))])
    elif way == 2:
        lines[at] *= random.choice((2, 50))
    elif way == 3:
        lines[at] = b" " * random.randrange(1, 9) + lines[at]
    else:
        random.shuffle(lines)
    return b"\n".join(lines)


def edit_text(random: Random, content: bytes) -> bytes:
    """Damage a text file as a hand, a tool or a disk may."""
    if not content:
        return random.choice(WORDS + NUMBERS).encode()
    way = random.randrange(10)
    edited = (damage if way < 4 else edit_words if way < 9 else edit_lines)(random, content)
    return edit_text(random, edited) if random.random() < 0.2 else edited


def edit_data(random: Random, data: Any, values: tuple[Any, ...] = VALUES) -> Any:
    """Replace, remove, repeat or rename one node of plain data; `values` are what may come in its place."""
    if not isinstance(data, dict | list) or not data or random.random() < 0.05:
        return random.choice(values)
    key = random.choice(list(data) if isinstance(data, dict) else range(len(data)))
    edited, way = data.copy(), random.randrange(20)
    if way < 16:
        edited[key] = edit_data(random, data[key], values)
    elif way < 18:
        del edited[key]
    elif isinstance(edited, list):
        edited.insert(key, edited[key])
    else:
        edited[random.choice(NAMES)] = edited.pop(key)
    return edited


def edit_several(random: Random, data: Any, values: tuple[Any, ...] = VALUES) -> Any:
    """`edit_data`, most often once."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = edit_data(random, data, values)
    return data


def edit_json(random: Random, data: Any) -> bytes:
    """Damage a JSON file: most often what it holds, else its text."""
    if random.random() < 0.25:
        return edit_text(random, json.dumps(data).encode())
    text = json.dumps(edit_several(random, data), ensure_ascii=random.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")
