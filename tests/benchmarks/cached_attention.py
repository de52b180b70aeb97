"""Attention over a KV cache, one operator: float16 and int8 by lensmith, int8 by ONNX Runtime.

python tests/benchmarks/cached_attention.py [--heads 16] [--kv-heads 8] [--width 128] [--threads 2]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import lensmith.targets.telemetry  # noqa: F401  (before onnxruntime)
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.runtimes.engines.test_cached_attention import CACHES, Attention

CASES = ((1, 4000), (1, 31000), (512, 0), (512, 4000), (512, 30000))  # new tokens, and those before them
REPEATS = 7


def milliseconds(case: Attention, *, native: bool, threads: int) -> float:
    """The median; keys and values enter their cache in place, as in a conversation."""
    feed, session = case.inputs(), case.session(native=native, threads=threads)
    binding, spent = session.io_binding(), list[float]()
    for name in CACHES:
        buffer = ort.OrtValue.ortvalue_from_numpy(feed.pop(name))
        binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_output(name.replace("past", "present"), buffer)
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    binding.bind_output("output")
    for _ in range(1 + REPEATS):
        begun = time.perf_counter()
        session.run_with_iobinding(binding)
        spent.append(1000 * (time.perf_counter() - begun))
    return median(spent[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("heads", 16), ("kv-heads", 8), ("width", 128), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    table = Table("new tokens", "before", "float16, ms", "int8, ms", "ONNX Runtime's int8, ms")
    for new, past in CASES:
        halves = Attention(args.heads, args.kv_heads, args.width, new, (past,), past + new)
        bytes_ = Attention(args.heads, args.kv_heads, args.width, new, (past,), past + new, int8=True)
        ways = ((halves, True), (bytes_, True), (bytes_, False))
        spent = (milliseconds(case, native=native, threads=args.threads) for case, native in ways)
        table.add_row(str(new), str(past), *(f"{each:.2f}" for each in spent))
    Console().print(table)


if __name__ == "__main__":
    main()
