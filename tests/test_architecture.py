"""The house: imports run one way, and nothing of a workplace or a terminal is in the library."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOME, WORK = (f"/{name}" for name in ("home", "work"))  # so that this file has no such path

# What each room of dyngen/ may import: other rooms, and packages besides the standard library.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "diffusion": (set(), {"torch"}),
    "motion": (set(), {"torch", "numpy", "numba", "triton"}),
    "networks": (set(), {"torch", "einops"}),
    "metrics": (set(), {"torch", "torchmetrics", "numpy"}),
    "simulate": (set(), {"torch"}),
    "rollout": ({"diffusion"}, {"torch", "numpy", "xarray", "zarr", "dask", "cftime", "rich"}),
    "models": (
        {"networks", "diffusion", "motion", "metrics", "data_modules"},
        {"torch", "numpy", "lightning", "diffusers", "safetensors"},
    ),
    "view": ({"motion"}, {"torch", "numpy", "xarray", "scipy", "PIL"}),
    "report": ({"metrics"}, {"numpy", "xarray", "matplotlib", "torch", "PIL", "cartopy"}),
}
ABOVE = {"callbacks": {"rollout", "metrics", "report", "models", "diffusion", "data_modules"}}
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:home|Users|root|tmp|work|mnt|scratch|data)/\w")


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that a source imports, absolute, wherever in it and by whatever form.

    Args:
        source: Python code.
        package: the package it lies in, such as ``dyngen.rollout``, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # `from dyngen import rollout` imports a room as well as `import dyngen.rollout`.
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _called(call: ast.Call) -> str:
    function = call.func
    return getattr(function, "attr", getattr(function, "id", ""))


def faults(source: str, place: str) -> list[str]:
    """What a source at ``place``, relative to the root, has that its place forbids."""
    found = []
    package = ".".join(Path(place).parent.parts)
    top, room, *_ = [*Path(place).with_suffix("").parts, ""]
    for module in imports(source, package):
        other, inner, *_ = [*module.split("."), ""]
        if other == "torchvision":
            found.append("imports torchvision, which the default path does without")
        if top == "data_modules":
            if other == "dyngen" and inner != "simulate":
                found.append(f"imports dyngen.{inner}; data_modules may import dyngen.simulate")
            continue
        rooms, packages = ROOMS.get(room, (ABOVE.get(room), None))
        if rooms is None:
            continue  # the command line and what is beside it import everything
        wanted = inner if other == "dyngen" else other
        if other in {"dyngen", "data_modules"}:
            if wanted not in rooms | {room}:
                found.append(f"imports {other}.{inner}; {room} may import {sorted(rooms)}")
        elif packages is not None and other not in packages | set(sys.stdlib_module_names):
            found.append(f"imports {other}; {room} may import {sorted(packages)}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            found.append(f"prints in line {node.lineno}; use logging")
    found += [f"names a path of one machine: {p}" for p in MACHINE_PATH.findall(source)]
    return found


def library() -> list[Path]:
    files = [f for top in ("dyngen", "data_modules") for f in sorted((ROOT / top).rglob("*.py"))]
    assert len(files) > 20
    return files


@pytest.mark.parametrize("file", library(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_keeps_the_rules_of_its_room(file: Path) -> None:
    assert faults(file.read_text(), str(file.relative_to(ROOT))) == []


def test_rooms_do_not_import_each_other_in_circles() -> None:
    reached = {
        room: {r for r in rooms if r != "data_modules"} for room, (rooms, _) in ROOMS.items()
    }
    reached |= {room: rooms - {"data_modules"} for room, rooms in ABOVE.items()}
    order: list[str] = []
    while reached:
        free = [room for room, rooms in reached.items() if rooms <= set(order)]
        assert free, f"a circle among {sorted(reached)}"
        order += free
        reached = {room: rooms for room, rooms in reached.items() if room not in free}


def test_every_room_is_in_the_table() -> None:
    rooms = {folder.name for folder in (ROOT / "dyngen").iterdir() if any(folder.glob("*.py"))}
    assert rooms <= set(ROOMS) | set(ABOVE)


@pytest.mark.parametrize("folder", ["tests", "experiments", "benchmarks", "docs"])
def test_nothing_names_a_path_of_one_machine(folder: str) -> None:
    files = [
        file
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".yaml", ".md", ".toml", ".sh"} and file != Path(__file__)
    ]
    for file in [*files, *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]:
        assert MACHINE_PATH.findall(file.read_text()) == [], file


@pytest.mark.parametrize(
    ("place", "source", "told"),
    [
        ("dyngen/diffusion/a.py", "import dyngen.rollout.store", "imports dyngen.rollout"),
        ("dyngen/diffusion/a.py", "from dyngen import models", "imports dyngen.models"),
        ("dyngen/diffusion/a.py", "from ..networks import unet", "imports dyngen.networks"),
        ("dyngen/diffusion/a.py", "from .. import report as r", "imports dyngen.report"),
        ("dyngen/diffusion/a.py", "def f():\n    import numpy", "imports numpy"),
        ("dyngen/diffusion/a.py", "if 0:\n  from data_modules import x", "imports data_modules"),
        ("dyngen/rollout/a.py", "class A:\n  from dyngen.models import m", "imports dyngen.models"),
        ("dyngen/rollout/a.py", "import os, lightning", "imports lightning"),
        ("dyngen/metrics/a.py", "__import__('dyngen.cli')", "imports dyngen.cli"),
        ("dyngen/models/a.py", "importlib.import_module('dyngen.rollout')", "imports dyngen.rollo"),
        ("dyngen/callbacks/a.py", "import dyngen.cli", "imports dyngen.cli"),
        ("data_modules/a.py", "from dyngen.diffusion import noise", "imports dyngen.diffusion"),
        ("data_modules/a.py", "from dyngen import cli", "imports dyngen.cli"),
        ("dyngen/cli.py", "def f():\n  from torchvision.ops import nms", "imports torchvision"),
        ("dyngen/report/a.py", "print('done')", "prints in line 1"),
        ("dyngen/cli.py", f"PATH = '{HOME}/me/x.zarr'", f"a path of one machine: {HOME}/m"),
        ("data_modules/a.py", f'x = f"{WORK}/main"', f"a path of one machine: {WORK}/m"),
    ],
)
def test_an_offence_is_found(place: str, source: str, told: str) -> None:
    (fault,) = faults(source, place)
    assert told in fault


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("dyngen/rollout/a.py", "import json, numpy as np\nfrom dyngen.diffusion import noise"),
        ("dyngen/rollout/a.py", "from . import store\nfrom .store import open_rollout"),
        ("dyngen/diffusion/a.py", "def f():\n  import torch.nn.functional as F\n  pprint(1)"),
        ("dyngen/cli.py", "import dyngen.models, pandas"),
        ("data_modules/a.py", "from dyngen.simulate import turbulence\nx = 'runs/data/x'"),
    ],
)
def test_what_is_allowed_is_no_offence(place: str, source: str) -> None:
    assert faults(source, place) == []
