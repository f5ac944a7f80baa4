"""An epoch of the DALI loader at a keep ratio, beside itself at 1 and beside other loaders.

    python -m pytest benchmarks/loader --benchmark-only [--full] [--results DIR]

Files are in the page cache while epochs are timed; what the disk would have to give is counted in
an epoch apart, for which the cache is emptied of them.
"""

from __future__ import annotations

import itertools

import pytest

from ..inputs import OURS
from . import rivals
from .pictures import made
from .rivals import Fixed
from .usage import bytes_read, memory

RATIOS = [1.0, 0.7, 0.5, 0.3, 0.1]
QUICK = [1.0, 0.5]
# Whole batches, for DALI's own readers fill the last one up. Images, images with --full, batch.
SIZES = {"CIFAR-10": (5120, 20480, 256), "256 to 512 pixels": (640, 3072, 64)}


@pytest.fixture
def pictures_of(full):
    """A source of a kind of images, with the size of its batches."""

    def find(kind, pictures):
        quick, all_, batch_size = SIZES[pictures]
        return made(kind, all_ if full else quick, pictures != "CIFAR-10"), batch_size

    return find


every_kind = pytest.mark.parametrize("kind", ["folder", "shards"])
every_size = pytest.mark.parametrize("pictures", SIZES)


@every_kind
@every_size
def test_epoch(compare, pictures_of, full, kind, pictures):
    """Beside the epoch at ratio 1: the share of its time that the others take."""
    source, batch_size = pictures_of(kind, pictures)
    epochs, read, before = {}, {}, memory()
    for ratio in RATIOS:
        name = OURS if ratio == 1 else f"ratio {ratio}"
        epoch = epochs[name] = rivals.ours(source, Fixed(len(source), ratio), batch_size)
        images, read[name] = bytes_read(source, epoch)
        assert images == round(ratio * len(source))
    assert memory() - before < 1_000_000_000
    seconds, least = (10.0, 5) if full else (2.0, 3)
    compare(epochs, seconds, least, images=len(source), bytes_read=read)


@pytest.mark.parametrize("ratio", RATIOS, ids=lambda ratio: f"ratio {ratio}")
@every_kind
@every_size
def test_rivals(compare, pictures_of, full, kind, pictures, ratio):
    """Beside loaders that were built for the selection, or read everything."""
    if ratio not in QUICK and not full:
        pytest.skip("part of --full")
    source, batch_size = pictures_of(kind, pictures)
    makers = {
        OURS: rivals.ours,
        "torch DataLoader + Subset": rivals.torch_subset,
        "DALI, parallel external source": rivals.dali_parallel,
    }
    if kind == "folder":
        makers["DALI's file reader"] = rivals.dali_files
    else:
        makers["DALI's webdataset reader"] = rivals.dali_webdataset
        if rivals.installed("webdataset"):
            makers["webdataset, filtered"] = rivals.webdataset
    beside(compare, makers, source, batch_size, ratio, full)


@every_size
def test_ffcv(compare, pictures_of, full, pictures):
    """Apart from the others, because it takes a minute to compile and holds its compiler's memory.

    It reads a file of its own format, made of the same images.
    """
    if not (full and rivals.installed("ffcv")):
        pytest.skip("part of --full, where FFCV is installed")
    source, batch_size = pictures_of("folder", pictures)
    beside(compare, {OURS: rivals.ours, "FFCV": rivals.ffcv}, source, batch_size, 1.0, full)


def beside(compare, makers, source, batch_size, ratio, full):
    """Time an epoch at a keep ratio of each loader, and what it takes besides time."""
    follows = Fixed(len(source), ratio)
    epochs, held, read = {}, {}, {}
    for name, maker in makers.items():
        before = memory()
        epoch = epochs[name] = maker(source, follows, batch_size)
        images, read[name] = bytes_read(source, epoch)
        held[name] = memory() - before
        wanted = len(source) if maker == rivals.dali_webdataset else round(ratio * len(source))
        assert wanted - batch_size < images < wanted + batch_size
    facts = {"images": len(source), "ratio": ratio, "bytes_read": read, "memory": held}
    compare(epochs, seconds=1.0, least=4 if full else 2, **facts)


@every_kind
@every_size
def test_new_selection(compare, pictures_of, kind, pictures):
    """An epoch of a single batch, of samples that were not read in the one before."""
    source, batch_size = pictures_of(kind, pictures)
    share = batch_size / len(source)
    follows = Fixed(len(source), share)
    loader = rivals.DaliLoader(source, follows, batch_size, num_threads=rivals.WORKERS)
    seeds = itertools.count()

    def of_new(read):
        def epoch():
            follows.keep(share, next(seeds))
            return read()

        return epoch

    calls = {OURS: of_new(lambda: rivals.count(loader))}
    makers = {"torch DataLoader + Subset, made anew": rivals.torch_subset}
    if kind == "folder":
        makers["DALI's file reader, built anew"] = rivals.dali_files
    for name, maker in makers.items():
        calls[name] = of_new(lambda maker=maker: maker(source, follows, batch_size)())
    assert all(call() == batch_size for call in calls.values())
    compare(calls, images=len(source))
