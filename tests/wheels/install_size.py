"""What an installation of lensmith takes, by package, and what `lensmith run` imports of it.

    python tests/wheels/install_size.py BUNDLE PICTURE

Run it with the Python of a fresh environment in which lensmith is installed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import re
import sys
from collections.abc import Iterator, Sequence


def needed(name: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Each package that one needs without any extra, and by whom; of other systems' packages none is installed."""
    for requirement in importlib.metadata.requires(name) or ():
        found = re.match(r"[\w.-]+", requirement)
        other = plain(found[0]) if found and "extra ==" not in requirement else name
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(other)
            if other not in seen:
                seen.add(other)
                yield other, name
                yield from needed(other, seen)


def plain(name: str) -> str:
    """The name of a package, of which there are several spellings."""
    return re.sub(r"[-_.]+", "-", name).lower()


def size(name: str) -> int:
    """Bytes of the files that a package brought, without what Python compiled of them."""
    files = importlib.metadata.files(name) or ()
    paths = [str(file.locate()) for file in files if file.suffix != ".pyc"]
    return sum(_bytes_of(path) for path in paths)


def _bytes_of(path: str) -> int:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.seek(0, io.SEEK_END)
    return 0


def imported(bundle: str, picture: str) -> set[str]:
    """The packages of which `lensmith run` imports something."""
    from lensmith.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["run", bundle, "What is shown?", "--image", picture, "--max-new-tokens", "2"])
    owners = importlib.metadata.packages_distributions()
    return {plain(owner) for module in list(sys.modules) for owner in owners.get(module.partition(".")[0], ())}


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    packages = {"lensmith": "", **dict(needed("lensmith", {"lensmith"}))}
    used, sizes = imported(*arguments), {name: size(name) for name in packages}
    print(f"{'package':<20} {'MB':>6}  {'imported':<9} needed by")
    for name in sorted(packages, key=lambda name: -sizes[name]):
        print(f"{name:<20} {sizes[name] / 1e6:>6.1f}  {'yes' if name in used else 'no':<9} {packages[name]}")
    print(f"{'together':<20} {sum(sizes.values()) / 1e6:>6.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
