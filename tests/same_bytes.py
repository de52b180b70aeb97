"""Whether two versions of lensmith write the same bundles, byte by byte: for changes that must not change any.

python -m tests.same_bytes write path/to/lensmith before.json
python -m tests.same_bytes compare before.json after.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.paths import TINY

TRAINED = tuple(str(TINY / name) for name in ("qwen3_vl", "qwen3_5", "llava"))
DRAWN = ("tarn-2b", "qwen3-vl-2b", "vqwen3-4b", "nemotron-4b", "arlow-vision")
WAYS = (
    "--precision fp32",
    "--precision fp16",
    "--precision int8",
    "--precision int4 --golden always",
    "--precision int4 --group-size 32 --asymmetric",
    "--precision int4 --target cpu-any",
    "--precision int4 --target cuda",
    "--precision fp16 --target cuda-bf16",
    "--precision fp16 --format tensorrt --target rtx",
    "--precision int4 --format tensorrt --target jetson-orin-nx",
    "--precision fp8 --format tensorrt --target rtx-40",
    "--precision f32 --format gguf",
    "--precision bf16 --format gguf",
    "--precision q4_k_m --format gguf",
)
CALIBRATED = (
    "--calibrate auto --sample-count 8",
    "--precision int3 --calibrate mse --kv-cache int8 --sample-count 8",
    "--precision int4 --calibrate awq --sample-count 8",
    "--precision q4_0 --format gguf --calibrate imatrix --sample-count 8",
)


def exports(folder: Path, lensmith: str) -> Iterator[tuple[str, str]]:
    """Checkpoints and options: those that a version refuses count, too, by what it says."""
    for name in DRAWN:
        subprocess.run([lensmith, "synth", name, "-o", str(folder / name), "--tiny"], check=True, capture_output=True)
    for checkpoint in (*TRAINED, *(str(folder / name) for name in DRAWN)):
        yield from ((checkpoint, way) for way in WAYS)
    for checkpoint in TRAINED:
        yield from ((checkpoint, way) for way in CALIBRATED)


def hashes(bundle: Path) -> dict[str, str]:
    """The hash of each file; of the manifest without its version."""
    found = {}
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == "lensmith.json":
            manifest = json.loads(data)
            data = json.dumps({key: value for key, value in manifest.items() if key != "version"}).encode()
        found[path.relative_to(bundle).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def write(lensmith: str, out: Path) -> None:
    """Export all and write down what came of it."""
    made: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for checkpoint, way in exports(folder, lensmith):
            bundle = folder / "bundle"
            options = [*way.split(), *([] if "--golden" in way else ["--golden", "never"])]
            ran = subprocess.run([lensmith, "export", checkpoint, "-o", str(bundle), *options], capture_output=True,
                                 text=True)  # fmt: skip
            said = " ".join(ran.stderr.replace(str(folder), "").split())
            key = f"{Path(checkpoint).name} {way}"
            made[key] = hashes(bundle) if ran.returncode == 0 else {"refused": f"{ran.returncode} {said[-300:]}"}
            print(ran.returncode, key, file=sys.stderr)
            shutil.rmtree(bundle, ignore_errors=True)
    out.write_text(json.dumps(made, indent=1))


def compare(before: Path, after: Path) -> int:
    """Print what differs; the number of exports that do."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    differing = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    for key in sorted(differing):
        had, has = old.get(key, {}), new.get(key, {})
        names = [name for name in had.keys() | has.keys() if had.get(name) != has.get(name)]
        print(f"{key}: {', '.join(f'{name} {has.get(name)}' if name == 'refused' else name for name in sorted(names))}")
    print(f"{len(old)} exports before, {len(new)} after, {len(differing)} differ")
    return len(differing)


def main() -> int:
    """The exit code: 1 where bundles differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("write", "compare"))
    parser.add_argument("first")
    parser.add_argument("second", type=Path)
    given = parser.parse_args()
    if given.verb == "write":
        write(given.first, given.second)
        return 0
    return 1 if compare(Path(given.first), given.second) else 0


if __name__ == "__main__":
    sys.exit(main())
