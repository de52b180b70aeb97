"""The machine's read bandwidth in GB/s, by a loop in C that gcc compiles for this processor.

python tests/benchmarks/bandwidth.py [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = 1 << 27  # 1 GiB, far above any cache


def bandwidth(threads: int, repeats: int = 5) -> float:
    """The median of several readings of 1 GiB, in GB/s."""
    words = np.ones(WORDS, np.uint64)
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "bandwidth.so")
        source = str(Path(__file__).with_suffix(".c"))
        subprocess.run(
            ["gcc", "-O3", "-march=native", "-pthread", "-shared", "-fPIC", source, "-o", library], check=True
        )
        read_all = ctypes.CDLL(library).read_all
    read_all.restype, read_all.argtypes = ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        found = read_all(words.ctypes.data, WORDS, threads)
        seconds.append(time.perf_counter() - started)
        if found != WORDS // threads * threads // 8 * 8:
            raise SystemExit(f"The loop read {found} of {WORDS} words")
    return words.nbytes / statistics.median(seconds) / 1e9


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{bandwidth(args.threads, args.repeats):.1f} GB/s with {args.threads} threads")


if __name__ == "__main__":
    main()
