"""Errors that kernels of a GPU note in the state, and how they are raised."""

from __future__ import annotations

import re
import struct

import pytest
import torch

from adapruner import Pruner, fast_prune
from adapruner.ops import _C
from adapruner.ops.device import why_no_cuda
from adapruner.pruning.gates import _SLOTS, Gates
from adapruner.pruning.methods import find_method

SEALED = 2  # csrc/math/state.h
NEGATIVE = struct.unpack("q", struct.pack("d", -2.5))[0]

NOTED: dict[str, tuple[int, int, type[Exception], str]] = {  # place, value, exception, message
    "id": (
        3,
        -7,
        IndexError,
        r"ids\[3\] must be a dataset index .*20\); found -7 on the GPU",
    ),
    "target": (
        2**40,
        10,
        IndexError,
        r"target.flatten\(\)\[1099511627776\] must be .* found 10 on",
    ),
    "sample_loss": (0, NEGATIVE, ValueError, r"sample_loss\[0\] must be at least 0; found -2.5 on"),
}


def note(gates: Gates, kind: str) -> None:
    """Note an error in the state, as a kernel does."""
    place, value, *_ = NOTED[kind]
    noted = torch.tensor([_C.error_kinds[kind], place, value, SEALED])
    gates.state[_SLOTS["error_kind"] : _SLOTS["error_latch"] + 1] = noted


@pytest.mark.parametrize("kind", NOTED)
def test_an_error_is_raised_once_and_leaves_the_rest_of_the_state(kind: str) -> None:
    *_, error, message = NOTED[kind]
    gates = Gates(20, 0.5, find_method("sampled"))
    before = gates.state.clone()
    gates.check_errors()
    note(gates, kind)
    assert not torch.equal(gates.state, before)
    with pytest.raises(error, match=message):
        gates.check_errors()
    gates.check_errors()
    assert torch.equal(gates.state, before)


def test_every_kind_has_a_message() -> None:
    assert set(NOTED) == set(_C.error_kinds)


def test_the_end_of_an_epoch_raises_before_anything_is_done() -> None:
    pruner = Pruner(20, 0.5, epochs=2)
    pruner.weigh(torch.ones(20), torch.arange(20))
    note(pruner.gates, "id")
    with pytest.raises(IndexError, match="found -7 on the GPU in an earlier batch"):
        pruner.step()
    assert pruner.epoch == 0
    assert not pruner.history
    pruner.step()
    assert pruner.epoch == 1


@pytest.mark.skipif(why_no_cuda() is None, reason="CUDA can be used here")
def test_a_device_that_cannot_be_used_is_refused_with_the_reason() -> None:
    reason = re.escape(str(why_no_cuda()))
    with pytest.raises(ValueError, match=f"device 'cuda:1' cannot be used here: {reason}"):
        Pruner(20, device="cuda:1")
    model, data = torch.nn.Linear(2, 2), (torch.zeros(9, 2), torch.arange(9) % 2)
    with pytest.raises(ValueError, match=reason):
        fast_prune(model, data, device="cuda", progress=False)


@pytest.mark.cuda
def test_kernels_note_the_first_offender_of_the_first_bad_batch() -> None:
    pruner = Pruner(20, 0.5, epochs=2, warmup_epochs=0, device="cuda")
    with torch.device("cuda"):
        ids, losses = torch.arange(4), torch.ones(4)
        before = pruner.gates.logits.clone()
        pruner.weigh(losses, ids)
        for bad in ([4, 5, 20, -1], [21, 0, 0, 0]):
            pruner.weigh(losses, torch.tensor(bad))
        with pytest.raises(IndexError, match=r"ids\[2\] must .*\[0, 20\); found 20"):
            pruner.step()
        assert (pruner.gates.logits[:6] != before[:6]).all()  # good samples of bad batches count
        pruner.weigh(torch.tensor([1.0, -1.0, 1.0, -3.0]), ids)
        with pytest.raises(ValueError, match=r"sample_loss\[1\] must .*; found -1.0"):
            pruner.gates.check_errors()
        target = torch.tensor([0, 1, 5, 6])
        loss = pruner.loss(torch.zeros(4, 5, requires_grad=True), target, ids)
        assert loss.isfinite()
        with pytest.raises(IndexError, match=r"target.*\[2\] must .*; found 5"):
            pruner.gates.check_errors()
        pruner.step()
