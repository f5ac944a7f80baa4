"""What the subcommands of ``adapruner`` do, once their arguments are known to be sound."""

from __future__ import annotations

import os
import shlex
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from adapruner import vision
from adapruner.checkpoint import NAME as CHECKPOINT
from adapruner.cli import complain, say
from adapruner.data.base import Source
from adapruner.data.sources import as_source
from adapruner.extras import require
from adapruner.files import replace_atomically
from adapruner.result import PruneResult
from adapruner.training import fast_prune

_UNREADABLE_SHOWN = 5


def prune(arguments: Namespace) -> None:
    """Train on ``arguments.folder`` and write the result to ``arguments.out``.

    Raises:
        OSError, ValueError, ImportError, FloatingPointError, UnreadableSampleError: with a message
            that is meant for users.
    """
    if arguments.report is not None:
        for module in ("matplotlib", "jinja2"):
            require(module, extra="report")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    with _warnings_as_lines():
        source, validation = _sources(arguments)
        image_size = arguments.image_size or vision.guess_image_size(source)
        model = _model(arguments, source, image_size)
    if not arguments.quiet:
        _announce(arguments, model, source, image_size)
    result = fast_prune(
        model,
        source,
        arguments.keep_ratio,
        arguments.epochs,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        num_workers=arguments.workers,
        transform=vision.training_transform(image_size),
        evaluation_transform=vision.evaluation_transform(image_size),
        validation_data=validation,
        learning_rate=arguments.lr,
        balance=arguments.balance,
        method=arguments.method,
        warmup_epochs=arguments.warmup_epochs,
        checkpoint_dir=arguments.checkpoint,
        on_error=arguments.on_error,
        progress=not arguments.quiet,
    )
    result = replace(result, config=result.config | _settings(arguments, image_size))
    result.save(arguments.out)
    if arguments.save_model is not None:
        replace_atomically(arguments.save_model, lambda path: save_model(model, str(path)))
    if not arguments.quiet:
        say("\n".join(_summary(result, arguments)))
    if arguments.report is not None:
        result.report(arguments.report, source=source)


def report(arguments: Namespace) -> None:
    """Write the report of a result.

    Raises:
        OSError, ValueError, ImportError: with a message that is meant for users.
    """
    result = PruneResult.load(arguments.result)
    result.report(arguments.out, source=_given_source(arguments))
    say(f"wrote {arguments.out}")


def export(arguments: Namespace) -> None:
    """Write the kept set of a result.

    Raises:
        OSError, ValueError, ImportError: with a message that is meant for users.
    """
    result = PruneResult.load(arguments.result)
    source = _given_source(arguments)
    if source is None and arguments.to in ("paths", "links"):
        _check_folder_known(result, arguments.to)
    result.export(arguments.out, to=arguments.to, source=source)
    what = {"paths": "paths", "npy": "indices", "parquet": "rows", "links": "links"}[arguments.to]
    relative = ", relative to the image folder" if arguments.to == "paths" else ""
    say(f"wrote {result.indices.numel():,} {what} to {arguments.out}{relative}")


def _given_source(arguments: Namespace) -> Source | None:
    if arguments.data is None:
        return None
    with _warnings_as_lines():
        return as_source(arguments.data)


def _check_folder_known(result: PruneResult, to: str) -> None:
    root = result.dataset.get("root")
    if root is not None and os.path.isdir(root):
        return
    why = "the result does not say where it is" if root is None else f"{root} is gone"
    raise ValueError(
        f"export to {to} needs the image folder that was pruned, and {why}: give it with "
        "--data FOLDER"
    )


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show each warning as one line, without the place in the code that it comes from."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for warning in caught:
            complain(f"warning: {warning.message}")


def _sources(arguments: Namespace) -> tuple[Source, Source | None]:
    source = as_source(arguments.folder)
    names = source.class_names or []
    if len(names) < 2:
        raise ValueError(
            f"{arguments.folder} has one class, {names[0]}: there is nothing to tell it from; "
            "expected at least two folders of images"
        )
    if arguments.validation is None:
        return source, None
    validation = as_source(arguments.validation)
    if validation.class_names != names:
        differing = sorted(set(names) ^ set(validation.class_names or []))
        raise ValueError(
            f"{arguments.validation} must have the same classes as {arguments.folder}; only one "
            f"of them has {', '.join(differing[:10])}"
        )
    return source, validation


def _model(arguments: Namespace, source: Source, image_size: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(arguments.seed)
        return vision.create_model(
            arguments.model,
            len(source.class_names or []),
            image_size=image_size,
            small_images=arguments.small_images,
            weights=arguments.weights,
        )


def _announce(arguments: Namespace, model: nn.Module, source: Source, image_size: int) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    complain(
        f"{len(source):,} images of {len(source.class_names or []):,} classes, at {image_size} x "
        f"{image_size} pixels; {arguments.model} with {parameters:,} parameters"
    )
    if arguments.checkpoint is not None and (arguments.checkpoint / CHECKPOINT).is_file():
        complain(f"going on from the checkpoint in {arguments.checkpoint}")


def _settings(arguments: Namespace, image_size: int) -> dict[str, Any]:
    """What the result is to tell of the run beyond what fast_prune knows."""
    return {
        "model": arguments.model,
        "image_size": image_size,
        "small_images": arguments.small_images,
        "weights": None if arguments.weights is None else str(arguments.weights),
        "validation": None if arguments.validation is None else str(arguments.validation),
        "lr": arguments.lr,
    }


def _summary(result: PruneResult, arguments: Namespace) -> list[str]:
    kept, saved = result.indices.numel(), result.saved
    read, full = saved["samples_read"], saved["samples_read_full"]
    lines = [
        f"kept {kept:,} of {result.num_samples:,} images, written to {arguments.out}",
        f"read {read:,} images in {saved['seconds']:,.1f} s, {100 * read / full:.1f} % of the "
        f"{full:,} of an ordinary run",
    ]
    if result.unreadable:
        lines += _unreadable(result)
    if result.not_finite:
        lines.append(
            f"{len(result.not_finite)} images had a loss that was not finite, the first one is "
            f"number {result.not_finite[0]}"
        )
    if result.forced:
        lines.append(
            "forced: no epoch trained on as few images as this, the end cut down to the ratio; "
            "more epochs or a higher keep ratio would let the selection settle"
        )
    return [*lines, *_next_commands(arguments)]


def _unreadable(result: PruneResult) -> list[str]:
    count = len(result.unreadable)
    lines = [f"{count:,} unreadable {'image is' if count == 1 else 'images are'} not kept:"]
    lines += [f"  {reason}" for _, reason in result.unreadable[:_UNREADABLE_SHOWN]]
    if count > _UNREADABLE_SHOWN:
        lines.append(f"  and {count - _UNREADABLE_SHOWN:,} more, which the result lists")
    return lines


def _next_commands(arguments: Namespace) -> list[str]:
    result, stem = arguments.out, arguments.out.with_suffix("")
    commands = [
        f"export {_quoted(result)} --to paths --out {_quoted(f'{stem}.txt')}",
        f"export {_quoted(result)} --to links --out {_quoted(f'{stem}-images')}",
    ]
    if arguments.report is None:
        commands.insert(0, f"report {_quoted(result)} --out {_quoted(f'{stem}.html')}")
    return ["next:", *(f"  adapruner {command}" for command in commands)]


def _quoted(path: object) -> str:
    return shlex.quote(str(path))
