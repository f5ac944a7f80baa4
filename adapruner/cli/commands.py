"""The subcommands of ``adapruner``. Their arguments are checked already."""

from __future__ import annotations

import shlex
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn
from tqdm.auto import tqdm

from adapruner import vision
from adapruner._util.extras import require
from adapruner._util.files import replace_atomically
from adapruner._util.progress import bar_is_shown
from adapruner.cli import answers
from adapruner.cli.checks import Place
from adapruner.cli.console import complain, say
from adapruner.cli.launch import process_group, rank
from adapruner.data.sources.arrays import map_array
from adapruner.data.sources.base import Source
from adapruner.data.sources.find import as_source, source_again, why_not_there
from adapruner.data.sources.remote import RemoteOptions, object_store
from adapruner.data.sources.shard_index import ShardIndex, scan, write_index
from adapruner.data.sources.shard_paths import find_shards
from adapruner.data.sources.stores import FileStore, index_path
from adapruner.data.sources.tar_members import Shard
from adapruner.errors import MissingEndMarkWarning
from adapruner.ops.device import why_no_cuda
from adapruner.results.export import TABLES, check_kind
from adapruner.results.result import PruneResult
from adapruner.training import CHECKPOINT_NAME
from adapruner.training.fast_prune import fast_prune
from adapruner.vision.decoding import to_picture

_UNREADABLE_SHOWN = 5
_NEED_DATA = {
    "paths": "the image folder",
    "links": "the image folder",
    "wds-index": "the shards",
    "shards": "the shards",
}
_EXPORTED = {
    "paths": "paths to {out}, relative to the image folder",
    "npy": "indices to {out}",
    "csv": "rows to {out}",
    "parquet": "rows to {out}",
    "links": "links to {out}",
    "wds-index": "samples to indexes in {out}",
    "shards": "samples to shards in {out}",
}


def prune(arguments: Namespace) -> None:
    """Train on ``arguments.data`` and write the result to ``arguments.out``.

    Where ``torchrun`` has started many processes, they train together and rank 0 writes.

    Raises:
        OSError, ValueError, ImportError, FloatingPointError, UnreadableSampleError, RankError: the
            message is for users.
    """
    if arguments.report is not None:
        for module in ("matplotlib", "jinja2"):
            require(module, extra="report")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = arguments.device or ("cpu" if why_no_cuda() else "cuda")
    with process_group(device) as device:
        _prune(arguments, device, writes=rank() in (None, 0))


def _prune(arguments: Namespace, device: str, writes: bool) -> None:
    with _warnings_as_lines(writes):
        source, validation = _sources(arguments)
        image_size = arguments.image_size or vision.guess_image_size(source)
        balance = arguments.balance
        if isinstance(balance, Path):
            balance = _groups(balance)
        model = _model(arguments, source, image_size)
    if device != "cpu":
        model = model.to(memory_format=torch.channels_last)
    if writes and not arguments.quiet:
        _announce(arguments, model, source, image_size)
    with _warnings_as_lines(writes):
        result = fast_prune(
            model,
            source,
            arguments.keep_ratio,
            arguments.epochs,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            device=device,
            loader=arguments.loader,
            num_workers=arguments.workers,
            block_size=arguments.block_size,
            transform=vision.training_transform(image_size),
            evaluation_transform=vision.evaluation_transform(image_size),
            validation_data=validation,
            learning_rate=arguments.lr,
            precision=arguments.precision,
            compile=arguments.compile,
            balance=balance,
            method=arguments.method,
            warmup_epochs=arguments.warmup_epochs,
            checkpoint_dir=arguments.checkpoint,
            on_error=arguments.on_error,
            progress=not arguments.quiet,
        )
    if not writes:
        return
    result = replace(result, config=result.config | _settings(arguments, image_size))
    _save(result, arguments.out)
    if arguments.save_model is not None:
        replace_atomically(arguments.save_model, lambda path: save_model(model, str(path)))
    if not arguments.quiet:
        say("\n".join(_summary(result, arguments)))
    if arguments.report is not None:
        result.report(arguments.report, source=source)


def _groups(path: Path) -> np.ndarray:
    groups = map_array(path)
    if groups.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold integers; found {groups.dtype}")
    return groups


def _save(result: PruneResult, path: Path) -> None:
    """Write the result to ``path``, or to a temporary folder where that fails.

    Raises:
        OSError: ``path`` cannot be written. The message names the other file.
    """
    try:
        result.save(path)
    except OSError as error:
        other = Path(tempfile.mkdtemp(prefix="adapruner-")) / "result.safetensors"
        result.save(other)
        raise OSError(f"{error}; the result is in {other}") from error


def report(arguments: Namespace) -> None:
    """Write the report of a result.

    Raises:
        OSError, ValueError, ImportError: the message is for users.
    """
    result = PruneResult.load(arguments.result)
    result.report(arguments.out, source=_given_source(arguments, result))
    say(f"wrote {arguments.out}")


def export(arguments: Namespace) -> None:
    """Write the kept set of a result.

    Raises:
        OSError, ValueError, ImportError: the message is for users.
    """
    result = PruneResult.load(arguments.result)
    source = _given_source(arguments, result)
    told = arguments.to == "paths" and result.paths is not None
    if source is None and arguments.to in _NEED_DATA and not told:
        _check_data_known(result, arguments.to)
    result.export(arguments.out, to=arguments.to, source=source)
    count = result.num_samples if arguments.to in TABLES else result.indices.numel()
    say(f"wrote {count:,} {_EXPORTED[arguments.to].format(out=arguments.out)}")


def show(arguments: Namespace) -> None:
    """Print samples of a result, with the reasons.

    Raises:
        OSError, ValueError: the message is for users.
    """
    result = PruneResult.load(arguments.result)
    answers.show(result, arguments, _given_source(arguments, result))


def info(arguments: Namespace) -> None:
    """Print what a result holds.

    Raises:
        OSError, ValueError: the message is for users.
    """
    say(answers.describe(PruneResult.load(arguments.result)))


def index(arguments: Namespace) -> None:
    """Write the indexes of ``arguments.shards``. A broken shard is reported and gets no index.

    A shard without an end-of-archive mark counts as broken, because it may be cut off.

    Raises:
        OSError, ValueError: the message is for users.
    """
    store = object_store(arguments.shards)
    if store is not None and arguments.out is None:
        raise ValueError("--out DIR is needed for the indexes of shards in an object store")
    named = (shard for pattern in arguments.shards for shard in find_shards(pattern, store))
    shards = list(dict.fromkeys(named))  # patterns may overlap
    paths = [index_path(shard, arguments.out) for shard in shards]
    if len(set(paths)) < len(paths):
        double = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"shards must have different names; found two with the index {double}")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    broken, samples = 0, 0
    for shard, path in zip(
        tqdm(shards, unit=" shards", leave=False, disable=not bar_is_shown(True)),
        paths,
        strict=True,
    ):
        found, problem = _scanned(store.open(shard) if store else shard, arguments.column)
        if problem is None:
            write_index(path, found, (store or FileStore()).size(shard))
            samples += len(found.lines)
        else:
            broken += 1
            complain(f"no index of {shard}: {problem}")
    say(f"wrote the indexes of {len(shards) - broken:,} shards, with {samples:,} samples")
    if broken:
        raise OSError(f"{broken:,} of {len(shards):,} shards have no index")


def _scanned(shard: Shard, column: str) -> tuple[ShardIndex, str | None]:
    """The index of ``shard``, and the reason why it must not be written, or None."""
    with warnings.catch_warnings(record=True) as caught:
        # With an index no later run would warn of a shard that may be cut off.
        warnings.simplefilter("always", UserWarning)
        found = scan(shard, column)
    for warning in caught:
        if warning.category is not MissingEndMarkWarning:
            complain(f"warning: {warning.message}")
    doubt = next((str(w.message) for w in caught if w.category is MissingEndMarkWarning), None)
    return found, found.damage or doubt or (None if found.lines else "the shard has no sample")


def _given_source(arguments: Namespace, result: PruneResult) -> Source | None:
    if arguments.data is None:
        return None
    with _warnings_as_lines():
        return source_again(result.dataset, _named(arguments.data))


def _named(paths: list[Place]) -> Any:
    """The data at the places of the command line, in a form that ``as_source`` takes."""
    if all(isinstance(path, Path) and path.suffix == ".npy" for path in paths):
        return tuple(paths)
    return paths[0] if len(paths) == 1 else paths


def _check_data_known(result: PruneResult, to: str) -> None:
    check_kind(result.dataset.get("kind", ""), to)
    try:
        source_again(result.dataset)
    except FileNotFoundError as error:
        raise ValueError(
            f"export to {to} needs {_NEED_DATA[to]}, and {why_not_there(result.dataset)}; give its "
            "place with --data"
        ) from error


@contextmanager
def _warnings_as_lines(show: bool = True) -> Iterator[None]:
    """Show each warning as one line, without its place in the code; or none of them."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for warning in caught if show else ():
            complain(f"warning: {warning.message}")


def _sources(arguments: Namespace) -> tuple[Source, Source | None]:
    source = _images(arguments, arguments.data)
    if _class_count(source) < 2:
        only = (source.class_names or ["0"])[0]
        raise ValueError(
            f"{arguments.data[0]} must have at least two classes of images; found one, {only}"
        )
    if arguments.validation is None:
        return source, None
    validation = _images(arguments, arguments.validation)
    names, theirs = source.class_names or [], validation.class_names or []
    if bool(names) == bool(theirs) and names != theirs:
        differing = sorted(set(names) ^ set(theirs))
        raise ValueError(
            f"{arguments.validation[0]} must have the same classes as {arguments.data[0]}; "
            f"found in only one of them: {', '.join(differing[:10])}"
        )
    count, most = _class_count(validation), _class_count(source)
    if count > most:
        raise ValueError(
            f"{arguments.validation[0]} must have the same classes as {arguments.data[0]}; "
            f"expected classes up to {most - 1}, found class {count - 1}"
        )
    return source, validation


def _images(arguments: Namespace, paths: list[Place]) -> Source:
    remote = None
    if arguments.cache is not None:
        remote = RemoteOptions(cache_folder=arguments.cache)
    source = as_source(
        _named(paths),
        columns=None if arguments.columns is None else tuple(arguments.columns),
        max_pixels=arguments.max_pixels,
        index_folder=arguments.index,
        remote=remote,
    )
    if source.targets is None:
        order = "; the images come first, then the classes" if source.kind == "arrays" else ""
        raise ValueError(
            f"the classes in {paths[-1]} must be whole numbers, one for each image{order}"
        )
    if source.targets.min() < 0:
        raise ValueError(
            f"the classes in {paths[-1]} must be at least 0; found {source.targets.min()}"
        )
    if _class_count(source) > max(1000, len(source)):
        raise ValueError(
            f"the classes in {paths[-1]} must be numbered from 0; found class "
            f"{source.targets.max()} among {len(source)} images"
        )
    if source.kind == "arrays":
        to_picture(source[0][0])  # raises unless it is a picture
    return source


def _class_count(source: Source) -> int:
    assert source.targets is not None
    return len(source.class_names or ()) or int(source.targets.max()) + 1


def _model(arguments: Namespace, source: Source, image_size: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(arguments.seed)
        return vision.create_model(
            arguments.model,
            _class_count(source),
            image_size=image_size,
            small_images=arguments.small_images,
            weights=arguments.weights,
        )


def _announce(arguments: Namespace, model: nn.Module, source: Source, image_size: int) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    complain(
        f"{len(source):,} images of {_class_count(source):,} classes, at {image_size} x "
        f"{image_size} pixels; {arguments.model} with {parameters:,} parameters"
    )
    if arguments.checkpoint is not None and (arguments.checkpoint / CHECKPOINT_NAME).is_file():
        complain(f"resuming from the checkpoint in {arguments.checkpoint}")


def _settings(arguments: Namespace, image_size: int) -> dict[str, Any]:
    """Settings of the command that fast_prune does not know, for the result."""
    return {
        "model": arguments.model,
        "image_size": image_size,
        "small_images": arguments.small_images,
        "weights": None if arguments.weights is None else str(arguments.weights),
        "validation": None
        if arguments.validation is None
        else list(map(str, arguments.validation)),
        "lr": arguments.lr,
    }


def _summary(result: PruneResult, arguments: Namespace) -> list[str]:
    kept, saved = result.indices.numel(), result.saved
    read, full = saved["samples_read"], saved["samples_read_full"]
    lines = [
        f"kept {kept:,} of {result.num_samples:,} images, written to {arguments.out}",
        f"read {read:,} images in {saved['seconds']:,.1f} s, {100 * read / full:.1f} % of the "
        f"{full:,} that an ordinary run reads",
    ]
    if result.fit:
        lines.append(result.fit)
    if result.unreadable:
        lines += _unreadable(result)
    if result.not_finite:
        lines.append(
            f"{len(result.not_finite)} images had a loss that was not finite; the first has the "
            f"index {result.not_finite[0]}"
        )
    if result.forced:
        lines.append(
            "forced: the run ended before training at this keep ratio, so the final selection was "
            "cut to size; use more epochs or a higher keep ratio"
        )
    return [*lines, *_next_commands(result, arguments)]


def _unreadable(result: PruneResult) -> list[str]:
    count = len(result.unreadable)
    lines = [f"{count:,} unreadable {'image is' if count == 1 else 'images are'} not kept:"]
    lines += [f"  {reason}" for _, reason in result.unreadable[:_UNREADABLE_SHOWN]]
    if count > _UNREADABLE_SHOWN:
        lines.append(f"  and {count - _UNREADABLE_SHOWN:,} more; the result lists all")
    return lines


def _next_commands(result: PruneResult, arguments: Namespace) -> list[str]:
    written, stem = arguments.out, arguments.out.with_suffix("")
    exports = {
        "image folder": [("paths", f"{stem}-paths.txt"), ("links", f"{stem}-images")],
        "shards": [("wds-index", f"{stem}-index"), ("shards", f"{stem}-shards")],
        "arrays": [("npy", f"{stem}-indices.npy")],
    }[result.dataset["kind"]]
    exports.append(("csv", f"{stem}-samples.csv"))
    commands = [f"export {_quoted(written)} --to {to} --out {_quoted(out)}" for to, out in exports]
    if arguments.report is None:
        commands.insert(0, f"report {_quoted(written)} --out {_quoted(f'{stem}.html')}")
    commands.insert(0, f"show {_quoted(written)}")
    return ["next:", *(f"  adapruner {command}" for command in commands)]


def _quoted(path: object) -> str:
    return shlex.quote(str(path))
