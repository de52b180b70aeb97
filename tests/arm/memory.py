"""Peak memory of `lensmith run` on an emulated Arm processor, next to the size of the bundle that it maps.

python -m tests.arm.memory BUNDLE [--image FILE] [--processor cortex-a76]
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

from tests.arm.emulator import PROCESSORS, run
from tests.arm.root import arm_root

MB = 1_000_000


def main() -> None:
    """Ask a short question and print three figures; that of the peak counts the emulator too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, help="encoded before the question; a small one, or it takes hours")
    parser.add_argument("--processor", choices=PROCESSORS, default="cortex-a76")
    given = parser.parse_args()
    image = ["--image", given.image] if given.image else []
    run(arm_root(), given.processor, ["-m", "lensmith.cli", "run", given.bundle, "Hi", "--max-new-tokens", "3", *image])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    size = sum(path.stat().st_size for path in given.bundle.rglob("*") if path.is_file())
    print(f"bundle {size // MB} MB, peak {peak // MB} MB, difference {(peak - size) // MB} MB")


if __name__ == "__main__":
    main()
