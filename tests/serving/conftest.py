"""A server over one tiny model, for all tests of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lensmith.runtimes import Model, load


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    found = load(tiny_bundle, context=1024, conversations=2)
    assert isinstance(found, Model)
    return found


@pytest.fixture(scope="module")
def thinker(made: Callable[[str], Path]) -> Model:
    """One that thinks and calls tools in XML."""
    found = load(made("tarn-2b"), context=1024)
    assert isinstance(found, Model)
    return found


@pytest.fixture(scope="module")
def address(model: Model) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="needs lensmith[serve]")
    from tests.helpers.served import served

    with served({"tiny": model}, body_bytes=1 << 20, body_seconds=1.0, queue=2, most_new_tokens=600) as found:
        yield found
