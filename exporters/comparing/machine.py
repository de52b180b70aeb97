"""The machine that figures were measured on."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

from ...runtimes.process.core_limits import available_cores

TOOLS = ("lensmith", "onnxruntime", "torch", "transformers", "numpy")


def environment() -> dict[str, str]:
    """The machine and the versions behind the figures."""
    versions = {name: importlib.metadata.version(name) for name in TOOLS if importlib.util.find_spec(name)}
    system = f"{platform.system()} {platform.machine()}"
    cores = f"{available_cores()} available"
    return {"CPU": cpu_name(), "cores": cores, "system": system, "Python": platform.python_version(), **versions}


def pin(threads: int) -> None:
    """Keep this process, and the threads that it will make, on its first cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver can be loaded, without which nothing runs on its GPUs."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def cpu_name() -> str:
    """The processor's own name for itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load_average() -> float:
    """Processes that wanted to run during the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
