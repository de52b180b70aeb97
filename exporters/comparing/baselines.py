"""Other ways to run a checkpoint beside PyTorch in its usual dtypes: PyTorch in 4 bits, and other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...targets.errors import InputError, closest
from ..checkpoint.folder import Checkpoint
from .contender import Assignment
from .torch_quantizers import QUANTIZERS, check_quantizer


def baseline_jobs(
    wishes: Sequence[str], shared: Mapping[str, Any], checkpoint: Checkpoint | None
) -> Iterator[Assignment]:
    """One for each wish, such as "bitsandbytes-nf4"; InputError for one that cannot be."""
    for wish in wishes:
        if wish not in QUANTIZERS:
            raise InputError(f"there is no baseline {wish!r}; {closest(wish, QUANTIZERS)}")
        if checkpoint is None:
            raise InputError(f"the baseline {wish} runs the checkpoint; name it with --against")
        check_quantizer(wish)
        yield Assignment(f"PyTorch {wish}", dtype="bfloat16", quantizer=wish, **shared)
