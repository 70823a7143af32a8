"""How the steps of detectors are drawn: one drawing for each kind of step, whatever detector tells it."""

from functools import singledispatch

from detkit.errors import UserError
from detkit.explain.canvas import Section
from detkit.explain.explanation import Explanation
from detkit.models.trace import Step


@singledispatch
def draw(step: Step, explanation: Explanation) -> list[Section]:
    """Return the sections of the page that show one step; which function draws it hangs on the step's type.

    The functions of detkit's own steps are in the modules beside this one. A step of a new kind registers its own:

        @draw.register
        def draw_mine(step: MyStep, explanation: Explanation) -> list[Section]: ...
    """
    name = type(step).__name__
    raise UserError(f"{name}: nothing draws this step of the detector; register one with detkit.explain.draw.register")
