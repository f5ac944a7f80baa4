"""The tables of runs: dataset, model, protocol, method, keep ratio, noise and seed of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from .experimental import EXPERIMENTAL, VARIANTS
from .static import STATIC
from .trainer import Recipe

# Rates chosen on "split", not on the test set: of 0.1, 0.2, 0.4 the one that trains best (0.2 and
# 0.4 alike); half of it for digits, where twice of it fails.
RECIPES = {
    "digits": Recipe("digits", 16, 64, 0.1, bfloat16=False),
    "cifar10-10000": Recipe("small", 12, 128, 0.4, crop=1, flip=True),
    # Trained on what the one above selects; rates chosen on "split" too, of two or three values.
    "cifar10-10000 residual": Recipe("residual", 12, 128, 0.1, crop=1, flip=True),
    "cifar10-10000 separable": Recipe("separable", 12, 128, 0.2, crop=1, flip=True, bfloat16=False),
    "cifar10-10000 mixer": Recipe("mixer", 12, 128, 0.2, crop=1, flip=True),
    # For a GPU; nobody has run them yet.
    "cifar10": Recipe("resnet9", 16, 512, 0.4, crop=4, flip=True, compile=True),
    "cifar10 resnet18": Recipe("resnet18", 30, 512, 0.4, crop=4, flip=True, compile=True),
}
# Datasets whose sets another's recipe selects: does what one network keeps serve others?
SELECTED_BY = {name: "cifar10-10000" for name in RECIPES if name.startswith("cifar10-10000 ")}
OURS = {"adapruner as published": "adapruner", "adapruner": "balanced"}
# Selects in as many epochs as read no more than this share of what training on everything reads.
SHORT, SHORT_READS = "adapruner, short", 0.4
STATIC_METHODS = ("full", *STATIC, *OURS)
JOINT_METHODS = ("full", "full, fewer epochs", "random each epoch", "InfoBatch", "SeTa", *OURS)


@dataclass(frozen=True)
class Run:
    """One run: a row of the results."""

    dataset: str
    protocol: str  # "same epochs", "same steps" (both retrain on the kept set) or "joint"
    method: str
    ratio: float
    noise: str
    seed: int
    measured_on: str = "test"

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.dataset]

    @property
    def selecting(self) -> Run:
        """The run whose kept set this one trains on: itself but for a transfer."""
        return replace(self, dataset=SELECTED_BY.get(self.dataset, self.dataset))

    @property
    def shared(self) -> tuple[str, str, int, str]:
        """Runs that are alike in this share their data, and the recorded run."""
        return self.selecting.dataset, self.noise, self.seed, self.measured_on

    def key(self) -> str:
        """What makes a run the same run, as text."""
        return repr(sorted((asdict(self) | {"recipe": asdict(self.recipe)}).items()))


def grid(
    dataset: str,
    protocol: str,
    methods: tuple[str, ...],
    ratios: tuple[float, ...],
    noises: tuple[str, ...],
    seeds: range,
    measured_on: str = "test",
) -> Iterator[Run]:
    """All of them, seed by seed, so that a table that was stopped has whole seeds."""
    for seed in seeds:
        for noise in noises:
            for ratio in ratios:
                for method in methods:
                    # Training on everything is the same run at every ratio.
                    one = 1.0 if method == "full" else ratio
                    same = "same epochs" if method == "full" else protocol
                    yield Run(dataset, same, method, one, noise, seed, measured_on)


def distinct(*parts: Iterator[Run]) -> list[Run]:
    return list(dict.fromkeys(run for part in parts for run in part))


RIGHT_ONLY = "random, right ones only"  # what the labels' errors cost: nobody can select so
CLEAN_OR_NOISY = ("clean", "symmetric 0.2")
DIRT = ("symmetric 0.1", "symmetric 0.4", "asymmetric 0.2", "corrupt 0.1", "long-tail 0.05")
ALL_RATIOS = (0.9, 0.7, 0.5, 0.3, 0.8, 0.95, 0.1)
WIDE = (0.9, 0.7, 0.5, 0.3, 0.1)
JOINT_RATIOS = (0.7, 0.5, 0.3)
CIFAR = "cifar10-10000"
DIGITS_TRIES = ("full", "random", *OURS, *VARIANTS, *EXPERIMENTAL)
JOINT_TRIES = ("full, fewer epochs", "random each epoch", *OURS, *VARIANTS)
CIFAR_JOINT_TRIES = (
    "full, fewer epochs",
    "random each epoch",
    "adapruner",
    "adapruner, even",
    "adapruner as published, even",
    "adapruner, chance 0.3 / r, even",
)
TILTS = ("random", *(name for name in EXPERIMENTAL if name.startswith("chance, h")))
CHANCES = (
    *("full", "random", "DUAL", "CCS", "chance ℓ^0.8·e^(−2ℓ)", "chance ℓ^1.6·e^(−4ℓ)"),
    *("chance ℓ^0·e^(−2ℓ)", "chance, hinge 1", "chance, hinge 1.5", "chance, hinge 2"),
)
SAMPLED = tuple(name for name in VARIANTS if name.startswith("sampled"))
LAST = (
    *("full, fewer epochs", "random each epoch", "InfoBatch"),
    *(name for name in VARIANTS if name.startswith("sampled, l")),
    *("sampled w 1, β 1, turns 3", "sampled w 0.4, β 0.5, turns 3"),
)
SAMPLED_JOINT = (*JOINT_METHODS[1:], *SAMPLED)
SAMPLED_CIFAR = (
    *("full, fewer epochs", "random each epoch", "InfoBatch", "adapruner as published"),
    *(
        f"sampled w {w}, β {beta}, turns {turns}"
        for w, beta, turns in (
            *(("0.4", "0", "0"), ("0.4", "0.5", "1"), ("1", "0.5", "1")),
            *(("1", "0.5", "3"), ("1", "0.25", "0"), ("1", "0.5", "0")),
        )
    ),
)
TRANSFER_METHODS = ("full", "random", "DUAL", "CCS", *OURS)
CIFAR_TRIES = (
    "full",
    "random",
    *OURS,
    "adapruner, chance 0.3 / r",
    "adapruner, chance 0.3 / r, even",
    "adapruner as published, chance 0.3 / r",
)


def tables() -> dict[str, list[Run]]:
    """Name to runs. ``make quality`` makes them in this order."""
    ten, five = range(10), range(5)
    return {
        "quick": distinct(
            grid("digits", "same epochs", STATIC_METHODS, (0.5,), ("symmetric 0.2",), range(2)),
            grid("digits", "joint", JOINT_METHODS, (0.5,), ("symmetric 0.2",), range(2)),
        ),
        "cifar": distinct(
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.9, 0.7, 0.5), ("clean",), five),
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.7,), ("symmetric 0.2",), five),
            grid(CIFAR, "same epochs", (RIGHT_ONLY,), (0.7,), ("symmetric 0.2",), five),
            grid(CIFAR, "joint", JOINT_METHODS, JOINT_RATIOS, CLEAN_OR_NOISY, five),
            grid(CIFAR, "same epochs", (SHORT,), (0.9, 0.8, 0.7), ("clean",), five),
        ),
        "cifar-more": distinct(
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.3, 0.8, 0.95, 0.1), ("clean",), five),
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.9, 0.5, 0.3, 0.1), CLEAN_OR_NOISY, five),
            grid(CIFAR, "same steps", STATIC_METHODS, (0.7,), ("clean",), five),
        ),
        "transfer": distinct(
            *(
                grid(name, "same epochs", TRANSFER_METHODS, (0.7, 0.5), ("clean",), five)
                for name in SELECTED_BY
            )
        ),
        "digits": distinct(
            grid("digits", "same epochs", STATIC_METHODS, ALL_RATIOS, ("clean",), ten),
            grid("digits", "same epochs", STATIC_METHODS, WIDE, ("symmetric 0.2",), ten),
            grid("digits", "same epochs", (RIGHT_ONLY,), (0.7,), ("symmetric 0.2",), ten),
            grid("digits", "same epochs", (SHORT,), (0.9, 0.8, 0.7), ("clean",), ten),
            grid("digits", "joint", JOINT_METHODS, JOINT_RATIOS, CLEAN_OR_NOISY, ten),
            grid("digits", "same epochs", STATIC_METHODS, (0.7,), DIRT, ten),
            grid("digits", "same steps", STATIC_METHODS, WIDE, ("clean",), ten),
        ),
        "cifar-dirt": distinct(
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.7,), DIRT, five),
        ),
        "experimental-digits": distinct(
            grid("digits", "same epochs", DIGITS_TRIES, WIDE, CLEAN_OR_NOISY, five, "split"),
            grid("digits", "joint", JOINT_TRIES, (0.7, 0.5, 0.3), CLEAN_OR_NOISY, five, "split"),
        ),
        "experimental-cifar": distinct(
            grid(CIFAR, "joint", CIFAR_JOINT_TRIES, (0.7, 0.5), ("clean",), five, "split"),
            grid(CIFAR, "same epochs", CIFAR_TRIES, (0.5, 0.3), ("clean",), five, "split"),
        ),
        "experimental-joint": distinct(
            grid("digits", "joint", JOINT_TRIES, (0.7, 0.5, 0.3), CLEAN_OR_NOISY, ten, "split"),
        ),
        "tilts-digits": distinct(
            grid("digits", "same epochs", TILTS, WIDE, CLEAN_OR_NOISY, five, "split"),
        ),
        "tilts-cifar": distinct(
            grid(CIFAR, "same epochs", CHANCES, (0.7, 0.5, 0.3, 0.1, 0.9), ("clean",), five, "split"),
        ),
        "sampled-digits": distinct(
            grid("digits", "joint", SAMPLED_JOINT, (0.7, 0.5, 0.3), CLEAN_OR_NOISY, ten, "split"),
            grid("digits", "same epochs", SAMPLED, WIDE, CLEAN_OR_NOISY, five, "split"),
        ),
        "last-digits": distinct(
            grid("digits", "joint", LAST, (0.7, 0.5, 0.3), CLEAN_OR_NOISY, ten, "split"),
        ),
        "last-cifar": distinct(
            grid(CIFAR, "joint", LAST, (0.7,), CLEAN_OR_NOISY, range(2), "split"),
        ),
        "sampled-cifar": distinct(
            grid(CIFAR, "joint", SAMPLED_CIFAR, (0.7, 0.3), ("clean",), range(4), "split"),
            grid(CIFAR, "same epochs", ("random", *SAMPLED), (0.7, 0.3), ("clean",), range(1), "split"),
        ),
        "gpu": distinct(
            grid("cifar10", "same epochs", STATIC_METHODS, (0.9, 0.7, 0.5), ("clean",), ten),
            grid("cifar10 resnet18", "same epochs", STATIC_METHODS, (0.7,), ("clean",), range(3)),
        ),
    }
