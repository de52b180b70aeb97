"""What a bundle itself gave when it was built, kept in its `golden/` folder, and how far another run may be from it.

The same kernels must give the same bits. Others add in another order, by which float32 differs in its last bits. Where
activations are rounded to 8 or 16 bits, that is enough for some of them to fall on the other side of a half: each is a
whole step off, which flips others behind it, until every activation is as good as rounded anew. So the difference of
two right runs is about that of rounding itself, whatever made the first bit differ. A build measures it: with other
kernels, and with pixels that are one float32 off. See `Spread`.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ...targets.errors import InputError
from ..bundle.opening import Bundle
from ..engines.contract import Floats
from ..storage.array_files import read_arrays, take_array, write_arrays
from ..storage.files import dump_json, hash_file, write_json
from .outputs import Fed, Output
from .replay import Row
from .trace_entries import BuiltEntry, briefly, read_entry

FOLDER = "golden"  # of a bundle, with its traces
RECORD, SAMPLES = f"{FOLDER}/built.json", f"{FOLDER}/built.npz"
SAMPLED = 256  # values that are kept of an output, spread over it
# Other kernels on the same machine were off by 0.9 to 1.2 times what noise alone makes of a bundle. Other processors
# round at other places or more coarsely (rows in place of blocks of 32), which adds in squares.
ROW, OVERALL = 4.0, 3.0  # times the largest spread of an output, and of all outputs of a graph together
FLOOR = 2e-5  # what float32 alone may differ by; kernels of one machine are 1e-6 apart
PARTS = 16  # hexadecimal digits of a hash
SECTIONS = ("prompt", "image", "video", "limits")  # of the manifest


@dataclass(frozen=True)
class Spread:
    """How far runs of the same bundle were apart at its build: for one output at most, and over all of a graph."""

    row: float = 0.0
    overall: float = 0.0

    def limits(self) -> tuple[float, float]:
        """How far another run may be off in one output, and over all."""
        return max(ROW * self.row, FLOOR), max(OVERALL * self.overall, FLOOR)


@dataclass(frozen=True)
class Built:
    """The record: hashes by what computed them and by output, samples of the outputs, and the spread by graph.

    `settings`: hashes of what it was computed with.
    """

    digests: Mapping[str, Mapping[str, str]]
    samples: Mapping[str, Floats]
    spread: Mapping[str, Spread] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


def key(output: Output) -> str:
    """What an output is called in the record."""
    return f"{output.case}: {output.name}"


def digest(values: Floats) -> str:
    """A hash of the bits and the shape of an output."""
    found = np.ascontiguousarray(values, np.float32)
    return hashlib.sha256(str(found.shape).encode() + found.tobytes()).hexdigest()[:PARTS]


def settings_of(bundle: Bundle) -> dict[str, str]:
    """Hashes of what a bundle computes with: its files but for the traces, and sections of the manifest.

    Those of files are the manifest's own, if it has them.
    """
    listed = {name: entry.sha256 for name, entry in bundle.manifest.files.items() if not name.startswith(f"{FOLDER}/")}
    files = {name: known or hash_file(bundle.file(name))["sha256"] for name, known in listed.items()}
    sections = {name: dump_json(bundle.content[name]).encode() for name in SECTIONS if name in bundle.content}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sections.items()}
    return {name: found[:PARTS] for name, found in {**files, **hashes}.items()}


def sample(values: Floats) -> Floats:
    """Up to SAMPLED values at equal distances, none of them a power of two, so that they lie in all columns."""
    step = -(-values.size // SAMPLED)
    return values.reshape(-1)[:: step + (step % 2 == 0)].astype(np.float32)


class Run:
    """One run of a bundle: hashes and samples of all its outputs, which are worth no more than the next step."""

    def __init__(self, outputs: Iterable[Fed | Output]) -> None:
        self.digests: dict[str, str] = {}
        self.samples: dict[str, Floats] = {}
        self.graphs: dict[str, str] = {}
        for output in outputs:
            if isinstance(output, Output):
                name = key(output)
                self.digests[name], self.samples[name] = digest(output.values), sample(output.values)
                self.graphs[name] = output.graph


def spread(base: Run, others: Iterable[Run]) -> dict[str, Spread]:
    """How far other runs are from the first, by graph, in what they gave."""
    found: dict[str, Spread] = {}
    for other in others:
        sums = Sums()
        for name, graph in other.graphs.items():
            sums.add(graph, other.samples[name], base.samples[name])
        found = {graph: widest(found.get(graph, Spread()), sums.spread(graph)) for graph in sums.graphs}
    return found


def widest(one: Spread, other: Spread) -> Spread:
    """The larger one of each figure."""
    return Spread(max(one.row, other.row), max(one.overall, other.overall))


class Sums:
    """Root mean squares of differences, relative to the spread of what was expected: of an output and of a graph."""

    def __init__(self) -> None:
        self._shares: dict[str, list[float]] = defaultdict(list)

    def add(self, graph: str, found: Floats, expected: Floats) -> float:
        """The difference of one more output of a graph; infinite for another shape and what is not finite."""
        value = _difference(found, expected)
        self._shares[graph].append(value)
        return value

    def overall(self, graph: str) -> float:
        """Of all outputs of a graph so far, each of which counts the same."""
        shares = self._shares[graph]
        return math.sqrt(sum(value**2 for value in shares) / len(shares))

    def spread(self, graph: str) -> Spread:
        """The largest of an output, and of all."""
        return Spread(max(self._shares[graph]), self.overall(graph))

    @property
    def graphs(self) -> tuple[str, ...]:
        """Those that had outputs."""
        return tuple(self._shares)


def _difference(found: Floats, expected: Floats) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return math.inf
    wide = expected.astype(np.float64)
    size = float(np.sqrt(np.square(wide - wide.mean()).mean())) if wide.size else 0.0
    off = float(np.sqrt(np.square(found - wide).mean())) if wide.size else 0.0
    return off / (size or 1.0)


class AgainstBuilt:
    """Compares one output after another: bits where the same kernels were recorded, else values within limits."""

    def __init__(self, built: Built, arithmetic: str | None) -> None:
        self.built = built
        self.bits = built.digests.get(arithmetic or "")
        self._sums = Sums()

    def settings(self, bundle: Bundle) -> Iterator[Row]:
        """Whether files and settings are those of the build, also where neither traces nor limits show it."""
        found = settings_of(bundle)
        for name in sorted({*found, *self.built.settings}):
            same = found.get(name) == self.built.settings.get(name)
            yield Row("settings", name, "settings_differ", float(not same), 0.0, same)

    def rows(self, output: Fed | Output) -> Iterator[Row]:
        """The figure of an output, judged."""
        if isinstance(output, Fed):
            return
        name = key(output)
        if self.bits is not None:
            same = self.bits.get(name) == digest(output.values)
            yield Row(output.case, output.name, "bits_differ", float(not same), 0.0, same)
        else:
            expected = self.built.samples.get(name, np.zeros(0, np.float32))
            value = self._sums.add(output.graph, sample(output.values), expected)
            limit = self._spread(output.graph).limits()[0]
            yield Row(output.case, output.name, f"{output.kind}_change", value, limit, value <= limit)

    def overall(self) -> Iterator[Row]:
        """The figures of whole graphs, behind the last output."""
        for graph in self._sums.graphs:
            value, limit = self._sums.overall(graph), self._spread(graph).limits()[1]
            yield Row("all cases", f"{graph}: all outputs", f"{graph}_change", value, limit, value <= limit)

    def _spread(self, graph: str) -> Spread:
        return self.built.spread.get(graph, Spread())


def write_built(built: Built, record: Path, samples: Path) -> None:
    """Write both files; the same record gives the same bytes."""
    spreads = {graph: asdict(value) for graph, value in built.spread.items()}
    write_json(record, {"digests": built.digests, "spread": spreads, "settings": built.settings})
    with open(samples, "wb") as file:
        write_arrays(file, built.samples)


def read_built(bundle: Bundle) -> Built:
    """The record of a bundle; InputError where there is none, or one that cannot be read."""
    if not {RECORD, SAMPLES} <= bundle.manifest.files.keys():
        raise InputError(
            f"the bundle {bundle.path} is of an older lensmith, which did not record what a bundle itself gives; "
            "export it again"
        )
    try:
        entry, arrays = read_entry(bundle.file(RECORD), BuiltEntry), read_arrays(bundle.file(SAMPLES))
        samples: dict[str, Floats] = {name: take_array(arrays, name, np.float32, None) for name in arrays}
    except (ValueError, RecursionError) as error:
        raise InputError(f"the record of {bundle.path} cannot be read ({briefly(error)}); export it again") from None
    spread = {graph: Spread(found.row, found.overall) for graph, found in entry.spread.items()}
    return Built(entry.digests, samples, spread, entry.settings)
