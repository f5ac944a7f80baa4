"""Keys that draw samples without replacement, against the reference and exact chances."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.processes import run_python
from torch import Tensor

from adapruner import ops
from adapruner.ops import reference

LARGEST_KEY = 2**63 - 1


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(num_samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gate logits, some −inf or NaN, and ages of every kind."""
    random = np.random.default_rng([seed, num_samples])
    m = random.normal(0, 3, num_samples)
    kind = random.random(num_samples)
    m[kind < 0.1] = -np.inf
    m[kind > 0.9] = np.nan
    age = random.integers(0, 256, num_samples)
    return torch.from_numpy(m.astype(np.float32)), torch.from_numpy(age.astype(np.uint8))


def noise(num_samples: int, key: int) -> Tensor:
    """The keys of equal samples."""
    return ops.sampling_keys(
        torch.zeros(num_samples), torch.ones(num_samples, dtype=torch.uint8), 1.0, 1.0, key
    )


def bits(keys: Tensor) -> Tensor:
    return keys.view(torch.int32)


@pytest.mark.parametrize("num_samples", [0, 1, 7, 16, 255, 256, 257, 5003])
@pytest.mark.parametrize(
    ("scale", "turns"), [(1.0, 0.0), (2.5, 1.0), (0.0, 0.5), (-1.5, -2.0), (1e-3, 40.0)]
)
@pytest.mark.parametrize(("key", "ceiling"), [(0, math.inf), (1, 0.7), (LARGEST_KEY, -2.0)])
def test_keys_are_those_of_the_reference(
    num_samples: int, scale: float, turns: float, key: int, ceiling: float
) -> None:
    m, age = inputs(num_samples)
    keys = ops.sampling_keys(m, age, scale, turns, key, ceiling)
    assert keys.dtype == torch.float32
    assert keys.shape == m.shape
    expected = reference.sampling_keys(m.tolist(), age.tolist(), scale, turns, key, ceiling)
    assert torch.equal(keys.isnan(), m.isnan())
    assert torch.equal(keys == -torch.inf, m == -torch.inf)
    finite = m.isfinite()
    # The nearest float32, unless float64 rounds a sum across the middle between two of them.
    nearest = expected[finite].float()
    assert (keys[finite] - nearest).abs().le(nearest.abs() * 2**-23).all()
    assert (keys[finite] == nearest).double().mean().nan_to_num(1.0) > 0.9999


def test_samples_that_are_excluded_stay_so_whatever_the_scale() -> None:
    m = torch.tensor([-torch.inf, torch.nan, 0.0])
    age = torch.tensor([255, 255, 0], dtype=torch.uint8)
    for scale in (3.0, 0.0, -0.0, -3.0, 1e308):
        keys = ops.sampling_keys(m, age, scale, 2.0, 5)
        assert keys[0] == -torch.inf
        assert keys[1].isnan()
        assert keys[2].isfinite()


def test_logits_above_the_ceiling_count_as_it() -> None:
    ceiling = 0.7
    m = torch.tensor([-torch.inf, torch.nan, torch.inf, 3e38, 0.5, -2.0])
    age = torch.ones(6, dtype=torch.uint8)
    for scale in (1.7, 0.0, -1.7):
        keys = ops.sampling_keys(m, age, scale, 1.0, 5, ceiling)
        assert keys[0] == -torch.inf
        assert keys[1].isnan()
        gumbel = noise(6, 5).double()
        expected = scale * torch.tensor([ceiling, ceiling, 0.5, -2.0]).double() + gumbel[2:]
        assert (keys[2:] - expected).abs().max() < 2e-6
    without = ops.sampling_keys(m, age, 1.7, 1.0, 5, 4e38)  # more than every float32
    assert torch.equal(bits(without[3:]), bits(ops.sampling_keys(m, age, 1.7, 1.0, 5)[3:]))


def test_ages_count_from_one_and_never_visited_as_255() -> None:
    age = torch.arange(256, dtype=torch.uint8)
    m = torch.full((256,), 0.5)
    difference = ops.sampling_keys(m, age, 1.0, 2.0, 3).double() - noise(256, 3).double()
    expected = 0.5 + 2 * age.double().clamp(min=1).log()
    assert (difference - expected).abs().max() < 4e-6
    same = ops.sampling_keys(m, age, 1.0, 0.0, 3)
    assert torch.equal(same, ops.sampling_keys(m, torch.zeros_like(age), 1.0, 2.0, 3))


def test_the_noise_is_gumbels() -> None:
    # Kolmogorov–Smirnov: beyond 1.95/√n once in a thousand.
    num_samples = 200_000
    for key in (0, 1, 987_654_321, LARGEST_KEY):
        g = np.sort(noise(num_samples, key).numpy().astype(np.float64))
        cdf = np.exp(-np.exp(-g))
        places = np.arange(num_samples + 1) / num_samples
        distance = max((places[1:] - cdf).max(), (cdf - places[:-1]).max())
        assert distance < 2.2 / math.sqrt(num_samples)


def test_the_largest_key_follows_the_softmax() -> None:
    m = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0, 1.2, -0.4])
    age = torch.tensor([1, 9, 1, 200, 4, 0, 16], dtype=torch.uint8)
    scale, turns, draws = 0.7, 0.5, 20_000
    wins = np.zeros(len(m))
    for key in np.random.default_rng(4).integers(0, 2**63, draws).tolist():
        wins[int(ops.sampling_keys(m, age, scale, turns, key).argmax())] += 1
    chances = torch.softmax(scale * m.double() + turns * age.double().clamp(min=1).log(), 0).numpy()
    possible = chances > 0
    assert wins[~possible].sum() == 0
    expected = draws * chances[possible]
    # Chi-square with 5 degrees of freedom is above 30 once in 70,000 draws.
    assert ((wins[possible] - expected) ** 2 / expected).sum() < 30


def test_draws_without_replacement_one_after_another() -> None:
    # Two of three samples are drawn: P(i, then j) = p_i · p_j / (1 − p_i).
    m, age, draws = torch.tensor([0.0, 1.0, -0.5]), torch.ones(3, dtype=torch.uint8), 20_000
    p = torch.softmax(m.double(), 0).tolist()
    found = dict.fromkeys([(i, j) for i in range(3) for j in range(3) if i != j], 0)
    for key in np.random.default_rng(6).integers(0, 2**63, draws).tolist():
        first, second = ops.sampling_keys(m, age, 1.0, 1.0, key).topk(2).indices.tolist()
        found[first, second] += 1
    statistic = 0.0
    for (i, j), count in found.items():
        expected = draws * p[i] * p[j] / (1 - p[i])
        statistic += (count - expected) ** 2 / expected
    assert statistic < 30  # 5 degrees of freedom


def test_keys_give_draws_of_their_own() -> None:
    num_samples = 100_000
    for one, other in ((0, 1), (1, 2), (7, 7 + 2**32), (0, LARGEST_KEY)):
        pair = torch.stack([noise(num_samples, one), noise(num_samples, other)]).double()
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(num_samples)
    g = noise(num_samples, 3).double()
    neighbours = torch.corrcoef(torch.stack([g[1:], g[:-1]]))[0, 1]
    assert abs(float(neighbours)) < 5 / math.sqrt(num_samples)


@pytest.mark.usefixtures("restore_threads")
def test_same_bits_at_any_number_of_threads() -> None:
    m, age = inputs(400_003)
    torch.set_num_threads(1)
    expected = ops.sampling_keys(m, age, 1.3, 0.7, 5)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(bits(ops.sampling_keys(m, age, 1.3, 0.7, 5)), bits(expected))
    few = ops.sampling_keys(m[:1001], age[:1001], 1.3, 0.7, 5)  # depends only on the index
    assert torch.equal(bits(few), bits(expected[:1001]))


def digest() -> str:
    """SHA-256 over keys of some odd sizes."""
    found = hashlib.sha256()
    for num_samples in (1, 5, 17, 259, 70_001):
        m, age = inputs(num_samples)
        for scale, turns, ceiling in ((1.7, 0.5, 0.3), (-0.1, 3.0, math.inf)):
            keys = ops.sampling_keys(m, age, scale, turns, 11, ceiling)
            found.update(keys.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("wanted", ["baseline", "v3", "v4"])
def test_same_bits_on_every_instruction_set(wanted: str) -> None:
    info = ops._C.build_info()
    if wanted not in info["instruction_sets"]:
        pytest.skip(f"not built for {wanted}")
    program = (
        "import test_sampling_keys as test\n"
        "print(test.ops._C.build_info()['instruction_set'], test.digest())"
    )
    done = run_python(program, __file__, ADAPRUNER_ISA=wanted)
    assert done.returncode == 0, done.stderr
    used, found = done.stdout.split()
    if used != wanted:
        pytest.skip(f"this processor has no {wanted}, or ADAPRUNER_ISA names a lower one")
    assert found == digest()


def test_tensors_that_are_strided() -> None:
    m, age = inputs(3001)
    expected = ops.sampling_keys(m[1::3].contiguous(), age[1::3].contiguous(), 1.0, 1.0, 2)
    assert torch.equal(bits(ops.sampling_keys(m[1::3], age[1::3], 1.0, 1.0, 2)), bits(expected))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"gate_logits": torch.zeros(4).double()}, TypeError, "gate_logits must be float32; found"),
        ({"gate_logits": torch.zeros(2, 2)}, ValueError, r"one dimension \[N\]; found shape"),
        ({"age": torch.zeros(4, dtype=torch.int64)}, TypeError, "age must be uint8; found Long"),
        (
            {"age": torch.zeros(5, dtype=torch.uint8)},
            ValueError,
            r"age must have the shape of gate_logits, \[4\]; found shape \[5\]",
        ),
        ({"scale": math.inf}, ValueError, "scale must be a finite number; found inf"),
        ({"turns": math.nan}, ValueError, "turns must be a finite number; found nan"),
        ({"key": -1}, ValueError, r"key must be in \[0, 2\*\*63\); found -1"),
        ({"ceiling": math.nan}, ValueError, "ceiling must be a finite number, or inf for none; fo"),
        ({"ceiling": -math.inf}, ValueError, "inf for none; found -inf"),
    ],
)
def test_arguments_that_are_refused(changed, error, message) -> None:
    arguments = {
        "gate_logits": torch.zeros(4),
        "age": torch.zeros(4, dtype=torch.uint8),
        "scale": 1.0,
        "turns": 1.0,
        "key": 0,
    }
    with pytest.raises(error, match=message):
        ops.sampling_keys(**arguments | changed)
