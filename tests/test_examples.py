"""The examples run by their commands, and give the same figures for the same seed."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.pictures import make_pictures

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = Path(os.environ.get("ADAPRUNER_DATA", ""))
NEEDS = {
    "regression": ("sklearn", None),
    "language_model": (None, "tinyshakespeare"),
    "detection": ("pycocotools", "bccd"),
    "segmentation": ("PIL", "camvid"),
    "text": (None, "sst2"),
    "fine_tuning": ("efficientnet_lite_pytorch", None),
}
# Examples of a loop: what they need, their samples and their keep ratio.
LOOPS = {
    "mixed_precision_loop": ("sklearn", 1797, 0.7),
    "iterable": ("sklearn", 1797, 0.7),
    "lightning_digits": ("lightning", 1300, 0.7),
    "accelerate_digits": ("accelerate", 1797, 0.7),
    "timm_mixup": ("timm", 1797, 0.7),
    "hugging_face_trainer": ("transformers", 200, 0.7),
    "sft": ("trl", 276, 0.8),
}
WAYS = ["adapruner", "kept set, anew", "random part", "all data"]


@pytest.fixture(params=sorted(NEEDS))
def example(request: pytest.FixtureRequest) -> str:
    package, folder = NEEDS[request.param]
    if package is not None:
        pytest.importorskip(package)
    if folder is not None and not ("ADAPRUNER_DATA" in os.environ and (DATA / folder).is_dir()):
        pytest.skip(f"needs $ADAPRUNER_DATA with {folder}/")
    if request.param == "detection":
        pytest.importorskip("torchvision")
    return request.param


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(example: str, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The folder that the example takes: made images, or $ADAPRUNER_DATA."""
    if example == "regression":
        return None
    if example != "fine_tuning":
        return DATA
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "test"):
        make_pictures(folder / split, (20, 20), (32, 32))
    return folder


def test_its_command_prints_a_table(example: str, data: Path | None, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), "--quick", "--keep-ratio", "0.5"]
    if data is not None:
        command += ["--data", str(data)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == WAYS
    *parts, everything = [int(row[1]) for row in rows]
    assert parts == [math.floor(0.5 * everything + 0.5)] * 3
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("seeded")
def test_the_same_seed_gives_the_same(example: str, data: Path | None) -> None:
    module = load(example)
    arguments = () if data is None else (data,)
    # Fewer images than a batch make one step an epoch, which changes no answer of the network.
    most = 40 if example == "fine_tuning" else 16
    small = {} if data is None else {"most": most}
    one, other, another = (
        list(module.compare(*arguments, 0.5, 2, seed, **small)) for seed in (3, 3, 4)
    )
    assert one == other
    assert [row[2] for row in one] != [row[2] for row in another]


def test_two_processes_keep_the_same_samples(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun sets, which itself takes longer to start than the example.
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    given |= {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(EXAMPLES / "distributed.py"), "--epochs", "3"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "kept 650 of 1300, the same set on all 2 ranks" in said[0]
    assert said[1] == ""


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("name", LOOPS)
def test_an_example_of_a_loop_prunes(name: str, tmp_path: Path) -> None:
    package, samples, ratio = LOOPS[name]
    for needed in ("sklearn", package):
        pytest.importorskip(needed, reason=f"needs {needed}")
    run = load(name).run
    if name == "sft":
        result = run(str(tmp_path), 2).pruned_result()
    elif name == "hugging_face_trainer":
        result = run(str(tmp_path), 2, samples)[0]
    elif name == "timm_mixup":
        result = run(tmp_path, 2)[0]
    elif name == "lightning_digits":
        quiet = {"enable_progress_bar": False, "enable_checkpointing": False}
        result = run(2, accelerator="cpu", **quiet)[0]
    else:
        result = run(2)[0]
    assert result.num_samples == samples
    assert len(result.indices) == math.floor(ratio * samples + 0.5)
    assert not result.partial
