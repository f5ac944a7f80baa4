"""Items of every form: the loader keeps their form and adds the ids, and fast_prune trains."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sample_data import Pairs
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from adapruner import Pruner, PruneResult, as_source, fast_prune
from adapruner.training import losses

N = 48
Point = namedtuple("Point", "x y weight")
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, 5, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
NAMES = ["bee", "cat", "ant"]


def prune(model: nn.Module, data: Any, **settings: Any) -> PruneResult:
    """A short run. It must change the model, and keep half of the samples."""
    before = [weight.clone() for weight in model.parameters()]
    result = fast_prune(model, data, 0.5, 3, batch_size=16, progress=False, **settings)
    assert len(result.indices) == N // 2
    assert result.unreadable == []
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(entry["training_loss"] is not None for entry in result.history)
    return result


# --- the loader


def flat(value: Any) -> Iterator[Tensor]:
    """All tensors of a nested batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for part in value.values() for tensor in flat(part))
    else:
        yield from (tensor for part in value for tensor in flat(part))


ITEMS: dict[str, tuple[Callable[[int], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda i: {"x": X[i], "y": Y[i]}, lambda batch: batch["ids"]),
    "three fields": (lambda i: (X[i], Y[i], i * 0.5), lambda batch: batch[3]),
    "inputs only": (lambda i: X[i], lambda batch: batch[1]),
    "namedtuple": (lambda i: Point(X[i], Y[i], 1.0), lambda batch: batch.ids),
    "nested": (lambda i: {"a": {"b": [X[i], X[i] * 2]}, "y": Y[i]}, lambda batch: batch["ids"]),
    "list of one": (lambda i: [X[i]], lambda batch: batch[1]),
}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("name", ITEMS)
def test_the_loader_keeps_the_form_of_an_item(name: str, num_workers: int) -> None:
    item, ids_of = ITEMS[name]
    pruner = Pruner(N, 0.5, 2)
    data = Pairs([item(i) for i in range(N)])
    seen: list[int] = []
    for batch in pruner.loader(data, batch_size=10, num_workers=num_workers):
        ids = ids_of(batch)
        first = next(flat(batch))
        assert torch.equal(first, X[ids])
        seen += ids.tolist()
        pruner.weigh(first.square().mean(1), ids)
    assert sorted(seen) == list(range(N))
    pruner.step()


def packed(items: list[Tensor]) -> PackedSequence:
    return pack_sequence(items, enforce_sorted=False)


def test_packed_sequences_have_their_ids_beside_them() -> None:
    lengths = torch.arange(N) % 4 + 1
    data = Pairs([X[i, : lengths[i]] for i in range(N)])
    pruner = Pruner(N, 0.5, 2)
    for batch, ids in pruner.loader(data, batch_size=10, collate_fn=packed):
        assert isinstance(batch, PackedSequence)
        values, sizes = pad_packed_sequence(batch, batch_first=True)
        assert torch.equal(sizes, lengths[ids])
        assert torch.equal(values[:, 0], X[ids, 0])
        pruner.weigh(values.square().sum(1), ids)


def test_an_item_of_another_form_is_unreadable() -> None:
    items: list[Any] = [{"x": X[i]} for i in range(N)]
    items[7] = (X[7], Y[7])
    pruner = Pruner(N, 0.5, 2)
    ids = torch.cat([batch["ids"] for batch in pruner.loader(Pairs(items), batch_size=48)])
    assert sorted(ids.tolist()) == [i for i in range(N) if i != 7]
    assert pruner.unreadable == [(7, "it has a target, but other samples have none")]


def test_a_key_that_is_taken_is_refused() -> None:
    pruner = Pruner(N, 0.5, 2)
    with pytest.raises(ValueError, match="without a key 'ids'"):
        next(iter(pruner.loader(Pairs([{"x": X[i], "ids": i} for i in range(N)]))))


# --- fast_prune with the target in an item


class Keywords(nn.Module):
    """A model that takes its inputs as keywords."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(5, classes)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        return self.layer(x if scale is None else x * scale[:, None])


class ListOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        x, scale = inputs
        return self.layer(x * scale[:, None].float())


def test_dicts_with_a_target() -> None:
    items = [{"x": X[i], "scale": X[i].norm(), "y": Y[i]} for i in range(N)]
    result = prune(Keywords(), Pairs(items), target="y")
    assert (result.predicted >= 0).all()


@pytest.mark.parametrize("target", [1, -2, "y"])
def test_namedtuples_with_a_target(target: str | int) -> None:
    prune(ListOfTwo(), Pairs([Point(X[i], Y[i], 1.0) for i in range(N)]), target=target)


def test_tensor_datasets_of_three() -> None:
    prune(ListOfTwo(), TensorDataset(X, torch.ones(N), Y), target=2)


def test_a_subset_has_the_target_of_its_dataset() -> None:
    data = Subset(Pairs([{"x": X[i % N], "y": Y[i % N]} for i in range(2 * N)]), range(5, 5 + N))
    prune(Keywords(), data, target="y")


@pytest.mark.parametrize(
    ("item", "target", "found"),
    [
        ({"x": 1}, "y", "a dict with keys 'x'"),
        ((1, 2), 2, "a tuple of 2 elements"),
        (Point(1, 2, 3), "z", "a Point of 3 elements"),
        (torch.zeros(2), 0, "a Tensor"),
    ],
)
def test_a_target_that_is_missing_is_named(item: Any, target: Any, found: str) -> None:
    source = as_source(Pairs([item]), target=target)
    with pytest.raises(TypeError, match=f"must have the target {target!r}; found {found}"):
        source[0]


def test_a_target_of_data_that_has_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target is for map-style and Hugging Face datasets"):
        as_source((X, Y), target="y")


def test_inputs_alone_need_a_loss() -> None:
    model = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 5))
    prune(model, Pairs(list(X)), loss=losses.squared_error)
    with pytest.raises(TypeError, match="samples must have a target for the default loss"):
        fast_prune(model, Pairs(list(X)), 0.5, 2, progress=False)


# --- targets that a dataset knows


def test_text_labels_are_numbered() -> None:
    texts = [NAMES[y] for y in Y.tolist()]
    expected = [sorted(NAMES).index(text) for text in texts]
    forms = [
        (X, texts),
        (X, np.array(texts)),
        (X, np.array(texts, dtype=object)),
        Pairs(list(zip(X, texts, strict=True)), targets=texts),
        ConcatDataset(
            [
                Pairs(list(zip(X[:9], texts[:9], strict=True)), targets=texts[:9]),
                Pairs(list(zip(X[9:], texts[9:], strict=True)), targets=texts[9:]),
            ]
        ),
    ]
    for form in forms:
        source = as_source(form)
        assert source.targets is not None
        assert source.targets.tolist() == expected
        assert source.class_names == sorted(NAMES)
        assert int(source[3][1]) == expected[3]
        prune(nn.Linear(5, 3), form, balance="class")
    other = [{"ant": "fly"}.get(text, text) for text in texts]
    for one, two in (((X, texts), (X, other)), (forms[3], Pairs(forms[3].held, targets=other))):
        assert as_source(one).fingerprint() != as_source(two).fingerprint()


def test_a_dataset_that_numbers_its_own_labels_keeps_its_numbers() -> None:
    data = Pairs(list(zip(X, Y, strict=True)), labels=["text"] * N)
    source = as_source(data)
    assert source.targets is None
    assert int(source[3][1]) == int(Y[3])


def test_text_that_is_not_known_beforehand_is_named() -> None:
    source = as_source(Pairs([(X[0], "cat")]))
    with pytest.raises(TypeError, match="the target of sample 0 is text, 'cat'"):
        source[0]


def test_looking_for_text_leaves_the_generators_alone() -> None:
    class Random(Pairs):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(5) + np.random.rand(), super().__getitem__(index)[1]  # noqa: NPY002

    data = Random([(0, "a"), (0, "b")], targets=["a", "b"])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert as_source(data).targets.tolist() == [0, 1]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_joined_datasets_have_the_targets_of_their_parts() -> None:
    parts = [
        TensorDataset(X[:10], Y[:10]),
        Subset(TensorDataset(X, Y), list(range(10, 30))),
        Pairs(list(zip(X[30:], Y[30:], strict=True)), targets=Y[30:].tolist()),
    ]
    source = as_source(ConcatDataset(parts))
    assert source.targets is not None
    assert source.targets.tolist() == Y.tolist()
    result = prune(nn.Linear(5, 3), ConcatDataset(parts), balance="class")
    assert torch.equal(result.targets, Y)
    unknown = Pairs(list(zip(X, Y, strict=True)))
    assert as_source(ConcatDataset([*parts, unknown])).targets is None


def test_torchvision_datasets_give_their_targets(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision", reason="needs torchvision")

    class Places(torchvision.datasets.VisionDataset):  # as its datasets hold their classes
        def __init__(self, **held: Any) -> None:
            super().__init__(str(tmp_path))
            self.__dict__.update(held)

        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> Any:
            return X[index], int(Y[index])

    pairs = [(f"{i}.png", y) for i, y in enumerate(Y.tolist())]
    for held in ({"_labels": Y.tolist()}, {"_samples": pairs}, {"samples": pairs}):
        source = as_source(Places(**held))
        assert source.targets is not None
        assert source.targets.tolist() == Y.tolist()
    assert as_source(Places(_labels=[None] * N)).targets is None
    assert as_source(Pairs([(0, 0)] * N, _labels=Y.tolist())).targets is None
    prune(nn.Linear(5, 3), Places(_labels=Y.tolist()), balance="class")


def test_timm_datasets_give_their_targets(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm.data", reason="needs timm")
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    for i in range(8):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    data = timm.ImageDataset(str(tmp_path))
    source = as_source(data)
    assert source.targets is not None
    assert source.targets.tolist() == [data[i][1] for i in range(8)] == [0] * 4 + [1] * 4


# --- Hugging Face datasets


def tokens() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    rows = generator.integers(1, 20, (N, 6))
    return {
        "input_ids": rows.tolist(),
        "attention_mask": np.ones_like(rows).tolist(),
        "label": (rows[:, 0] > 10).astype(int).tolist(),
    }


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        hidden = self.embedding(input_ids) * attention_mask[..., None]
        return {"logits": self.head(hidden.mean(1))}


@pytest.mark.parametrize(
    "named", [{"target": "label"}, {"columns": (["input_ids", "attention_mask"], "label")}]
)
def test_tokenised_datasets_train(named: dict[str, Any]) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    data = datasets.Dataset.from_dict(tokens()).with_format("torch")
    result = prune(Tokens(), data, balance="class", **named)
    subset = result.subset(data)
    assert isinstance(subset, datasets.Dataset)
    assert torch.equal(subset[:]["input_ids"], data[:]["input_ids"][result.indices])
    pruner = Pruner(N, 0.5, 2)
    for inputs, targets, ids in pruner.loader(data, batch_size=16, **named):
        assert set(inputs) == {"input_ids", "attention_mask"}
        assert targets.tolist() == [tokens()["label"][i] for i in ids.tolist()]


def test_datasets_with_a_transform_train() -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    rows = {"text": [f"{i % 20} {i % 7}" for i in range(N)], "label": ["yes", "no"] * (N // 2)}

    def tokenise(batch: dict[str, Any]) -> dict[str, Any]:
        ids = torch.tensor([[int(word) for word in text.split()] for text in batch["text"]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": batch["label"]}

    data = datasets.Dataset.from_dict(rows).with_transform(tokenise)
    result = prune(Tokens(), data, target="label")
    assert result.dataset["class_names"] == ["no", "yes"]
    assert result.targets.tolist() == [1, 0] * (N // 2)
    assert len(result.subset(data)) == N // 2


# --- an IterableDataset


def test_an_iterable_dataset_reads_by_the_pruner() -> None:
    class Stream(IterableDataset[Any]):
        def __init__(self, pruner: Pruner) -> None:
            self.pruner = pruner

        def __iter__(self) -> Iterator[Any]:
            reads = self.pruner.reads()
            for index in range(N):
                if reads[index]:
                    yield X[index], Y[index], index

    pruner, model = Pruner(N, 0.5, 4), nn.Linear(5, 3)
    counts = []
    while not pruner.finished:
        count = 0
        for inputs, targets, ids in DataLoader(Stream(pruner), batch_size=8):
            pruner.loss(model(inputs), targets, ids)
            count += len(ids)
        counts.append(count)
        pruner.step()
    assert counts == [entry["samples_read"] for entry in pruner.history]
    assert counts[-1] < counts[0] == N
    assert len(pruner.result().indices) == N // 2


# --- tasks


def pixels(model_out: str | None) -> nn.Module:
    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, images: Tensor) -> Any:
            logits = self.layer(images)
            return logits if model_out is None else {model_out: logits, "aux": logits * 0}

    return Segments()


@pytest.mark.parametrize("model_out", [None, "out", "logits"])
def test_segmentation_with_ignored_pixels(model_out: str | None) -> None:
    images = torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    masks = (images[:, 0] > 0).long()
    masks[:, :2] = 255
    result = prune(pixels(model_out), (images, masks), ignore_index=255, learning_rate=0.05)
    first, last = result.history[0], result.history[-1]
    assert last["training_loss"] < first["training_loss"]
    assert (result.predicted == -1).all()  # many classes for each sample


def test_token_classification_with_padding() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.embedding(tokens).movedim(-1, 1)

    words = torch.randint(0, 20, (N, 7), generator=torch.Generator().manual_seed(2))
    tags = words % 3
    tags[:, 5:] = -1
    prune(Tagger(), (words, tags), ignore_index=-1)


def test_weights_and_smoothing_are_those_of_torch() -> None:
    weights, seen = torch.tensor([0.5, 2.0, 1.0]), []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    torch.manual_seed(0)
    model = Watched(5, 3)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    settings: dict[str, Any] = {"label_smoothing": 0.1, "class_weights": weights.tolist()}
    result = fast_prune(model, (X, Y), 1.0, 1, batch_size=N, progress=False, **settings)
    again = nn.Linear(5, 3)
    again.load_state_dict(start)
    expected = nn.functional.cross_entropy(
        again(X), Y, weight=weights, label_smoothing=0.1, reduction="none"
    )
    assert torch.allclose(result.sample_losses, expected, atol=1e-6)


def test_held_out_losses_have_the_same_options() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(500, 5, generator=generator), torch.arange(500) % 3
    model = nn.Linear(5, 3)
    options: dict[str, Any] = {"class_weights": [1.0, 3.0, 0.5], "label_smoothing": 0.2}
    result = fast_prune(
        model,
        (x, y),
        0.5,
        2,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0),
        progress=False,
        **options,
    )
    expected = nn.functional.cross_entropy(
        model(x), y, weight=torch.tensor([1.0, 3.0, 0.5]), label_smoothing=0.2, reduction="none"
    )
    assert torch.allclose(result.sample_losses, expected.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": [-1.0, 1]}, "class_weights must be numbers of at least 0"),
        ({"class_weights": [[1.0]]}, "class_weights must be numbers"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\]; found 1.5"),
        ({"ignore_index": 1, "loss": losses.soft_targets}, "are for the cross entropy"),
    ],
)
def test_options_of_the_loss_that_are_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fast_prune(nn.Linear(5, 3), (X, Y), 0.5, 2, progress=False, **settings)


def test_multi_label_and_soft_targets_train() -> None:
    many = torch.stack([X[:, 0] > 0, X[:, 1] > 0, X[:, 2] > 1], 1).float()
    soft = (X[:, :3] * 2).softmax(1)
    settings: dict[str, Any] = {"learning_rate": 0.05}
    for targets, loss in ((many, losses.multi_label), (soft, losses.soft_targets)):
        result = prune(nn.Linear(5, 3), (X, targets), loss=loss, **settings)
        made = [entry["training_loss"] for entry in result.history]
        assert all(later < earlier for earlier, later in pairwise(made))


def test_prepared_losses_by_hand() -> None:
    logits, generator = torch.randn(4, 3), torch.Generator().manual_seed(3)
    shares = torch.rand(4, 3, generator=generator).softmax(1)
    p = logits.double().sigmoid()
    y = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]]).double()
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean(1)
    assert torch.allclose(losses.multi_label(logits, y).double(), expected, atol=1e-6)
    q = logits.double().softmax(1)
    expected = (shares.double() * (shares.double().log() - q.log())).sum(1)
    assert torch.allclose(losses.soft_targets(logits, shares).double(), expected, atol=1e-6)
    assert losses.soft_targets(shares.log(), shares).abs().max() < 1e-6
    assert torch.equal(
        losses.squared_error(torch.ones(2, 3, 4), torch.zeros(2, 3, 4)), torch.ones(2)
    )
    for loss in (losses.multi_label, losses.soft_targets, losses.squared_error):
        with pytest.raises(ValueError, match=r"targets must have the shape \[4, 3\]; found \[4\]"):
            loss(logits, torch.zeros(4))


@pytest.mark.parametrize("shape", [(6,), (6, 3, 2)])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_has_the_gradient_of_the_focal_loss_and_the_value_of_cross_entropy(
    shape: tuple[int, ...], gamma: float
) -> None:
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(shape[0], 4, *shape[1:], generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, shape, generator=generator)
    ours, by_hand = (logits.clone().requires_grad_() for _ in range(2))
    found = losses.focal(ours, targets, gamma)
    sure = torch.tensor([[90.0, 0.0]], requires_grad=True)
    losses.focal(sure, torch.tensor([0]), gamma).backward()
    assert sure.grad.abs().max() < 1e-6
    p = by_hand.softmax(1).gather(1, targets[:, None])[:, 0].flatten(1 if len(shape) > 1 else 0)
    terms = -((1 - p) ** gamma) * p.log()
    expected = terms.mean(1) if len(shape) > 1 else terms
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, by_hand.grad, rtol=1e-4, atol=1e-6)
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    plain = plain.flatten(1).mean(1) if len(shape) > 1 else plain
    torch.testing.assert_close(found.detach().double(), plain, rtol=1e-5, atol=1e-6)
