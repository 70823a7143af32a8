"""Numbers on the command line that nothing can hold."""

import pytest

from detkit.cli import command_parser

LARGE = ("1000000000000000000000000000000", str(2**63), str(2**31), "9" * 5000, "1e3", "-9" + "0" * 30)
OPTIONS = {
    "detect best.pt a.jpg": ["--batch"],
    "dataset show --root a": ["--images", "--start", "--size"],
    "dataset split a": ["--seed"],
    "compare a": ["--rounds"],
    "proposals make --root a": ["--workers", "--count"],
    "backbones": ["--size"],
    "benchmark": ["--rounds", "--threads"],
}


@pytest.mark.parametrize("number", LARGE, ids=range(len(LARGE)))
@pytest.mark.parametrize(("command", "option"), [(key, one) for key, options in OPTIONS.items() for one in options])
def test_one_line(capsys, command, option, number):
    name, *others = command.split()
    _, parser = command_parser(name)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([*others, f"{option}={number}"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(f"error: argument {option}: ")
    assert said.count("\n") == 1
    assert len(said) < 200
