"""The methods of pruning, by name. A method is an object of one file: :class:`Method`.

To add a method, write a module with a ``METHOD`` and list it in ``HOMES``.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapruner.pruning.methods.base import Method

# Name and module; a module is imported when its method is asked for.
HOMES = {
    "sampled": "adapruner.pruning.methods.sampled",
    "published": "adapruner.pruning.methods.published",
}
DEFAULT_METHOD = "sampled"
OLD_NAMES = {"adapruner": "published"}


def current_name(name: str) -> str:
    """The current name of a method. Version 0.1 used another name for "published"."""
    return OLD_NAMES.get(name, name)


def find_method(name: str) -> Method:
    """The method with a name.

    Raises:
        TypeError: ``name`` is not text.
        ValueError: no method has this name.

    Warns:
        FutureWarning: the name is the name of an old version.
    """
    if not isinstance(name, str):
        raise TypeError(f"method must be one of {', '.join(HOMES)}; found {name!r}")
    if name in OLD_NAMES:
        warnings.warn(
            f'method="{name}" is now called "{OLD_NAMES[name]}"', FutureWarning, stacklevel=3
        )
    home = HOMES.get(current_name(name))
    if home is None:
        raise ValueError(f"method must be one of {', '.join(HOMES)}; found {name!r}")
    method: Method = import_module(home).METHOD
    return method
