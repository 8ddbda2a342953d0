"""What the tests of rollouts share."""

import os

import pytest


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave writes to the system's cache, which outlives a killed process, to save a minute."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
