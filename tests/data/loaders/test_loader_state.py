"""Resuming in the middle of an epoch, and batches that are read together."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from support.training_data import Augmented, Counted, Followed, all_ids, loader_of
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from adapruner import Pruner
from adapruner.data import as_source


def batches_of(loader: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [tuple(part.clone() for part in batch) for batch in loader]


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one, other)
        for batch, again in zip(first, second, strict=True)
        for one, other in zip(batch, again, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("block_size", [None, 7])
def test_goes_on_in_mid_epoch_bit_for_bit(num_workers: int, block_size: int | None) -> None:
    settings = {"batch_size": 8, "num_workers": num_workers, "block_size": block_size}
    whole = batches_of(loader_of(Augmented(60), Followed(60), **settings))
    for stop in (1, 3, len(whole)):
        loader = loader_of(Augmented(60), Followed(60), **settings)
        read = []
        for batch in loader:
            read.append(tuple(part.clone() for part in batch))
            if len(read) == stop:
                state = loader.state_dict()
                break
        assert state["position"] == stop  # batches delivered, not batches read ahead
        other = loader_of(Augmented(60), Followed(60), **settings)
        other.load_state_dict(json.loads(json.dumps(state)))
        assert other.state_dict() == state
        assert same(read + batches_of(other), whole)
        assert same(batches_of(other), whole)  # the next epoch starts at 0


def test_state_at_the_start_and_after_the_end_of_an_epoch() -> None:
    followed = Followed(60)
    loader = loader_of(Counted(60), followed)
    assert loader.state_dict()["position"] == 0
    all_ids(loader)
    assert loader.state_dict()["position"] == len(loader)
    followed.epoch += 1
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    other = loader_of(Counted(60), followed)
    other.load_state_dict(state)
    assert all_ids(other) == all_ids(loader)


def test_unreadable_batches_count_as_delivered() -> None:
    order = all_ids(loader_of(Counted(40), Followed(40), batch_size=8))
    bad = order[:8]
    loader = loader_of(Counted(40, bad=bad), Followed(40), batch_size=8)
    next(iter(loader))
    assert loader.state_dict()["position"] == 2
    other = loader_of(Counted(40, bad=bad), Followed(40), batch_size=8)
    other.load_state_dict(loader.state_dict())
    assert all_ids(other) == order[16:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 9}, "expected batch_size 8, found 9"),
        ({"seed": 1}, "expected seed 0, found 1"),
        ({"drop_last": 1}, "expected drop_last 0, found 1"),
        ({"block_size": 5}, "expected block_size 0, found 5"),
    ],
)
def test_state_of_another_loader_is_refused(change: dict[str, int], said: str) -> None:
    loader = loader_of(Counted(40), Followed(40), batch_size=8)
    with pytest.raises(ValueError, match=said):
        loader.load_state_dict(loader.state_dict() | change)


def test_state_of_another_epoch_is_refused() -> None:
    loader = loader_of(Counted(40), Followed(40))
    loader.load_state_dict(loader.state_dict() | {"epoch": 3, "position": 1})
    with pytest.raises(ValueError, match="another epoch than the pruner: expected 0, found 3"):
        all_ids(loader)


def test_run_that_stops_in_mid_epoch_ends_with_the_same_bits() -> None:
    x, y = torch.rand(80, 4), torch.arange(80) % 3

    def run(stop_at: int | None) -> tuple[Pruner, dict[str, Any] | None]:
        pruner = Pruner(80, 0.5, epochs=4, warmup_epochs=1)
        loader = pruner.loader((x, y), batch_size=8)
        return finish(pruner, loader, stop_at)

    def finish(pruner: Pruner, loader: Any, stop_at: int | None) -> Any:
        done = 0
        while not pruner.finished:
            for inputs, _, ids in loader:
                pruner.weigh(inputs.sum(1), ids)
                done += 1
                if done == stop_at:
                    return pruner.state_dict(), loader.state_dict()
            pruner.step()
        return pruner

    whole = run(None)
    for stop_at in (1, 14, 23):
        states = run(stop_at)
        pruner = Pruner(80, 0.5, epochs=4, warmup_epochs=1)
        loader = pruner.loader((x, y), batch_size=8)
        pruner.load_state_dict(states[0])
        loader.load_state_dict(states[1])
        resumed = finish(pruner, loader, None)
        assert torch.equal(resumed.gates.logits, whole.gates.logits)
        assert torch.equal(resumed.result().indices, whole.result().indices)
        for entry, other in zip(resumed.history, whole.history, strict=True):
            assert entry | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("form", ["tensors", "numpy", "mapped", "dataset", "subset", "swapped"])
def test_arrays_are_read_as_a_whole(form: str, num_workers: int, tmp_path: Any) -> None:
    x = torch.rand(50, 3, 2).to(torch.float16)
    y = torch.arange(50, dtype=torch.int32) % 7
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    data = {
        "tensors": (x, y),
        "numpy": (x.numpy(), y.numpy()),
        "mapped": (tmp_path / "x.npy", tmp_path / "y.npy"),
        "dataset": TensorDataset(x, y),
        "subset": Subset(TensorDataset(torch.cat([x, x]), torch.cat([y, y])), range(50, 100)),
        "swapped": (x.numpy().astype(">f2"), y.numpy().astype(">i4")),
    }[form]
    one_by_one = loader_of(
        as_source((x, y)),
        Followed(50),
        collate_fn=lambda samples: [
            torch.stack([sample[part] for sample in samples]) for part in (0, 1)
        ],
    )
    loader = loader_of(as_source(data), Followed(50), num_workers=num_workers)
    assert same(batches_of(loader), batches_of(one_by_one))


class Together(Counted):
    """Reads batches together, and counts them."""

    calls = 0

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.calls += 1
        if set(indices) & self.bad:
            raise OSError("one of them cannot be read")
        return [(torch.full((4,), float(index)), self.targets[index]) for index in indices]


def test_batched_reading_of_a_dataset_is_used() -> None:
    dataset = Together(40)
    whole = batches_of(loader_of(dataset, batch_size=8))
    assert dataset.calls == 5
    assert not dataset.reads.any()
    assert same(whole, batches_of(loader_of(Counted(40), batch_size=8)))
    assert same(whole, batches_of(loader_of(Subset(dataset, range(40)), batch_size=8)))
    assert dataset.calls == 10


def test_batch_that_cannot_be_read_as_one_is_read_one_by_one() -> None:
    followed = Followed(40)
    dataset = Together(40, bad=[3, 30])
    met = all_ids(loader_of(dataset, followed, batch_size=8))
    assert sorted(met) == sorted(set(range(40)) - {3, 30})
    assert sorted(followed.unreadable) == [
        (index, f"OSError: no such luck with {index}") for index in (3, 30)
    ]


def noisy(inputs: Tensor) -> Tensor:
    return inputs + torch.rand(())


def test_transform_after_batched_reading_is_seeded_for_each_sample() -> None:
    first = as_source(Together(40), transform=noisy)
    second = as_source(Counted(40), transform=noisy)
    one = batches_of(loader_of(first, batch_size=8))
    other = batches_of(loader_of(second, batch_size=8))
    assert same(one, other)
    assert len({inputs[0].item() % 1 for batch in one for inputs in batch[0]}) == 40


def test_hugging_face_rows_are_read_together() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict(
        {"x": torch.rand(30, 3).tolist(), "label": [n % 3 for n in range(30)]}
    ).with_format("torch")
    source = as_source(dataset, columns=("x", "label"))
    pairs = source.read_batch([7, 2, 2])
    assert pairs is not None
    for (inputs, target), index in zip(pairs, (7, 2, 2), strict=True):
        assert torch.equal(inputs, source[index][0])
        assert target == source[index][1]
    assert same(
        batches_of(loader_of(source, batch_size=8)),
        batches_of(loader_of([source[index] for index in range(30)], batch_size=8)),
    )
