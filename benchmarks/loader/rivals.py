"""The loaders to compare with; each gives a function that goes through one epoch.

All decode, cut out, resize, mirror and normalise alike, with two threads or two processes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from torch.utils.data import DataLoader, Subset

from adapruner import Pruner, as_source
from adapruner.data.dali.loader import DaliLoader
from adapruner.data.loaders.torch_loader import PrunedLoader
from adapruner.data.sources.base import Source
from adapruner.pruning import bitmask
from adapruner.vision import MEAN, STD, ImageTransform

Epoch = Callable[[], int]
WORKERS = 2
AHEAD = 2
SMALL = 64


class Fixed(Pruner):
    """Stays in an epoch of which the benchmark says what it reads."""

    def __init__(self, num_samples: int, ratio: float) -> None:
        super().__init__(num_samples, 1.0, 2)
        self.keep(ratio)

    def keep(self, ratio: float, seed: int = 0) -> None:
        """Read a random part of the samples."""
        kept = np.zeros(self.num_samples, dtype=bool)
        order = np.random.default_rng(seed).permutation(self.num_samples)
        kept[order[: round(ratio * self.num_samples)]] = True
        self.selection.read = bitmask.pack(kept)

    def indices(self) -> list[int]:
        """What the epoch reads, ascending."""
        return np.flatnonzero(self.reads()).tolist()


def count(batches: Any) -> int:
    """Go through an epoch; how many images came."""
    return sum(len(batch[0]) for batch in batches)


def ours(source: Source, follows: Fixed, batch_size: int) -> Epoch:
    loader = DaliLoader(source, follows, batch_size, num_threads=WORKERS)
    return lambda: count(loader)


def ours_torch(source: Source, follows: Fixed, batch_size: int) -> Epoch:
    loader = PrunedLoader(source, follows, batch_size, num_workers=WORKERS)
    return lambda: count(loader)


def torch_subset(source: Source, follows: Fixed, batch_size: int) -> Epoch:
    loader = DataLoader(
        Subset(source, follows.indices()),
        batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return lambda: count(loader)


def dali_files(source: Source, follows: Fixed, batch_size: int) -> Epoch:
    """DALI's own file reader, built for one selection."""
    indices = follows.indices()
    files = [source.location(index).path for index in indices]
    labels = source.targets[indices].tolist()
    read = partial(fn.readers.file, files=files, labels=labels, shuffle_after_epoch=True)
    return _epoch_of_reader(read, source, batch_size, len(indices))


def dali_webdataset(source: Source, follows: Fixed, batch_size: int) -> Epoch:
    """DALI's own reader of shards, which reads all of them whatever the selection."""
    read = partial(
        fn.readers.webdataset,
        paths=source.shards,
        index_paths=[shard.removesuffix(".tar") + ".idx" for shard in source.shards],
        ext=["jpg", "cls"],
        random_shuffle=True,
        missing_component_behavior="error",
    )
    return _epoch_of_reader(read, source, batch_size, len(source))


def dali_parallel(source: Source, follows: Fixed, batch_size: int) -> Epoch:
    """DALI's external source in two processes, which hand over the bytes of sample by sample."""
    order = np.random.default_rng(1).permutation(follows.indices())
    sampler = _Samples(source, order, batch_size)
    read = partial(
        fn.external_source,
        source=sampler,
        num_outputs=2,
        batch=False,
        parallel=True,
        dtype=[types.UINT8, types.INT64],
    )
    iterator = DALIGenericIterator(
        _pipeline(read, source, batch_size, AHEAD),
        ["images", "labels"],
        size=sampler.batches * batch_size,
        auto_reset=True,
    )
    return lambda: sum(len(batch[0]["images"]) for batch in iterator)


class _Samples:
    """A sample for each place in an epoch; only full batches, as DALI asks for."""

    def __init__(self, source: Source, order: np.ndarray, batch_size: int) -> None:
        self.source, self.order = source, order
        self.batches = len(order) // batch_size

    def __call__(self, place: Any) -> tuple[np.ndarray, np.ndarray]:
        if place.iteration >= self.batches:
            raise StopIteration
        index = int(self.order[place.idx_in_epoch])
        encoded = np.frombuffer(self.source.encoded(index), np.uint8)
        return encoded, self.source.targets[index : index + 1]


def installed(package: str) -> bool:
    """Whether a rival's package is."""
    return importlib.util.find_spec(package) is not None


def webdataset(
    source: Source, follows: Fixed, batch_size: int, urls: list[str] | None = None
) -> Epoch:
    """The package of that name: reads all, and leaves out what is not kept before decoding it.

    ``urls`` are the places of the shards of ``source``, where they are not its own.
    """
    import webdataset as wds

    keys = {f"{index:06d}" for index in follows.indices()}
    dataset = (
        wds.WebDataset(urls or source.shards, shardshuffle=len(source.shards), seed=0)
        .select(lambda sample: sample["__key__"] in keys)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("jpg", "cls")
        .map_tuple(source.transform, int)
        .batched(batch_size)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda: count(loader)


def _packed(source: Source) -> str:
    """The images of ``source`` as a file of FFCV's own, as JPEGs; written once."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    plain = as_source(source.root)
    path = str(Path(source.root).with_suffix(".beton"))
    if not Path(path).exists():
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
        DatasetWriter(path, fields, num_workers=1).from_indexed_dataset(plain)
    return path


def ffcv(source: Source, follows: Fixed, batch_size: int) -> Epoch:
    """FFCV, from a file of its own format; it resizes by area."""
    loader = _ffcv_loader(source, batch_size)
    loader.indices = loader.traversal_order.indices = np.array(follows.indices())
    loader.first_traversal_order = loader.next_traversal_order()
    count(loader)  # compiles it
    return lambda: count(loader)


@cache
def _ffcv_loader(source: Source, batch_size: int) -> Any:
    """Of all samples; it takes half a minute to compile."""
    from ffcv.fields import decoders
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (
        NormalizeImage,
        RandomHorizontalFlip,
        RandomTranslate,
        Squeeze,
        ToTensor,
        ToTorchImage,
    )

    size = source.transform.augmentation.size
    if size > SMALL:
        cut = [decoders.RandomResizedCropRGBImageDecoder((size, size))]
    else:
        translate = RandomTranslate(padding=source.transform.augmentation.margin)
        cut = [decoders.SimpleRGBImageDecoder(), translate]
    normalize = NormalizeImage(255 * np.array(MEAN), 255 * np.array(STD), np.float32)
    return Loader(
        _packed(source),
        batch_size=batch_size,
        num_workers=WORKERS,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={
            "image": [*cut, RandomHorizontalFlip(), normalize, ToTensor(), ToTorchImage()],
            "label": [decoders.IntDecoder(), ToTensor(), Squeeze()],
        },
    )


def _pipeline(read: Callable[[], Any], source: Source, batch_size: int, ahead: int) -> Pipeline:
    pipeline = Pipeline(
        batch_size,
        WORKERS,
        None,
        seed=1,
        exec_dynamic=True,
        prefetch_queue_depth=ahead,
        py_num_workers=WORKERS,
        py_start_method="spawn",
    )
    with pipeline:
        encoded, label = read()
        pipeline.set_outputs(_augmented(encoded, source.transform), label)
    pipeline.build()
    return pipeline


def _epoch_of_reader(
    read: Callable[[], Any], source: Source, batch_size: int, num_samples: int
) -> Epoch:
    """As many batches as an epoch has, some ahead.

    DALI's own iterator reads ahead into the next epoch, which would go on in a rival's time.
    """
    pipeline = _pipeline(read, source, batch_size, 1)
    batches = -(-num_samples // batch_size)

    def epoch() -> int:
        done = 0
        for number in range(batches + AHEAD):
            if number < batches:
                pipeline.schedule_run()
            if number >= AHEAD:
                done += len(torch.from_dlpack(pipeline.share_outputs()[0].as_tensor()))
                pipeline.release_outputs()
        return done

    return epoch


def _augmented(encoded: Any, transform: ImageTransform) -> Any:
    size = transform.augmentation.size
    mirror = fn.random.coin_flip()
    if size > SMALL:
        image = fn.decoders.image_random_crop(
            encoded,
            output_type=types.RGB,
            random_area=[0.08, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
        )
        image = fn.resize(image, size=(size, size), interp_type=types.INTERP_LINEAR)
    else:
        margin = transform.augmentation.margin
        image = fn.slice(
            fn.decoders.image(encoded, output_type=types.RGB),
            start=fn.cast(
                fn.random.uniform(range=[-margin, margin + 1], shape=(2,)), dtype=types.INT32
            ),
            shape=(size, size),
            axis_names="HW",
            out_of_bounds_policy="pad",
        )
    return fn.crop_mirror_normalize(
        image,
        mirror=mirror,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
    )
