"""What decides the bits of a result: the engine and its version, lensmith's own kernels, the processor, its threads."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime as ort

from ..bundle.opening import Bundle
from ..process.cpu import CPUINFO, cpu_features
from .engine_table import LLAMACPP, engines_of
from .native import LIBRARY, wanted_kernels
from .run_wishes import on_gpu

MODEL_FIELDS = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU architecture", "CPU part")


def arithmetic(
    bundle: Bundle, *, threads: int | None = None, native: bool | None = None, device: str | None = None
) -> str | None:
    """One line that is the same wherever a bundle must give the same bits; arguments as of `load`.

    None where that cannot be promised: on GPUs, and on processors that the system does not describe.
    """
    cpu = processor()
    if cpu is None or on_gpu(bundle, device):
        return None
    return f"{libraries(bundle, native=native, device=device)}, {cpu}, {threads or os.cpu_count()} threads"


def libraries(bundle: Bundle, *, native: bool | None = None, device: str | None = None) -> str:
    """The engine of a bundle with its version, and lensmith's kernels; arguments as of `load`."""
    engine = _llama_cpp() if LLAMACPP in engines_of(bundle, device) else f"onnxruntime {ort.__version__}"
    kernels = f"kernels {_digest([LIBRARY])}" if wanted_kernels(native) else "no kernels of lensmith"
    return f"{engine}, {kernels}"


def own_version() -> str:
    """The version of lensmith that is installed; "source" for a copy of its source."""
    try:
        return version("lensmith")
    except PackageNotFoundError:
        return "source"


@functools.cache
def processor(cpuinfo: Path = CPUINFO) -> str | None:
    """The model of this processor and a hash of its instruction sets; None where Linux does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    first: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        first.setdefault(name.strip(), value.strip())
    found = [first[name] for name in MODEL_FIELDS if name in first]
    features = hashlib.sha256(" ".join(sorted(cpu_features(cpuinfo))).encode()).hexdigest()[:8]
    return " ".join([platform.machine(), *found, features]) if found else None


def _llama_cpp() -> str:
    package = importlib.import_module("llama_cpp")
    libraries = Path(str(package.__file__)).parent.glob("lib/*")
    return f"llama.cpp of llama-cpp-python {package.__version__} {_digest(libraries)}"


def _digest(paths: Iterable[Path]) -> str:
    return _digest_of(tuple(sorted(path for path in paths if path.is_file())))


@functools.cache
def _digest_of(paths: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
