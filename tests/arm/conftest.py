"""The emulated Arm system, or one sentence that says why there is none."""

from __future__ import annotations

import pytest

from tests.arm.debian import Unavailable
from tests.arm.root import ArmRoot, arm_root


@pytest.fixture(scope="session")
def arm() -> ArmRoot:
    try:
        return arm_root()
    except Unavailable as error:
        pytest.skip(str(error))
