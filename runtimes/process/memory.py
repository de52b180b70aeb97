"""How much memory this process took, on each system; the standard library alone, as Pythons without lensmith run it."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident; 0 where the system does not tell.

    Linux lets `ru_maxrss` begin with the memory of the process that started this one, so its status file is read.
    """
    try:
        return int(STATUS.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return _told()


if sys.platform == "win32":

    class _Counters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS of psapi.h."""

        _fields_ = (
            ("size", ctypes.c_uint32),
            ("page_faults", ctypes.c_uint32),
            *((name, ctypes.c_size_t) for name in ("peak_resident", "resident", *"abcd", "paged", "peak_paged")),
        )

    def _told() -> int:
        counters, kernel = _Counters(size=ctypes.sizeof(_Counters)), ctypes.WinDLL("kernel32")
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        asked = kernel.K32GetProcessMemoryInfo
        asked.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
        done = asked(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size)
        return int(counters.peak_resident) if done else 0

else:

    def _told() -> int:
        import resource  # which not all systems that have no /proc have

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
