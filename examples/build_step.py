"""A build step of a continuous integration: export a checkpoint, replay its evidence, and bound the bundle's size.

python examples/build_step.py CHECKPOINT BUNDLE MOST_MB [options of lensmith export]
"""

import json
import subprocess
import sys
from pathlib import Path


def lensmith(*arguments: str) -> dict:
    """What a command prints as JSON; the build ends with its exit code where it fails."""
    command = [sys.executable, "-m", "lensmith.cli", *arguments, "--json"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        sys.exit(ran.returncode)
    return json.loads(ran.stdout)


def main(checkpoint: str, bundle: str, most_mb: str, *options: str) -> None:
    lensmith("export", checkpoint, "-o", bundle, "--force", *options)
    lensmith("verify", bundle)
    size = sum(file.stat().st_size for file in Path(bundle).rglob("*") if file.is_file())
    print(f"{bundle}: {size / 1e6:.2f} MB")
    if size > float(most_mb) * 1e6:
        sys.exit(f"the bundle has {size / 1e6:.2f} MB, more than the product's {most_mb}; try fewer bits or a budget")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
