"""The rule that commands are held to, and the processes that they are held in."""

import copy
import os
import signal
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.campaign.children import Children
from tests.campaign.commands import Broken, check_outcome
from tests.campaign.mutations import damage, edit_several, edit_text, flip_bit

RANDOMS = st.builds(Random, st.integers(0, 1 << 32))  # not st.randoms, which needs subnormal floats


@pytest.mark.parametrize(
    ("status", "err", "broken"),
    [
        (0, "", ""),
        (1, "", ""),
        (2, "error: a.xml: no boxes\n", ""),
        (2, "weights: 3 of 4\nerror: a.xml: no boxes\n", ""),
        (2, "usage: detkit train\ndetkit train: error: which config?\n", ""),
        (2, "", "0 lines of error"),
        (2, "error: \n", "1 lines of error"),
        (2, "error: a.xml\nerror: b.xml\n", "2 lines of error"),
        (3, "", "exit status 3"),
        (1, "a\x1b[31m.xml: no boxes\n", "control characters"),
    ],
)
def test_outcomes(status: int, err: str, broken: str) -> None:
    if not broken:
        check_outcome(status, "", err)
        return
    with pytest.raises(Broken, match=broken):
        check_outcome(status, "", err)


def test_a_crash_is_an_outcome(children: Children) -> None:
    assert children.call(os.abort).signal == signal.SIGABRT
    assert children.call(os.getpid).value != os.getpid()


def test_too_much_memory_is_an_outcome(children: Children) -> None:
    assert "MemoryError" in children.call(bytes, 16 << 30).fault
    outcome = children.call(bytes.__mul__, b"x", 3 << 29)
    assert "1.5 GiB of memory" in outcome.fault


@given(random=RANDOMS, content=st.binary(min_size=1))
def test_damage_changes_something(random: Random, content: bytes) -> None:
    assert damage(random, content) != content
    assert sum(one != other for one, other in zip(flip_bit(random, content), content)) == 1


@given(random=RANDOMS, content=st.binary())
def test_any_text_can_be_edited(random: Random, content: bytes) -> None:
    assert isinstance(edit_text(random, content), bytes)


@given(random=RANDOMS, data=st.recursive(st.none(), st.lists))
def test_edited_data_is_a_copy(random: Random, data: object) -> None:
    before = copy.deepcopy(data)
    edit_several(random, data)
    assert data == before
