"""Imports of the package go down the layers, and never in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "adapruner"

# The layers that each layer may import, besides itself.
BELOW: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "_util": {"errors"},
    "ops": {"_util"},
    "pruning": {"_version", "errors", "_util", "ops"},
    "vision": {"errors", "_util"},
    "data": {"errors", "_util", "ops", "pruning", "vision"},
    "results": {"_version", "errors", "_util", "ops", "pruning", "vision", "data"},
    "report": {"errors", "_util", "pruning", "data", "results"},
    "training": {"errors", "_util", "ops", "pruning", "vision", "data", "results"},
    "integrations": {"errors", "_util", "ops", "pruning", "vision", "data", "results", "training"},
    "info": set(),
    "cli": {
        *("_version", "errors", "_util", "ops", "pruning", "vision", "data", "results", "report"),
        *("training", "info"),
    },
    "__main__": {"cli"},
}

# Conveniences that go up, imported within a function or for a type: (module, what it imports).
ALLOWED = {
    ("adapruner.pruning.pruner", "adapruner.data.loaders.choice"),  # Pruner.loader
    ("adapruner.pruning.pruner", "adapruner.data.loaders.torch_loader"),
    ("adapruner.pruning.pruner", "adapruner.results.making"),  # Pruner.result
    ("adapruner.pruning.pruner", "adapruner.results.result"),
    ("adapruner.results.result", "adapruner.results.export"),  # PruneResult.export
    ("adapruner.results.result", "adapruner.results.other_ratio"),  # PruneResult.at
    ("adapruner.results.result", "adapruner.results.suspects"),  # PruneResult.suspects
    ("adapruner.results.result", "adapruner.results.table"),  # PruneResult.to_dataframe
    ("adapruner.results.result", "adapruner.report"),  # PruneResult.report
}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> Iterator[str]:
    """The modules of the package that a module imports anywhere, also for types."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module.split(".")[0] != "adapruner":
                continue
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in MODULES else node.module


def layer(module: str) -> str:
    return module.split(".")[1]


IMPORTS = {
    (module, imported)
    for module in MODULES
    if module != "adapruner"  # it has the public names of all layers
    for imported in imports_of(module)
    if imported not in ("adapruner", module)
}


def test_there_are_imports_to_check() -> None:
    assert len(IMPORTS) > 100
    assert {layer(module) for module in MODULES if module != "adapruner"} == set(BELOW)


def test_the_allowed_ones_are_still_needed() -> None:
    assert ALLOWED <= IMPORTS


@pytest.mark.parametrize("module", [module for module in MODULES if module != "adapruner"])
def test_imports_go_down(module: str) -> None:
    for one, imported in IMPORTS:
        if one == module and layer(imported) != layer(module):
            down = layer(imported) in BELOW[layer(module)]
            assert down or (module, imported) in ALLOWED, f"{module} imports {imported}"


def test_nothing_imports_in_a_circle() -> None:
    rest = IMPORTS - ALLOWED
    left = set(MODULES)
    while ends := {m for m in left if not any(a == m and b in left for a, b in rest)}:
        left -= ends
    assert left == set()


def test_the_package_itself_imports_no_layer() -> None:
    tree = ast.parse(MODULES["adapruner"].read_text())
    at_once = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert at_once == ["importlib", "typing", "adapruner._version"]
