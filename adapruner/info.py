"""How this adapruner was built and what it can do: ``python -m adapruner.info``."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from importlib import import_module
from typing import Any

_NOT_FOR_USERS = ("all", "dev", "docs")
_INSTRUCTION_SETS = {
    "baseline": "baseline",
    "v3": "v3 (x86-64-v3: AVX2)",
    "v4": "v4 (x86-64-v4: AVX-512)",
}


def describe() -> str:
    """Versions, the native library and the extras as lines of text, with what is broken."""
    sections = [
        ("", _versions()),
        ("native library", _native_library()),
        ("extras", [(extra, _extra(extra, needs)) for extra, needs in extras().items()]),
    ]
    lines = []
    for title, rows in sections:
        lines += [title] if title else []
        indent = "  " if title else ""
        lines += [f"{indent}{name:<{17 - len(indent)}}{value}" for name, value in rows]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Processor, cores, torch's threads, versions and date, for files of measurements.

    The name of the processor needs py-cpuinfo. Without it, the architecture stands in its place.
    """
    torch = import_module("torch")
    try:
        processor = import_module("cpuinfo").get_cpu_info().get("brand_raw")
    except ImportError:
        processor = None
    return {
        "processor": processor or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "adapruner": version_of("adapruner"),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def extras() -> dict[str, list[str]]:
    """The optional dependencies of each extra, as the installed package lists them."""
    found: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("adapruner") or []:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", requirement)
        if name and extra and extra[1] not in _NOT_FOR_USERS:
            found.setdefault(extra[1], []).append(name[0])
    return found


def version_of(distribution: str) -> str | None:
    """The version of a distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[tuple[str, str]]:
    return [
        ("adapruner", version_of("adapruner") or "not installed"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *(
            (name, version_of(name) or "not installed")
            for name in ("torch", "numpy", "safetensors")
        ),
    ]


def _native_library() -> list[tuple[str, str]]:
    try:
        torch = import_module("torch")
        library: Any = import_module("adapruner._C")
    except ImportError as error:
        return [("broken", f"the library cannot be loaded: {error}")]
    built = library.build_info()
    chosen = built["instruction_set"]
    asked = os.environ.get("ADAPRUNER_ISA")
    return [
        ("file", str(library.__file__)),
        ("compiler", built["compiler"]),
        ("built with", f"torch {built['torch']}"),
        ("instructions", " ".join(built["instruction_sets"])),
        (
            "in use",
            _INSTRUCTION_SETS.get(chosen, chosen)
            + (f"; asked for with ADAPRUNER_ISA: {asked}" if asked else ""),
        ),
        ("threads", f"{torch.get_num_threads()}, {'with' if built['openmp'] else 'no'} OpenMP"),
        ("CUDA", _cuda(built)),
    ]


def _cuda(built: dict[str, Any]) -> str:
    if built["cuda"] is None:
        return f"no kernels: {built['no_cuda']}; all operators run on the CPU"
    kernels = f"kernels of CUDA {built['cuda']['version']} for {built['cuda']['architectures']}"
    torch = import_module("torch")
    if not torch.cuda.is_available():
        return f"{kernels}; torch sees no GPU"
    return f"{kernels}; {torch.cuda.get_device_name()}"


def _extra(name: str, needs: list[str]) -> str:
    versions = {need: version_of(need) for need in needs}
    missing = [need for need, version in versions.items() if version is None]
    if missing:
        return f'{", ".join(missing)} not installed: pip install "adapruner[{name}]"'
    return ", ".join(f"{need} {version}" for need, version in versions.items())


if __name__ == "__main__":
    print(describe())
