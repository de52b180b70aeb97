"""How far tensors of GGUF files may be from their floats, for disturbances of known size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from lensmith.exporters.formats.gguf.written_tensors import _check, limit
from lensmith.targets.errors import CheckFailed
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ROWS, COLUMNS = 64, 256
PLAIN = np.sign(np.random.default_rng(0).normal(size=(ROWS, COLUMNS))).astype(np.float32)  # all rows of size 1
FILE = Path("model.gguf")


def tensor(values: Floats, kind: Type = Type.F32) -> Any:
    data = values if kind == Type.F32 else gguf.quants.quantize(values, kind)
    return SimpleNamespace(name="x", shape=np.array(values.shape[::-1]), tensor_type=kind, data=data)


def checked(values: Floats, kind: Type) -> str:
    """What is wrong with stored values in place of PLAIN."""
    try:
        _check(tensor(PLAIN), tensor(values, kind), FILE)
    except CheckFailed as error:
        return str(error)
    return ""


def row_off(by: float) -> Floats:
    values = PLAIN.copy()
    values[5] *= np.float32(1 + by)
    return values


@pytest.mark.parametrize(
    ("kind", "bits"), [(Type.Q8_0, 8.5), (Type.Q4_0, 4.5), (Type.Q2_K, 2.625), (Type.IQ1_S, 1.5625)]
)
def test_limits_follow_the_bits(kind: Type, bits: float) -> None:
    """Three times 2^-bits, scales among them; never as much as another tensor would be off."""
    assert limit(SimpleNamespace(tensor_type=kind)) == pytest.approx(min(3 * 2**-bits, 0.95))


def test_floats_are_as_exact_as_their_mantissa() -> None:
    """10 bits behind the leading one in float16, 7 in bfloat16; float32 is what it was."""
    found = [limit(SimpleNamespace(tensor_type=kind)) for kind in (Type.F32, Type.F16, Type.BF16)]
    assert found == [0, 2**-11, 2**-8]
    assert checked(PLAIN, Type.F32) == checked(PLAIN, Type.F16) == checked(PLAIN, Type.BF16) == ""
    assert "in some rows" in checked(PLAIN * np.float32(1 + 2**-20), Type.F32)


@pytest.mark.parametrize(
    ("kind", "within", "over"), [(Type.BF16, 0.0, 2**-7), (Type.Q8_0, 0.007, 0.01), (Type.TQ2_0, 0.6, 0.8)]
)
def test_whole_tensors(kind: Type, within: float, over: float) -> None:
    assert checked(PLAIN * np.float32(1 + within), kind) == ""
    assert "off by more" in checked(PLAIN * np.float32(1 + over), kind)


@pytest.mark.parametrize(("kind", "within", "over"), [(Type.Q8_0, 0.02, 0.03), (Type.TQ2_0, 0.9, 1.0)])
def test_single_rows(kind: Type, within: float, over: float) -> None:
    """Three times what the tensor may be, which one row in 64 would hide; at most nearly their own size."""
    assert checked(row_off(within), kind) == ""
    assert "in some rows" in checked(row_off(over), kind)


def test_other_tensors() -> None:
    moved = np.roll(PLAIN, 1, axis=0)
    assert "in some rows" in checked(moved, Type.TQ2_0)
    broken = PLAIN.copy()
    broken[0, 0] = np.nan
    assert "in some rows" in checked(broken, Type.F16)
    for other in (None, tensor(PLAIN[1:]), tensor(PLAIN.T.copy())):
        with pytest.raises(CheckFailed, match="x is missing, or of another shape"):
            _check(tensor(PLAIN), other, FILE)
