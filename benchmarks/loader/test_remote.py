"""An epoch of shards in an object store at a keep ratio, beside webdataset that streams them.

    python -m pytest benchmarks/loader/test_remote.py --benchmark-only [--full] [--results DIR]

The store is a process on this machine with a latency and a bandwidth; see ``object_store``. Both
sides decode and augment alike, with two threads or two processes.
"""

from __future__ import annotations

import pytest

from adapruner import as_source
from adapruner.data import RemoteOptions

from ..inputs import OURS
from . import rivals
from .object_store import BANDWIDTH, LATENCY, object_store
from .pictures import made
from .rivals import Fixed

RATIOS = [1.0, 0.5, 0.1]
SIZES = {"CIFAR-10": (5120, 20480, 256), "256 to 512 pixels": (640, 3072, 64)}


@pytest.mark.parametrize("ratio", RATIOS, ids=lambda ratio: f"ratio {ratio}")
@pytest.mark.parametrize("pictures", SIZES)
def test_epoch(compare, full, pictures, ratio, tmp_path):
    """Beside webdataset, which reads all and leaves out what is not kept before decoding it."""
    pytest.importorskip("webdataset")
    pytest.importorskip("aiohttp")
    quick, all_, batch_size = SIZES[pictures]
    local = made("shards", all_ if full else quick, pictures != "CIFAR-10")
    with object_store(local.root) as store:
        names = [shard.rpartition("/")[2] for shard in local.shards]
        addresses = [f"{store.address}/{name}" for name in names]

        def source(**options):
            return as_source(
                addresses, transform=local.transform, remote=RemoteOptions(parallel=64, **options)
            )

        follows = Fixed(len(local), ratio)
        epochs = {
            OURS: rivals.ours(source(), follows, batch_size),
            "ours, torch loader": rivals.ours_torch(source(), follows, batch_size),
            "ours, cache on disk": rivals.ours(source(cache_folder=tmp_path), follows, batch_size),
            "webdataset, filtered": rivals.webdataset(
                local, follows, batch_size, [f"pipe:curl -sf {url}" for url in addresses]
            ),
        }
        read = {}
        for name, epoch in epochs.items():
            before = store.bytes_sent()
            assert abs(epoch() - round(ratio * len(local))) < batch_size
            read[name] = store.bytes_sent() - before
        cached = store.bytes_sent()
        epochs["ours, cache on disk"]()
        read["ours, cache on disk"] = store.bytes_sent() - cached  # from the second epoch on
        compare(
            epochs,
            seconds=1.0,
            least=5 if full else 2,
            images=len(local),
            ratio=ratio,
            bytes_read=read,
            latency=LATENCY,
            bandwidth=BANDWIDTH,
        )
