"""Kills one rank of runs on several ranks at random moments; see :mod:`torture.kill`."""

from functools import partial

from torture import faults
from torture.command import main
from torture.kill import run
from torture.runs import ON_RANKS

if __name__ == "__main__":
    faults.with_faults()
    main(partial(run, ON_RANKS))
