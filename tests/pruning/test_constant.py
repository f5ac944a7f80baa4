"""The unit of losses: at most the loss of the best constant prediction."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.rank_cases import states_in_a_row, unit_of_ranks, unit_with_unreadable
from support.ranks import Pool
from torch import Tensor, nn
from torch.nn import functional

from adapruner import Pruner, fast_prune
from adapruner.errors import PruningWarning
from adapruner.pruning.constant import ConstantLoss, CrossEntropy
from adapruner.pruning.distributed import Ranks
from adapruner.training import losses
from adapruner.training.checkpoint import load_checkpoint, save_checkpoint


def entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum()


def found(loss: Any, shape: tuple[int, ...], targets: Tensor, parts: int = 1) -> float | None:
    constant = ConstantLoss(len(targets), Ranks())
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(parts))
    for ids in order.tensor_split(parts):
        constant.note(loss, torch.Size((len(ids), *shape)), targets[ids], ids)
    constant.close()
    assert constant.doubt is None
    return constant.value


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("classes", [2, 7])
def test_cross_entropy_of_a_constant_is_the_entropy_of_the_classes(
    classes: int, parts: int
) -> None:
    generator = torch.Generator().manual_seed(classes)
    targets = (torch.rand(301, generator=generator) ** 3 * classes).long()
    shares = targets.bincount(minlength=classes) / 301
    value = found(CrossEntropy(None, -100, 0.0), (classes,), targets, parts)
    assert value == pytest.approx(float(entropy(shares)), rel=1e-4)
    # Targets that do not count are left out.
    some = torch.where(torch.rand(301, generator=generator) < 0.3, -100, targets)
    counted = some[some >= 0].bincount(minlength=classes) / max(int((some >= 0).sum()), 1)
    value = found(CrossEntropy(None, -100, 0.0), (classes,), some, parts)
    assert value == pytest.approx(float(entropy(counted)), rel=1e-4)


def test_binary_cross_entropy_of_a_constant_is_the_entropy_of_each_label() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(500, 6, generator=generator) < torch.linspace(0.02, 0.9, 6)).float()
    rates = targets.mean(0)
    wanted = torch.stack([entropy(torch.stack([p, 1 - p])) for p in rates]).mean()
    assert found(losses.multi_label, (6,), targets) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("offset", [0.0, -30.0, 1e4])
def test_squared_error_of_a_constant_is_the_variance(offset: float) -> None:
    generator = torch.Generator().manual_seed(1)
    targets = offset + 3 * torch.randn(400, generator=generator)
    wanted = float(targets.double().var(correction=0))
    assert found(losses.squared_error, (), targets) == pytest.approx(wanted, rel=1e-2)
    absolute = found(lambda o, t: (o - t).abs(), (), targets)
    wanted = float((targets - targets.median()).abs().double().mean())
    assert wanted * 0.999 < absolute < wanted * 1.5


def test_only_the_first_targets_of_vectors_are_noted() -> None:
    constant = ConstantLoss(4000, Ranks())
    ids = torch.arange(100)
    constant.note(losses.squared_error, torch.Size((4, 3, 2)), torch.zeros(4, 3, 2), ids[:4])
    constant.close()
    assert constant.value is None
    for value in range(40):
        targets = torch.full((100,), float(value))
        constant.note(losses.squared_error, torch.Size((100,)), targets, ids + 100 * value)
        targets.fill_(math.nan)  # memory that a loop uses again
    constant.close()
    assert constant.value == pytest.approx(np.var(np.repeat(np.arange(11), 100)), rel=1e-3)


def test_a_loss_with_parameters_gets_no_gradient() -> None:
    scale = nn.Parameter(torch.ones(()))
    assert found(lambda o, t: scale * (o - t).square(), (), torch.arange(9.0)) > 0
    assert scale.grad is None


def test_the_unit_is_limited_only_where_it_is_clearly_too_large() -> None:
    constant = ConstantLoss(9, Ranks())
    assert constant.limited(3.0) == 3.0
    constant.take(2.0)
    assert [constant.limited(x) for x in (1.0, 2.0, 2.19, 2.3, 9.0)] == [1.0, 2.0, 2.19, 2.0, 2.0]


def loop(
    pruner: Pruner, targets: Tensor, how: str, epochs: int | None = None, seed: int = 0
) -> Pruner:
    """Squared errors of a model that learns the mean of the targets in the first epoch."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(targets), generator=generator)
    for epoch in range(pruner.epoch, epochs or pruner.epochs):
        for step, ids in enumerate(pruner.batches(16)):
            share = 1.0 if epoch else step / 20
            outputs = share * targets.mean() + 0.1 * epoch * noise[ids]
            outputs.requires_grad_()
            if how == "weigh":
                pruner.weigh(losses.squared_error(outputs, targets[ids]), ids)
            else:
                pruner.custom_loss(losses.squared_error, outputs, targets[ids], ids)
        pruner.step()
    return pruner


def numbers() -> Tensor:
    return 50 + torch.randn(320, generator=torch.Generator().manual_seed(5))


def test_targets_far_from_zero_do_not_raise_the_unit() -> None:
    targets = numbers()
    far = loop(Pruner(320, 0.5, 6), targets, "custom_loss")
    plain = loop(Pruner(320, 0.5, 6), targets, "weigh")
    near = loop(Pruner(320, 0.5, 6), targets - targets.mean(), "weigh")
    units = [pruner.gates.real("loss_scale") for pruner in (far, plain, near)]
    assert units[0] == pytest.approx(float(targets.var(correction=0)), rel=0.01)
    assert units[1] > 100 * units[0]
    assert units[2] == pytest.approx(units[0], rel=0.05)
    # So that all samples do not look fitted.
    assert far.history[-1]["fitted"] < 0.6
    assert plain.history[-1]["fitted"] == 1


def test_cross_entropy_of_rare_classes_has_the_limit_too() -> None:
    labels = (torch.arange(400) % 50 == 0).long()
    pruners = {name: Pruner(400, 0.5, 4) for name in ("loss", "linear_loss", "weigh")}
    weight = torch.eye(2)
    for name, pruner in pruners.items():
        for ids in pruner.batches(40):
            logits = torch.zeros(len(ids), 2, requires_grad=True)
            if name == "weigh":
                pruner.weigh(functional.cross_entropy(logits, labels[ids], reduction="none"), ids)
            elif name == "loss":
                pruner.loss(logits, labels[ids], ids)
            else:
                pruner.linear_loss(logits, weight, labels[ids], ids)
        pruner.step()
    units = {name: pruner.gates.real("loss_scale") for name, pruner in pruners.items()}
    assert units["weigh"] == pytest.approx(math.log(2))
    wanted = float(entropy(labels.bincount() / 400))
    assert units["loss"] == pytest.approx(wanted, rel=1e-3)
    assert units["loss"] == units["linear_loss"]


@pytest.mark.parametrize("looks", [1, 3, 19, 20])
def test_a_look_within_the_first_epoch_changes_no_unit(looks: int) -> None:
    """A state, a partial result or a meeting of ranks after so many batches."""
    targets = torch.where(torch.arange(320) % 40 == 7, 90.0, numbers())
    whole = loop(Pruner(320, 0.5, 6, warmup_epochs=0), targets, "custom_loss")
    pruner = Pruner(320, 0.5, 6, warmup_epochs=0)
    for step, ids in enumerate(pruner.batches(16)):
        outputs = (targets.mean() * step / 20).repeat(len(ids)).requires_grad_()
        pruner.custom_loss(losses.squared_error, outputs, targets[ids], ids)
        if step + 1 == looks:
            pruner.state_dict()
            pruner.synchronize()
            pruner.result()
    pruner.step()
    loop(pruner, targets, "custom_loss")
    assert pruner.gates.real("loss_scale") == whole.gates.real("loss_scale")
    assert torch.equal(pruner.result().indices, whole.result().indices)


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_a_run_that_resumes_in_its_first_epoch_has_the_same_unit(stop: int, tmp_path: Path) -> None:
    targets, generator = numbers(), torch.Generator().manual_seed(0)
    outputs = torch.randn(320, generator=generator)

    def give(pruner: Pruner, batches: list[Tensor]) -> None:
        for ids in batches:
            pruner.custom_loss(
                losses.squared_error, outputs[ids].requires_grad_(), targets[ids], ids
            )

    whole = Pruner(320, 0.5, 6)
    batches = list(whole.batches(16))
    give(whole, batches)
    whole.step()
    stopped = Pruner(320, 0.5, 6)
    give(stopped, batches[:stop])
    save_checkpoint(tmp_path, stopped.state_dict())
    resumed = Pruner(320, 0.5, 6)
    resumed.load_state_dict(load_checkpoint(tmp_path))
    give(resumed, batches[stop:])
    resumed.step()
    assert resumed.constant.value == whole.constant.value
    assert resumed.gates.real("loss_scale") == whole.gates.real("loss_scale")


def test_targets_of_another_form_are_not_noted() -> None:
    constant = ConstantLoss(400, Ranks())
    constant.note(losses.squared_error, torch.Size((4,)), torch.arange(4.0), torch.arange(4))
    constant.note(losses.squared_error, torch.Size((4,)), torch.arange(4), torch.arange(4, 8))
    constant.note(losses.squared_error, torch.Size((4,)), torch.ones(4, 9), torch.arange(4, 8))
    constant.close()
    assert constant.value == pytest.approx(1.25, rel=1e-3)


def test_a_loss_must_be_a_function() -> None:
    pruner = Pruner(320, 0.5, 6)
    with pytest.raises(TypeError, match=r"loss must be a function of .* found 'mse'"):
        pruner.custom_loss("mse", torch.zeros(4), torch.zeros(4), torch.arange(4))  # type: ignore
    assert not pruner.gates.seen().any()


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_the_constant_of_losses_of_any_scale(scale: float) -> None:
    targets = (5 + torch.randn(501, generator=torch.Generator().manual_seed(4))) * scale
    value = found(losses.squared_error, (), targets)
    assert value == pytest.approx(targets.double().var(correction=0).item(), rel=2e-3)


@pytest.mark.parametrize("fails", [False, True])
def test_a_state_keeps_that_no_constant_is_known(fails: bool) -> None:
    """The first targets are of one class, or the loss function fails for constants."""
    count = 4096
    targets = torch.zeros(count)
    targets[2000:], targets[3000:] = 1, 2
    outputs = 3 * torch.randn(count, 1, generator=torch.Generator().manual_seed(0)).squeeze(1)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if fails and outputs.unique().numel() == 1:
            raise ZeroDivisionError("a constant")
        return (outputs * outputs.new_ones(()) - targets).square()

    def run(stop: bool) -> Pruner:
        pruner = Pruner(count, 0.5, 12)
        for number, ids in enumerate(torch.arange(count).split(256)):
            if stop and number == 6:
                state, pruner = pruner.state_dict(), Pruner(count, 0.5, 12)
                assert (state["constant_closed"], state["constant_loss"]) == (True, None)
                pruner.load_state_dict(state)
            pruner.custom_loss(loss, outputs[ids], targets[ids], ids)
        pruner.step()
        return pruner

    whole, resumed = run(False), run(True)
    assert whole.gates.real("loss_scale") == resumed.gates.real("loss_scale")
    assert whole.warnings == resumed.warnings
    assert ("constant" in whole.warnings) == fails


def test_the_published_method_has_its_own_scale() -> None:
    runs = [
        loop(Pruner(320, 0.5, 6, method="published", normalize_loss=True), numbers(), how)
        for how in ("custom_loss", "weigh")
    ]
    assert runs[0].constant.value is None
    assert torch.equal(runs[0].gates.logits, runs[1].gates.logits)


@pytest.mark.parametrize("classes", [None, 6])
def test_the_number_of_ranks_does_not_change_the_unit(classes: int | None) -> None:
    pool = Pool(3)
    try:
        expected = unit_of_ranks(None, classes)
        assert pool.run(unit_of_ranks, 3, classes) == [expected] * 3
    finally:
        pool.close()
    assert expected[0] < expected[1] / 2


@pytest.mark.parametrize("bad", [[0], [1, 5], []])
def test_unreadable_samples_do_not_let_the_unit_follow_the_number_of_ranks(bad: list[int]) -> None:
    # Places in the order of the first epoch: those of its first batches.
    order = torch.cat(list(Pruner(3000, 0.5, 3).batches(128))).tolist()
    left_out = [order[place] for place in bad]
    expected = unit_with_unreadable(None, left_out)
    pool = Pool(4)
    try:
        for world in (2, 4):
            assert pool.run(unit_with_unreadable, world, left_out) == [expected] * world
    finally:
        pool.close()


def test_a_list_of_unreadable_samples_before_the_run_leaves_the_unit_known() -> None:
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(2))
    pruner = Pruner(4000, 0.5, 12)
    pruner.exclude([(index, "torn") for index in range(1100)])
    for ids in pruner.batches(128):
        own = ids[ids >= 1100]
        outputs = torch.zeros(len(own), requires_grad=True)
        pruner.custom_loss(losses.squared_error, outputs, 9 + noise[own], own)
    pruner.step()
    assert pruner.constant.value == pytest.approx(1, rel=0.15)


def test_a_second_state_of_ranks_is_that_of_the_first() -> None:
    pool = Pool(2)
    try:
        for first, second in pool.run(states_in_a_row, 2):
            assert len(first["ids"]) == len(first["targets"]) > 20
            assert torch.equal(first["ids"], second["ids"])
            assert torch.equal(first["targets"], second["targets"])
            assert first["so_far"] == second["so_far"] > 0
    finally:
        pool.close()


@pytest.mark.parametrize("batches", [0, 1, 7, 20])
def test_a_run_resumed_within_the_first_epoch_has_the_same_unit(batches: int) -> None:
    targets = numbers()
    first, second = Pruner(320, 0.5, 6), Pruner(320, 0.5, 6)

    def train(pruner: Pruner, begin: int, end: int) -> None:
        for ids in list(pruner.batches(16))[begin:end]:
            outputs = torch.zeros(len(ids), requires_grad=True)
            pruner.custom_loss(losses.squared_error, outputs, targets[ids], ids)

    train(first, 0, batches)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for pruner in (first, second):
        train(pruner, batches, 20)
        pruner.step()
    assert first.gates.real("loss_scale") == second.gates.real("loss_scale")
    assert first.gates.real("loss_scale") < 2500


@pytest.mark.parametrize("form", [list, np.asarray])
def test_ids_of_every_form(form: Any) -> None:
    ids, targets = form([3, 0, 7]), torch.tensor([0, 1, 1])
    pruner = Pruner(8, 0.5, 3)
    logits = torch.zeros(3, 2, requires_grad=True)
    assert pruner.loss(logits, targets, ids).item() == pytest.approx(math.log(2))
    outputs = torch.zeros(3, requires_grad=True)
    assert pruner.custom_loss(losses.squared_error, outputs, targets.float(), ids) > 0
    for call in (pruner.loss, lambda *batch: pruner.custom_loss(losses.focal, *batch)):
        with pytest.raises(TypeError, match="ids must be the dataset indices of the batch"):
            call(logits, targets, None)


def test_a_loss_that_fails_for_constants_is_named() -> None:
    def picky(outputs: Tensor, targets: Tensor) -> Tensor:
        if not outputs.grad_fn or outputs.std() == 0:
            raise RuntimeError("outputs are all alike")
        return (outputs - targets).square()

    pruner = Pruner(40, 0.5, 3)
    for ids in pruner.batches(10):
        pruner.custom_loss(picky, torch.randn(10, requires_grad=True) * 2, torch.ones(10), ids)
    with pytest.warns(PruningWarning, match="RuntimeError: outputs are all alike"):
        pruner.step()


def test_fast_prune_finds_wrong_numbers_far_from_zero() -> None:
    """The first epoch's mean loss is that of learning the mean of the targets."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(600, 5, generator=generator)
    y = x.sum(1, keepdim=True) + 40
    wrong = torch.randperm(600, generator=generator)[:60]
    y[wrong] += 6 * torch.randn(60, 1, generator=generator).sign()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(5, 1)
    result = fast_prune(
        model,
        (x, y),
        0.7,
        20,
        batch_size=32,
        loss=losses.squared_error,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        progress=False,
    )
    assert np.isin(wrong.numpy(), result.indices.numpy()).mean() < 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_best_constant_of_a_cross_entropy_is_known(smoothing: float, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    targets = (torch.rand(301, generator=generator) ** 3 * 5).long()
    targets[::7] = -100
    weight = torch.tensor([1.0, 3.0, 0.5, 2.0, 0.0]) if weighted else None
    loss = CrossEntropy(weight, -100, smoothing)
    value = found(loss, (5,), targets)
    # An optimiser that knows nothing of classes finds no better one.
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(3000):
        optimizer.zero_grad()
        mean = loss(logits.expand(301, 5), targets).nanmean()
        mean.backward()
        optimizer.step()
    assert value == pytest.approx(mean.item(), rel=1e-3)
    assert value <= mean.item() * (1 + 1e-9)


def test_the_constant_of_a_large_vocabulary_takes_no_logits() -> None:
    targets = torch.arange(1500) % 1000
    classes = 10**6  # logits of all samples would take 6 GB
    loss = CrossEntropy(None, -100, 0.0)
    assert found(loss, (classes,), targets) == pytest.approx(math.log(1000), rel=0.02)


def test_a_loss_in_float64_is_called_with_float64() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (
            scale
            * functional.linear(outputs - targets, torch.eye(2, dtype=torch.float64)).sum(1) ** 2
        )

    constant, ids = ConstantLoss(9, Ranks()), torch.arange(9)
    targets = torch.rand(9, 2, dtype=torch.float64)
    constant.note(loss, targets.shape, targets, ids, targets.dtype)
    constant.close()
    assert constant.doubt is None
    wanted = 2 * targets.sum(1).var(correction=0)
    assert constant.value == pytest.approx(float(wanted), rel=1e-3)


@pytest.mark.parametrize("drop", [0, 4])
def test_a_state_after_the_last_batch_of_the_first_epoch_keeps_the_unit(drop: int) -> None:
    """The batches of the epoch may leave out samples, so more targets could have come."""
    targets = numbers()[:100]

    def trained(stop: bool) -> Pruner:
        pruner = Pruner(100, 0.5, 12)
        for epoch in range(12):
            for ids in pruner.batches(16, drop_last=bool(drop)):
                outputs = (0.0 if epoch == 0 else 1.0) * targets.mean() + torch.zeros(len(ids))
                outputs.requires_grad_()
                pruner.custom_loss(losses.squared_error, outputs, targets[ids], ids)
            if stop and epoch == 0:
                state = copy.deepcopy(pruner.state_dict())
                pruner = Pruner(100, 0.5, 12)
                pruner.load_state_dict(state)
                again = pruner.state_dict()["targets_of_constant"]
                assert (again is None) == (not drop)
            pruner.step()
        return pruner

    whole, stopped = trained(False), trained(True)
    assert stopped.constant.value == whole.constant.value
    assert stopped.gates.real("loss_scale") == whole.gates.real("loss_scale")
    assert torch.equal(stopped.result().indices, whole.result().indices)


def test_targets_of_a_part_that_was_rolled_back_do_not_count_twice() -> None:
    targets = numbers()
    whole = loop(Pruner(320, 0.5, 3), targets, "custom_loss", 1)
    pruner = Pruner(320, 0.5, 3)
    start = copy.deepcopy(pruner.state_dict())
    for ids in list(pruner.batches(16))[:12]:
        outputs = torch.zeros(16, requires_grad=True)
        pruner.custom_loss(losses.squared_error, outputs, 5 * targets[ids], ids)
    pruner.load_state_dict(start)
    loop(pruner, targets, "custom_loss", 1)
    assert pruner.constant.value == whole.constant.value


def test_a_step_in_inference_mode_finds_the_same_unit() -> None:
    def run(mode: Any) -> Pruner:
        pruner, targets = Pruner(320, 0.5, 3), numbers()
        for epoch in range(3):
            for ids in pruner.batches(16):
                outputs = (epoch * targets[ids]).requires_grad_()
                pruner.custom_loss(losses.squared_error, outputs, targets[ids], ids)
            with mode():
                pruner.step()
        return pruner

    plain, inferred = run(torch.no_grad), run(torch.inference_mode)
    assert inferred.constant.value == plain.constant.value is not None
    assert torch.equal(inferred.result().indices, plain.result().indices)


@pytest.mark.parametrize("batch", [5, 19])
@pytest.mark.parametrize("call", ["state_dict", "result", "synchronize"])
def test_a_state_in_inference_mode_finds_the_same_unit(call: str, batch: int) -> None:
    targets = numbers()
    whole = loop(Pruner(320, 0.5, 3, warmup_epochs=0), targets, "custom_loss", 1)
    pruner = Pruner(320, 0.5, 3, warmup_epochs=0)
    for number, ids in enumerate(pruner.batches(16)):
        outputs = (number / 20 * targets.mean()).expand(len(ids)).clone().requires_grad_()
        pruner.custom_loss(losses.squared_error, outputs, targets[ids], ids)
        if number == batch:
            with torch.inference_mode():
                getattr(pruner, call)()
    pruner.step()
    assert pruner.constant.value == whole.constant.value is not None
    assert "constant" not in pruner.warnings


def test_a_loss_that_fails_for_the_first_targets_alone_is_not_warned_of() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(targets) < 100:
            raise ValueError("too few")
        return (outputs - targets).square()

    pruner, targets = Pruner(320, 0.5, 3), numbers()
    for number, ids in enumerate(pruner.batches(160)):
        outputs = torch.zeros(len(ids), requires_grad=True)
        pruner.constant.note(loss, outputs.shape, targets[ids], ids)
        pruner.weigh((outputs - targets[ids]).square(), ids)
        if number == 0:
            pruner.constant._noted[0] = type(pruner.constant._noted[0])(ids[:9], targets[ids[:9]])
            assert pruner.state_dict()["targets_of_constant"]["so_far"] is None
    pruner.step()
    assert pruner.constant.value > 0
    assert "constant" not in pruner.warnings


def test_a_frozen_model_is_observed_in_inference_mode() -> None:
    with torch.inference_mode():
        pruner = Pruner(60, 0.5, 10, warmup_epochs=0)
        for _ in range(10):
            for ids in pruner.batches(16):
                pruner.observe(ids.float() / 30, ids)
            pruner.step()
    assert len(pruner.result().indices) == 30


def test_warnings_of_a_step_name_the_line_of_the_loop() -> None:
    pruner = Pruner(40, 0.5, 12)
    for ids in pruner.batches(8):
        for _ in range(2):
            pruner.weigh(ids.float(), ids)
    with pytest.warns(PruningWarning) as caught:
        pruner.step()
    assert {warning.filename for warning in caught} == {__file__}
