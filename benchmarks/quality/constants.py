"""The constants of the package's methods, as their rows name them.

A row holds the constants of its method as text, and counts as today's row while that text is
today's text. The published method has the text of version 0.1.0, because it has not changed.
Other methods have their repr.
"""

from __future__ import annotations

from dataclasses import fields

from adapruner.pruning.methods.base import Method
from adapruner.pruning.methods.published import Published
from adapruner.pruning.objective import Objective

# What the text of a row of the published method does not tell, because it never changed.
UNTOLD = {"descent": 0.5, "chooses_best": True, "by_first_loss": False}
# The default of version 0.1.0. Its rows are kept, and it can no longer be run.
DEFAULT_0_1_0 = (
    "Method(easy_weight=-0.4, pressure_cap=3.0, step_size=0.05, slope=(1.0, 1.0), balance=0.0, "
    "balance_gain=0.0, age_cap=16, weighs=False, sampling=Sampling(sharpness=6.0, "
    "reach=(0.0, 1.4), easy_side=1.0, farthest=1.4, evenly_read=1.2, turns=1.0, small_ratio=0.3, "
    "long_run=20))"
)


def constants_text(method: Method) -> str:
    """The constants of a method as the rows have them."""
    untold = {name: getattr(method, name) for name in UNTOLD}
    if type(method) is not Published or untold != UNTOLD:
        return repr(method)
    told = [field.name for field in fields(Objective) if field.name not in UNTOLD]
    listed = ", ".join(f"{name}={getattr(method, name)!r}" for name in told)
    return f"Method({listed}, sampling=None)"
