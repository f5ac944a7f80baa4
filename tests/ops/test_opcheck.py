"""torch.library.opcheck of every operator: schemas, fake kernels, autograd, tracing."""

from __future__ import annotations

import pytest
import torch
from support.operator_calls import CPU_ONLY, calls_on

OPERATORS = torch.ops.adapruner
CALLS = calls_on("cpu")


def test_every_operator_has_samples() -> None:
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas()}
    registered = {name.split("::")[1] for name in schemas if name.startswith("adapruner::")}
    assert {operator for operator, *_ in CALLS.values()} == registered


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str, device: str) -> None:
    operator, arguments, options = calls_on(device)[name]
    if device != "cpu" and operator in CPU_ONLY:
        pytest.skip("an operator of the CPU alone")
    torch.library.opcheck(getattr(OPERATORS, operator).default, arguments, options)
