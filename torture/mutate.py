"""Mutations of bytes and of values, from a seeded generator."""

from __future__ import annotations

import copy
import json
import random
import string
from collections import deque
from collections.abc import Iterator
from typing import Any

# Numbers at which arithmetic, sizes and types go wrong.
NUMBERS = (
    *(0, 1, -1, 2, 7, 8, 255, 256, 511, 512, 513, 2**31 - 1, 2**31, 2**32, 2**53 + 1),
    *(2**63 - 1, 2**63, -(2**63), 2**64, 10**9, 10**30, -(10**30)),
)
REALS = (0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    *("", " ", "a", "ä", "\0", "\n", "\x1b[31m", "../../etc/passwd", "/dev/zero", "/etc/passwd"),
    *("<script>alert(1)</script>", "{{ 7 * 7 }}", "$\\frac{a}", "%s%n", "-1", "1e999", "NaN"),
    *("\ud800", "\u202e", "x" * 5000, "{a,b}" * 30, "*" * 30, "~root", "con", "a/./b//c"),
)

# Stands for a list of lists of lists, too deep for a JSON encoder.
DEEP = "a place for a deep list"


def number(dice: random.Random) -> int:
    return dice.choice(NUMBERS) if dice.random() < 0.7 else dice.randrange(-1000, 100_000)


def value(dice: random.Random, depth: int = 3) -> Any:
    """Any value that JSON can hold."""
    kind = dice.randrange(9 if depth else 7)
    if kind < 2:
        return number(dice)
    if kind == 2:
        return dice.choice(REALS)
    if kind == 3:
        return dice.choice((None, True, False))
    if kind < 7:
        return text(dice)
    if kind == 7:
        return [value(dice, depth - 1) for _ in range(dice.randrange(4))]
    return {text(dice): value(dice, depth - 1) for _ in range(dice.randrange(4))}


def text(dice: random.Random) -> str:
    if dice.random() < 0.7:
        return dice.choice(TEXTS)
    return "".join(dice.choice(string.printable) for _ in range(dice.randrange(12)))


def json_tree(dice: random.Random, tree: Any) -> Any:
    """A copy of a JSON value with a few parts replaced, removed, repeated or added."""
    whole = [copy.deepcopy(tree)]
    for _ in range(1 + min(int(dice.expovariate(1)), 4)):
        places = list(_places(whole))
        # The outer parts are few; without this, nearly all mutations were deep in the leaves.
        container, key = dice.choice(places[: dice.choice((4, 30, len(places)))])
        how = dice.random()
        if how < 0.6:
            container[key] = value(dice)
        elif how < 0.62:
            container[key] = DEEP
        elif how < 0.8 and container is not whole:
            del container[key]
        elif isinstance(container, list):
            container[:] = (
                container * dice.choice((1, 2, 3)) if container is not whole else container
            )
        else:
            container[text(dice)] = value(dice)
    return whole[0]


def _places(root: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below ``root``, the outer ones first."""
    queue: deque[Any] = deque([root])
    while queue:
        container = queue.popleft()
        for key in container if isinstance(container, dict) else range(len(container)):
            yield container, key
            if isinstance(container[key], (dict, list)):
                queue.append(container[key])


def json_text(dice: random.Random, tree: Any) -> str:
    """The text of a JSON value, with each ``DEEP`` as a list of 30 or of 100,000 levels."""
    levels = dice.choice((30, 100_000))
    return json.dumps(tree).replace(f'"{DEEP}"', "[" * levels + "]" * levels)


def raw_bytes(dice: random.Random, content: bytes) -> bytes:
    """A copy of some bytes with a few places flipped, overwritten, cut, repeated or moved."""
    made = bytearray(content)
    for _ in range(1 + min(int(dice.expovariate(0.7)), 8)):
        place = dice.randrange(len(made) + 1)
        kind = dice.randrange(7)
        if kind == 0 and place < len(made):
            made[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            made[place : place + dice.randrange(9)] = dice.randbytes(dice.randrange(9))
        elif kind == 2:
            del made[place:]
        elif kind == 3:
            made[place:place] = made[place : place + dice.randrange(600)]
        elif kind == 4:
            del made[place : place + dice.randrange(600)]
        elif kind == 5:
            size = dice.choice((1, 2, 4, 8))
            made[place : place + size] = (number(dice) % 2 ** (8 * size)).to_bytes(size, "little")
        else:
            made[place:place] = str(number(dice)).encode()
    return bytes(made)
