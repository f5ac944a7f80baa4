"""Methods on data with known answers: which samples are pruned first."""

from __future__ import annotations

import pytest
import torch
from support.training_data import blobs, convolutional, digits, drive
from torch.nn import functional

from adapruner import Pruner, fast_prune
from adapruner.pruning.methods import HOMES, find_method

pytestmark = pytest.mark.usefixtures("seeded")


def test_published_method_drops_trivial_copies_first() -> None:
    x, y = digits()
    chosen = torch.randperm(len(y))[:700]
    x, y = x[chosen], y[chosen]
    # 50 copies of the samples that a trained model finds easiest: 30 % of the data.
    model = convolutional()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(5):
        for batch in torch.randperm(700).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        easiest = functional.cross_entropy(model(x), y, reduction="none").argsort()[:6]
    copies = easiest.repeat(50)
    x, y = torch.cat([x, x[copies]]), torch.cat([y, y[copies]])
    torch.manual_seed(1)
    result = fast_prune(
        convolutional(), (x, y), 0.7, 12, batch_size=64, method="published", progress=False
    )
    assert len(result.indices) == 700
    assert result.config["method"] == "published"
    share = (result.indices >= 700).float().mean().item()
    assert share < 0.6 * 0.3  # chance would keep 0.3


def test_default_keeps_few_wrong_labels() -> None:
    torch.manual_seed(4)
    x, y = digits()
    chosen = torch.randperm(len(y))[:900]
    x, y = x[chosen], y[chosen].clone()
    wrong = torch.rand(900) < 0.15
    y[wrong] = (y[wrong] + torch.randint(1, 10, (900,))[wrong]) % 10
    result = fast_prune(convolutional(), (x, y), 0.7, 12, batch_size=64, progress=False)
    assert len(result.indices) == 630
    assert not result.forced
    share = wrong[result.indices].float().mean() / wrong.float().mean()
    assert share < 0.5  # a random set has 1


def test_methods_by_name() -> None:
    with pytest.warns(FutureWarning, match='"adapruner" is now called "published"'):
        assert find_method("adapruner") is find_method("published")
    published = find_method("published")
    assert published.easy_weight == published.balance == 1
    assert (published.balance_gain, published.slope) == (50, (0.1, 5.0))
    with pytest.raises(ValueError, match="must be one of sampled, published; found 'AdaPruner'"):
        find_method("AdaPruner")


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a method that is one module and one line of the table."""
    monkeypatch.setitem(HOMES, "largest losses", "support.third_method")
    return "largest losses"


def test_pruner_runs_with_a_third_method(third: str) -> None:
    losses = torch.rand(101)
    pruner = Pruner(101, 0.3, epochs=5, method=third)
    pruner.exclude([(int(losses.argmax()), "unreadable")])
    drive(pruner, lambda epoch: losses)
    result = pruner.result()
    wanted = losses.argsort(descending=True)[1:31]  # without the unreadable sample
    assert result.indices.tolist() == sorted(wanted.tolist())
    assert result.config["method"] == third
    assert result.gate_logits[wanted].equal(losses[wanted])


def test_fast_prune_runs_with_a_third_method(third: str) -> None:
    data = blobs(120)
    model = torch.nn.Linear(data[0].shape[1], 3)
    result = fast_prune(model, data, 0.4, 4, method=third, progress=False)
    assert result.sample_losses is not None
    losses = result.sample_losses
    pruned = torch.ones(120, dtype=torch.bool)
    pruned[result.indices] = False
    assert len(result.indices) == 48
    assert losses[result.indices].min() >= losses[pruned].max()
