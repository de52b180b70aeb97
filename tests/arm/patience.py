"""What of the tests on emulated processors the whole suite has time for."""

from __future__ import annotations

import os

import pytest

SWITCH = "LENSMITH_ARM_TESTS"  # set by `make test-arm`


def take_time(quick: bool) -> None:
    """Skip a test that is not among the quick ones, unless all were asked for."""
    if not quick and SWITCH not in os.environ:
        pytest.skip("an emulated processor takes long for it: `make test-arm` runs it")
