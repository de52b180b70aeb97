"""Whether the engines of a bundle can be run as it is wished: on which device, with what options, and after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ...targets.errors import InputError
from ..bundle.manifest import Manifest
from ..bundle.opening import Bundle
from ..values import truth, whole
from .cuda.cuda_executor import cuda_works
from .engine_table import CPU, CUDA, DEVICES, Wishes, engines_of

MOST_THREADS = 256  # or as many as there are cores
T = TypeVar("T")


def check_wishes(bundle: Bundle, wishes: Wishes) -> None:
    """Raises InputError for wishes out of range, and for those that the engines of a bundle cannot obey."""
    if wishes.device not in (None, *DEVICES):
        raise InputError(f"unknown device {wishes.device!r}; expected one of {', '.join(DEVICES)}")
    if wishes.device == CUDA and not for_cuda(bundle.manifest):
        raise InputError(
            f"the bundle {bundle.path} is for the target {bundle.manifest.target}, not for CUDA; "
            "export it with --target cuda"
        )
    if wishes.threads is not None:
        whole("threads", wishes.threads, 1, max(MOST_THREADS, os.cpu_count() or 1))
    truth("profile", wishes.profile)
    truth("native", bool(wishes.native) if wishes.native is None else wishes.native)
    asked = {
        "native": (wishes.native is True, "native=True"),
        "profile": (wishes.profile, "profile=True"),
        "device": (wishes.device is not None, f"device={wishes.device!r}"),
    }
    for name, (given, words) in asked.items():
        if given and not all(name in engine.obeys for engine in engines_of(bundle, wishes.device).values()):
            raise InputError(f"{words} has no effect on the engine of the bundle {bundle.path}; leave it out")


def remade_on_cpu(bundle: Bundle, wishes: Wishes, make: Callable[[Bundle], T]) -> Callable[[], T] | None:
    """How a forked process opens the engines of a bundle again: with the same files. None for those on a GPU."""
    if on_gpu(bundle, wishes.device):
        return None
    lasting = replace(bundle, path=Path(os.path.abspath(bundle.path)))
    return lambda: made_of(lasting.again(), make)


def made_of(bundle: Bundle, make: Callable[[Bundle], T]) -> T:
    """The engines of a bundle. InputError where a file was changed since it was checked."""
    made = make(bundle)
    bundle.check_unchanged()
    return made


def on_gpu(bundle: Bundle, device: str | None) -> bool:
    """Whether some graph of a bundle is computed on a GPU."""
    return any(engine.on_gpu for engine in engines_of(bundle, device).values())


def usable_device(manifest: Manifest) -> str | None:
    """The device to prove a new bundle on: the CPU for one whose GPU is not here."""
    return CPU if for_cuda(manifest) and not cuda_works() else None


def for_cuda(manifest: Manifest) -> bool:
    """Whether graphs of a bundle are of the dialect for CUDA."""
    return any(graph.dialect == CUDA for graph in manifest.graphs.values())
