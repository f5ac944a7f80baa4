"""An epoch of the DALI loader at a keep ratio, beside itself at 1 and beside other loaders.

    python -m pytest benchmarks/loader --benchmark-only [--full] [--results DIR]

Files are in the page cache; what the disk would have to give is counted in an epoch apart, for
which it is emptied of them.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import rivals
from pictures import make
from rivals import Fixed

RATIOS = [1.0, 0.7, 0.5, 0.3, 0.1]
# Whole batches, for DALI's own readers fill the last one up. Images, images with --full, batch.
SIZES = {"CIFAR-10": (5120, 49920, 256), "256 to 512 pixels": (640, 19968, 64)}
OURS = "adapruner"


@pytest.fixture(scope="module")
def sources(tmp_path_factory, request):
    """A source of each kind and size, made where it is first asked for."""
    made = {}

    def source(kind, pictures):
        if (kind, pictures) not in made:
            number = SIZES[pictures][bool(request.config.getoption("--full"))]
            folder = tmp_path_factory.mktemp("images") / "all"
            made[kind, pictures] = make(folder, kind, number, pictures != "CIFAR-10")
        return made[kind, pictures]

    return source


@pytest.mark.parametrize("kind", ["folder", "shards"])
@pytest.mark.parametrize("pictures", SIZES)
def test_ratio(compare, sources, kind, pictures):
    """Beside the epoch at ratio 1: the share of its time that the others take."""
    source, batch_size = sources(kind, pictures), SIZES[pictures][2]
    epochs, from_disk = {}, {}
    for ratio in RATIOS:
        epoch = rivals.ours(source, Fixed(len(source), ratio), batch_size)
        assert epoch() == round(ratio * len(source))
        from_disk[str(ratio)] = bytes_from_disk(source, epoch)
        epochs[f"ratio {ratio}"] = epoch
    before = resident()
    compare(epochs, seconds=8.0, images=len(source), from_disk=from_disk)
    assert resident() - before < 500_000_000


@pytest.mark.parametrize("ratio", [1.0, 0.5], ids=lambda ratio: f"ratio {ratio}")
@pytest.mark.parametrize("kind", ["folder", "shards"])
@pytest.mark.parametrize("pictures", SIZES)
def test_rivals(compare, sources, kind, pictures, ratio):
    """Beside loaders that were built for the selection, or read everything."""
    source, batch_size = sources(kind, pictures), SIZES[pictures][2]
    makers = {
        OURS: rivals.ours,
        "torch loader, 2 workers": rivals.torch_ours,
        "torch DataLoader + Subset": rivals.torch_subset,
        "DALI, parallel external source": rivals.dali_parallel,
    }
    if kind == "folder":
        makers["DALI's file reader"] = rivals.dali_files
    else:
        makers["DALI's webdataset reader"] = rivals.dali_webdataset
        if rivals.has_webdataset():
            makers["webdataset, filtered"] = rivals.webdataset
    follows = Fixed(len(source), ratio)
    epochs = {name: maker(source, follows, batch_size) for name, maker in makers.items()}
    memory, from_disk = {}, {}
    for name, epoch in epochs.items():
        before = resident()
        images = epoch()
        memory[name] = resident() - before
        reads_all = name == "DALI's webdataset reader"
        wanted = len(source) if reads_all else round(ratio * len(source))
        assert wanted - batch_size < images < wanted + batch_size
        from_disk[name] = bytes_from_disk(source, epoch)
    compare(epochs, seconds=8.0, images=len(source), memory=memory, from_disk=from_disk)


@pytest.mark.parametrize("pictures", SIZES)
def test_new_selection(compare, sources, pictures):
    """From a new selection to the first batch of it."""
    source, batch_size = sources("folder", pictures), SIZES[pictures][2]
    follows = Fixed(len(source), 0.5)
    loader = rivals.DaliLoader(source, follows, batch_size, num_threads=rivals.WORKERS)
    seeds = itertools.count()

    def ours():
        follows.keep(0.5, next(seeds))
        return next(iter(loader))

    def rebuilt(maker):
        def first():
            follows.keep(0.5, next(seeds))
            return next(maker(source, follows, batch_size))

        return first

    calls = {
        OURS: ours,
        "DALI's file reader, built anew": rebuilt(rivals.first_of_dali_files),
        "torch DataLoader + Subset, made anew": rebuilt(rivals.first_of_torch_subset),
    }
    compare(calls, seconds=5.0, images=len(source))


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bytes_from_disk(source, epoch) -> int:
    """What this process and its children read from the disk in an epoch; the kernel counts it."""
    root = Path(source.root)
    files = [path for path in root.rglob("*") if path.is_file()]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    before = _read_bytes()
    epoch()
    return _read_bytes() - before


def _read_bytes() -> int:
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    texts = [Path(f"/proc/{process}/io").read_text() for process in [own, *children]]
    return sum(int(text.split("read_bytes: ")[1].split()[0]) for text in texts)
