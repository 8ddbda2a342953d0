"""How the tests run: each process on one thread, and the files that take longest first.

It lies in the root, which pytest so puts on the path first: `tests/dyngen` would hide `dyngen`.
"""

import os

import pytest
from hypothesis import settings

# Tensors here are tiny, and threads that wait for each other slow. Whatever is imported or started
# from here on reads these.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

settings.register_profile("shared", deadline=None)  # how long an example takes is up to the machine
settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with files that hold something slow, so that no process ends long after the others."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
