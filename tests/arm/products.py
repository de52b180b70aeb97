"""Every kind of packed product on the processor that runs this, in lensmith's sessions and in stock ones.

Runs without lensmith's tests and exporters: python products.py GRAPHS RESULTS.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from lensmith.runtimes.engines.onnx.sessions import session


def main(folder: Path, results: Path) -> None:
    """Feeds each graph of a folder its rows, one and all of them, and writes "stock NAME ROWS" and "ours NAME ROWS"."""
    found = {}
    for graph in sorted(folder.glob("*.onnx")):
        rows = np.load(graph.with_suffix(".npy"))
        sessions = {"stock": ort.InferenceSession(graph), "ours": session(graph, 2)}
        for whose, made in sessions.items():
            for count in (1, len(rows)):
                found[f"{whose} {graph.stem} {count}"] = made.run(None, {"x": rows[:count]})[0]
    np.savez(results, **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
