"""Fixtures for the scheduler tests."""

import threading
from collections.abc import Iterator

import pytest

from tests.generation.scheduling import Gated
from wholegpt.generation.scheduler import COMPILER_THREADS, ENGINE_THREAD


@pytest.fixture
def gated() -> Iterator[Gated]:
    model = Gated()
    yield model
    model.open()


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    yield
    left = [
        one.name for one in threading.enumerate() if one.name.startswith((ENGINE_THREAD, COMPILER_THREADS))
    ]
    assert not left
