"""The tables of runs: dataset, model, protocol, method, keep ratio, noise and seed of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from adapruner.pruning.methods import find_method

from .constants import DEFAULT_0_1_0, constants_text
from .static import STATIC
from .trainer import Recipe

# Rates chosen on "split", not on the test set: of 0.1, 0.2, 0.4 the one that trains best (0.2 and
# 0.4 alike); half of it for digits, where twice of it fails.
RECIPES = {
    "digits": Recipe("digits", 16, 64, 0.1, bfloat16=False),
    "cifar10-10000": Recipe("small", 12, 128, 0.4, crop=1, flip=True),
    "cifar10-45000": Recipe("small", 12, 128, 0.4, crop=1, flip=True),  # nothing was chosen on it
    # Trained on what the one above selects; rates chosen on "split" too, of two or three values.
    "cifar10-10000 residual": Recipe("residual", 12, 128, 0.1, crop=1, flip=True),
    "cifar10-10000 separable": Recipe("separable", 12, 128, 0.2, crop=1, flip=True, bfloat16=False),
    "cifar10-10000 mixer": Recipe("mixer", 12, 128, 0.2, crop=1, flip=True),
    # Rates for training on everything, chosen on "split" of seed 0 before any selection was made:
    # of 0.1, 0.2 and 0.4; of 0.05, 0.1 and 0.2; of 0.5, 1 and 2.
    "letter": Recipe("letter", 40, 128, 0.4, bfloat16=False),
    "traffic": Recipe("traffic", 10, 64, 0.1, crop=2),
    "text": Recipe("text", 12, 128, 1.0, bfloat16=False),
    # Trained on what "letter" and "traffic" select. The rates were doubled from 0.025 to 0.4, from
    # 0.1 to 1.6, and from 0.05 to 0.4 twice.
    "letter deep": Recipe("deep", 40, 128, 0.05, bfloat16=False),
    "letter shallow": Recipe("shallow", 40, 128, 0.8, bfloat16=False),
    "traffic residual": Recipe("traffic residual", 10, 64, 0.2, crop=2),
    "traffic separable": Recipe("traffic separable", 10, 64, 0.4, crop=2, bfloat16=False),
    # A long run: 95 % of the training images are right at its end. Of 0.2, 0.4 and 0.8.
    "cifar10-5000": Recipe("small", 60, 128, 0.4, crop=1, flip=True),
    # For a GPU; nobody has run it there yet. The rate is the best of 0.4, 0.8 and 1.6 on "split",
    # on a processor, at an eighth of the width.
    "cifar10": Recipe("fast", 16, 1024, 0.8, crop=2, flip=True, compile=True),
    # Rehearses the one above in half a minute on a processor; its figures mean nothing.
    "cifar10-1000 tiny": Recipe("fast, width 8", 6, 64, 0.2, crop=1, flip=True, compile=True),
}
# Other networks of a dataset: they train on what its own network selects.
SELECTED_BY = {
    name: own for name in RECIPES if (own := name.partition(" ")[0]) in RECIPES and own != name
}
# Selects in as many epochs as read no more than this share of what training on everything reads.
SHORT, SHORT_READS = "adapruner, short", 0.4
# Methods of the package: their names in the rows, and the package's names.
OURS = {"adapruner as published": "published", "adapruner": "sampled"}
# The default of version 0.1.0: rows that are kept. Nothing makes them again.
FORMER = "adapruner 0.1.0"
# The default in a few epochs. What it keeps trains for the ordinary number of epochs.
SHORT_RUNS = {f"adapruner, {n} epoch{'s' * (n > 1)}": n for n in (1, 2, 3, 5, 8, 12)}
BALANCED = "adapruner, classes balanced"
TRACKS = "adapruner, tracks balanced"
UNKNOWN = "adapruner, classes unknown"  # the default without floors of classes
BY_CLASS = ("random of each class", BALANCED, UNKNOWN)
ADAPRUNER = OURS | dict.fromkeys((SHORT, *SHORT_RUNS, BALANCED, TRACKS, UNKNOWN), OURS["adapruner"])
STATIC_METHODS = ("full", *STATIC, *OURS)
JOINT_METHODS = ("full", "full, fewer epochs", "random each epoch", "InfoBatch", "SeTa", *OURS)
INFOBATCH_PARTS = ("InfoBatch, no full epochs", "InfoBatch, no full epochs, no weights")
JOINT_MORE = ("OrderDP", "RePB", *INFOBATCH_PARTS)


def constants_of(method: str) -> str | None:
    """The constants of a method of the package, as its rows have them; None for other methods."""
    if method.startswith(FORMER):
        return DEFAULT_0_1_0
    name = ADAPRUNER.get(method)
    return None if name is None else constants_text(find_method(name))


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

    def described(self) -> dict[str, Any]:
        """What makes a run the same run, as its row has it."""
        return asdict(self) | {
            "recipe": asdict(self.recipe),
            "constants": constants_of(self.method),
        }

    def key(self) -> str:
        """The same as text."""
        return repr(sorted(self.described().items()))


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
NOISE = "symmetric 0.2"
CLEAN_OR_NOISY = ("clean", NOISE)
DIRT = ("symmetric 0.1", "symmetric 0.4", "asymmetric 0.2", "corrupt 0.1", "long-tail 0.05")
HUMAN = ("human random1", "human worse")
TAIL = "long-tail 0.05"
ALL_RATIOS = (0.9, 0.7, 0.5, 0.3, 0.8, 0.95, 0.1)
WIDE = (0.9, 0.7, 0.5, 0.3, 0.1)
JOINT_RATIOS = (0.7, 0.5, 0.3)
CIFAR, LARGE, LONG = "cifar10-10000", "cifar10-45000", "cifar10-5000"
TRANSFER_METHODS = ("full", "random", "DUAL", "CCS", *OURS)
GPU, TINY = "cifar10", "cifar10-1000 tiny"
# Conditions that no constant is chosen by. Traffic signs were one of them until decision 38.
HELD_BACK = ("text",)
# The rivals of conditions that were added later.
FEW_JOINT = ("random each epoch", "InfoBatch", "SeTa", "adapruner")
OTHER_JOINT = ("full, fewer epochs", "OrderDP", "RePB")
FEW = ("full", "random", "AUM", "DUAL", *OURS)
BESIDE_CHANCE = ("random", "adapruner")  # at ratios where nothing else is asked
# The rivals that are strongest on a processor; where minutes count, those first that say most.
GPU_STATIC = ("full", "random", "adapruner", "DUAL", "AUM", "adapruner as published")
GPU_JOINT = (
    *("random each epoch", "adapruner", "InfoBatch", "adapruner as published"),
    "full, fewer epochs",
)


def gpu_runs(dataset: str = GPU) -> list[Run]:
    """By worth: seed by seed, at 0.7 first. Three seeds of clean labels, then three of wrong ones,
    then the other seeds of both."""
    return distinct(
        *(
            grid(dataset, protocol, methods, (ratio,), (noise,), range(seed, seed + 1))
            for seeds in (range(3), range(3, 10))
            for noise in CLEAN_OR_NOISY
            for seed in seeds
            for ratio in (0.7, 0.5, 0.9)
            for protocol, methods in (("same epochs", GPU_STATIC), ("joint", GPU_JOINT))
        )
    )


def tables() -> dict[str, list[Run]]:
    """Name to runs. ``make quality`` makes them in this order."""
    ten, five, three = range(10), range(5), range(3)
    return {
        "quick": distinct(
            grid("digits", "same epochs", STATIC_METHODS, (0.5,), (NOISE,), range(2)),
            grid("digits", "joint", JOINT_METHODS, (0.5,), (NOISE,), range(2)),
        ),
        "cifar": distinct(
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.9, 0.7, 0.5), ("clean",), ten),
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.7,), (NOISE,), ten),
            grid(CIFAR, "same epochs", (RIGHT_ONLY,), (0.7,), (NOISE,), ten),
            grid(CIFAR, "joint", JOINT_METHODS, JOINT_RATIOS, CLEAN_OR_NOISY, ten),
            grid(CIFAR, "same epochs", (SHORT,), (0.9, 0.8, 0.7), ("clean",), ten),
        ),
        "cifar-more": distinct(
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.3, 0.8, 0.95, 0.1), ("clean",), ten),
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.9, 0.5, 0.3, 0.1), CLEAN_OR_NOISY, five),
            grid(CIFAR, "same epochs", BESIDE_CHANCE, (0.95, 0.8), (NOISE,), five),
            grid(CIFAR, "same steps", STATIC_METHODS, (0.7,), ("clean",), five),
        ),
        "cifar-large": distinct(
            grid(LARGE, "same epochs", TRANSFER_METHODS, (0.9, 0.7), ("clean",), five),
            grid(LARGE, "same epochs", BESIDE_CHANCE, ALL_RATIOS, ("clean",), five),
            grid(LARGE, "same epochs", ("full", *BESIDE_CHANCE), ALL_RATIOS, (NOISE,), five),
        ),
        "transfer": distinct(
            *(
                grid(name, "same epochs", TRANSFER_METHODS, (0.7, 0.5), ("clean",), five)
                for name in SELECTED_BY
            ),
            *(
                grid(name, "same epochs", TRANSFER_METHODS, (0.7, 0.5), CLEAN_OR_NOISY, ten)
                for name, own in SELECTED_BY.items()
                if own == "letter"
            ),
        ),
        "digits": distinct(
            grid("digits", "same epochs", STATIC_METHODS, ALL_RATIOS, ("clean",), ten),
            grid("digits", "same epochs", STATIC_METHODS, WIDE, (NOISE,), ten),
            grid("digits", "same epochs", (RIGHT_ONLY,), (0.7,), (NOISE,), ten),
            grid("digits", "same epochs", BESIDE_CHANCE, (0.95, 0.8), (NOISE,), ten),
            grid("digits", "same epochs", (SHORT,), (0.9, 0.8, 0.7), ("clean",), ten),
            grid("digits", "joint", JOINT_METHODS, JOINT_RATIOS, CLEAN_OR_NOISY, ten),
            grid("digits", "same epochs", STATIC_METHODS, (0.7,), DIRT, ten),
            grid("digits", "same steps", STATIC_METHODS, WIDE, ("clean",), ten),
        ),
        "cifar-dirt": distinct(
            grid(CIFAR, "same epochs", STATIC_METHODS, (0.7,), DIRT, five),
        ),
        "letter": distinct(
            grid("letter", "same epochs", FEW, (0.7, 0.5), CLEAN_OR_NOISY, ten),
            grid("letter", "joint", FEW_JOINT, (0.7, 0.5), CLEAN_OR_NOISY, ten),
            grid("letter", "same epochs", FEW, (0.9, 0.8, 0.3), ("clean",), ten),
            grid("letter", "same epochs", FEW, (0.9, 0.3), (NOISE,), ten),
            grid("letter", "same epochs", BESIDE_CHANCE, (0.95, 0.1), ("clean",), ten),
            grid("letter", "same epochs", BESIDE_CHANCE, (0.95, 0.8, 0.1), (NOISE,), ten),
        ),
        "short": distinct(
            grid("digits", "same epochs", (*SHORT_RUNS, "random"), (0.7, 0.3), ("clean",), ten),
        ),
        "tails": distinct(
            grid(
                "digits", "same epochs", (*STATIC_METHODS, BALANCED, UNKNOWN), (0.7,), (TAIL,), ten
            ),
            grid("letter", "same epochs", (*BY_CLASS, *FEW), (0.7,), (TAIL,), ten),
            grid(
                "digits",
                "same epochs",
                ("random", BALANCED, UNKNOWN, "adapruner"),
                (0.5,),
                (TAIL,),
                ten,
            ),
            grid(CIFAR, "same epochs", (*BY_CLASS, *FEW), (0.7, 0.5), (TAIL,), five),
        ),
        "joint-more": distinct(
            grid("digits", "joint", JOINT_MORE, (0.7, 0.5), CLEAN_OR_NOISY, ten),
            grid("digits", "joint", OTHER_JOINT, (0.3,), CLEAN_OR_NOISY, ten),
            grid("letter", "joint", OTHER_JOINT, JOINT_RATIOS, CLEAN_OR_NOISY, ten),
            grid("letter", "joint", FEW_JOINT, (0.3,), CLEAN_OR_NOISY, ten),
            grid(CIFAR, "joint", OTHER_JOINT, JOINT_RATIOS, CLEAN_OR_NOISY, five),
        ),
        "human": distinct(
            grid(CIFAR, "same epochs", FEW, (0.7,), HUMAN, five),
            grid(CIFAR, "joint", FEW_JOINT, (0.7,), HUMAN, five),
        ),
        "traffic": distinct(
            grid("traffic", "same epochs", (*FEW, TRACKS), (0.7,), ("clean",), five),
            grid("traffic", "joint", FEW_JOINT, (0.7,), ("clean",), five),
            grid(
                "traffic",
                "same epochs",
                ("adapruner", "random", "DUAL"),
                (0.9, 0.8, 0.5),
                ("clean",),
                five,
            ),
            grid("traffic", "same epochs", BESIDE_CHANCE, (0.95, 0.3, 0.1), ("clean",), five),
            grid("traffic", "same epochs", ("full", *BESIDE_CHANCE), ALL_RATIOS, (NOISE,), five),
            grid("traffic", "joint", OTHER_JOINT, (0.7,), ("clean",), five),
            grid("traffic", "joint", (*FEW_JOINT, *OTHER_JOINT), (0.5, 0.3), ("clean",), five),
            grid("traffic", "joint", (*FEW_JOINT, *OTHER_JOINT), JOINT_RATIOS, (NOISE,), five),
        ),
        "long": distinct(
            grid(LONG, "same epochs", FEW, (0.7,), ("clean",), five),
            grid(
                LONG,
                "same epochs",
                BESIDE_CHANCE,
                (0.9, 0.5, 0.8, 0.3, 0.95, 0.1),
                ("clean",),
                five,
            ),
            grid(LONG, "same epochs", ("full", *BESIDE_CHANCE), ALL_RATIOS, (NOISE,), five),
        ),
        "held-back": distinct(
            grid("text", "same epochs", FEW, (0.7, 0.5), CLEAN_OR_NOISY, ten),
            grid("text", "same epochs", BESIDE_CHANCE, ALL_RATIOS, CLEAN_OR_NOISY, ten),
            grid("text", "joint", (*FEW_JOINT, *OTHER_JOINT), JOINT_RATIOS, CLEAN_OR_NOISY, ten),
        ),
        # What runs take: into a folder of its own, by one worker on a machine that is idle.
        "cost": distinct(
            *(
                grid(dataset, protocol, methods, (0.7,), ("clean",), three)
                for dataset in ("digits", CIFAR)
                for protocol, methods in (
                    ("same epochs", ("full", "random", *OURS, SHORT)),
                    ("joint", JOINT_METHODS),
                )
            )
        ),
        "gpu": gpu_runs(),  # by benchmarks.quality.gpu
    }
