"""Errors of gate_update for bad arguments, which change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.sample_inputs import native_gates, reference_gates

from adapruner import ops

pytestmark = pytest.mark.usefixtures("device")


def change(**changes: Any) -> dict[str, Any]:
    return changes


def errors() -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    """Changes of the arguments, on the default device; the exception; its message."""
    return {
        "ids shape": (change(ids=torch.arange(3)), ValueError, r"ids must have shape \[4\].*\[3\]"),
        "float ids": (change(ids=torch.ones(4)), TypeError, "ids must hold integers.*Float"),
        "id too large": (
            change(ids=torch.tensor([1, 2, 50, 3])),
            IndexError,
            r"ids\[2\] must be .*50\); found 50",
        ),
        "id negative": (
            change(ids=torch.tensor([1, 2, 3, -2])),
            IndexError,
            r"ids\[3\] .*found -2",
        ),
        "integer pressure": (change(pressure=torch.ones(4).long()), TypeError, "pressure.*Long"),
        "pressure dims": (change(pressure=torch.ones(4, 1)), ValueError, r"shape"),
        "loss shape": (change(sample_loss=torch.ones(3)), ValueError, r"sample_loss.*\[4\].*\[3\]"),
        "integer loss": (change(sample_loss=torch.ones(4).long()), TypeError, "sample_loss.*Long"),
        "age type": (
            change(age=torch.zeros(50).long()),
            TypeError,
            "age must be uint8; found Long",
        ),
        "age shape": (change(age=torch.zeros(49).byte()), ValueError, r"age.*\[50\].*\[49\]"),
        "strided gates": (change(gate_logits=torch.ones(100)[::2]), ValueError, "contiguous"),
        "gates": (change(gate_logits=torch.ones(50).double()), TypeError, "float32; found Double"),
        "state": (change(state=torch.zeros(8).long()), ValueError, r"state must be.*\[8\]"),
        "last loss type": (change(last_loss=torch.ones(50).half()), TypeError, "last_loss.*Half"),
        "last loss shape": (
            change(last_loss=torch.ones(5)),
            ValueError,
            r"last_loss.*\[50\].*\[5\]",
        ),
    }


@pytest.mark.parametrize("name", errors())
def test_errors_change_nothing(name: str, device: str) -> None:
    changes, error, message = errors()[name]
    gates = native_gates(reference_gates("errors"))
    assert gates.last_loss is not None
    arguments = {
        "gate_logits": gates.logits,
        "age": gates.age,
        "state": gates.state,
        "last_loss": gates.last_loss,
        "ids": torch.tensor([3, 5, 7, 9]),
        "pressure": torch.ones(4),
        "sample_loss": torch.ones(4),
    }
    before = {name: tensor.clone() for name, tensor in gates.state_dict().items()}

    def update_and_check(**arguments: Any) -> None:
        ops.gate_update(**arguments)
        gates.check_errors()  # a kernel of a GPU cannot raise

    with pytest.raises(error, match=message):
        update_and_check(**(arguments | changes))
    if device == "cuda" and error is IndexError:
        return  # the other samples of the batch were visited
    for tensor_name, tensor in gates.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[tensor_name].nan_to_num())
    update_and_check(**arguments)
    assert not torch.equal(gates.logits, before["gate_logits"])
