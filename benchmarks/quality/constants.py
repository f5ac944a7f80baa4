"""The constants of the package's methods, as the rows of version 0.1 name them.

A row holds the constants of its method as text, and counts as today's row while that text is
today's text. The classes of the methods and their fields have other names since. The rows keep
their text, so today's methods are described by the old names.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from adapruner.pruning.methods.base import Method
from adapruner.pruning.methods.published import Published
from adapruner.pruning.methods.sampled import Sampled
from adapruner.pruning.objective import Objective

# Fields of a sampled method, and their names in the rows. Other fields have one name.
SAMPLING = {
    "target_range": "reach",
    "easy_side_weight": "easy_side",
    "distance_cap": "farthest",
    "read_distance_floor": "evenly_read",
    "rotation": "turns",
    "small_keep_ratio": "small_ratio",
    "full_step_epochs": "long_run",
}
# What the text of a row does not tell, because it was fixed in version 0.1.
FIXED = {
    Published: {"descent": 0.5, "chooses_best": True},
    Sampled: {"descent": 0.5, "chooses_best": False},
}


def constants_text(method: Method) -> str:
    """The constants of a method as the rows have them.

    A method that version 0.1 could not describe is described by its own repr, so no old row counts
    as one of its rows.
    """
    if _own(method, Method, Objective) != FIXED.get(type(method)):
        return repr(method)
    sampling = None
    if isinstance(method, Sampled):
        sampling = f"Sampling({_listed(_own(method, Sampled, Method))})"
    return f"Method({_listed(_own(method, Objective))}, sampling={sampling})"


def _own(
    method: Method, of: type[Objective], base: type[Objective] | None = None
) -> dict[str, Any]:
    """The fields that the class ``of`` adds to those of its base, and their values."""
    inherited = {field.name for field in fields(base)} if base else set()
    names = [field.name for field in fields(of) if field.name not in inherited]
    return {name: getattr(method, name) for name in names}


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{SAMPLING.get(name, name)}={value!r}" for name, value in values.items())
