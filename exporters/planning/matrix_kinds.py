"""The matrices of a model, those that are alike together: what a build takes and computes depends on them alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from ..graphs.dialect import Dialect
from ..graphs.graph_files import Graph
from ..job import Job
from ..storage.scheme import Policy, Scheme
from ..storage.weights import PAGE, stored_bytes

ROLES = ("decoder", "linear_attention", "table", "vision", "merger", "deepstack")  # that a policy decides about
ENCODER, DECODER = "vision_encoder", "decoder"


@dataclass(frozen=True)
class MatrixKind:
    """So many matrices [rows, columns] of one graph that are stored in one way."""

    graph: str
    rows: int
    columns: int
    scheme: Scheme
    count: int

    @property
    def part(self) -> str:
        """The role without its own part: "vision" of "vision.qkv"."""
        return self.scheme.role.partition(".")[0]

    @property
    def values(self) -> int:
        """Values of all of them together."""
        return self.count * self.rows * self.columns

    def under(self, policy: Policy) -> MatrixKind:
        """The same matrices as another policy stores them; those of no role stay as they are."""
        if self.part not in ROLES:
            return self
        return replace(self, scheme=policy.scheme(self.scheme.role, self.columns))

    def nbytes(self, dialect: Dialect) -> int:
        """Bytes in a data file, whose large tensors begin on a page."""
        matrix = dialect.matrix(self.rows, self.columns, self.scheme)
        return self.count * sum(_padded(stored_bytes(parameter)) for parameter in matrix.parameters(recurse=False))


@dataclass(frozen=True)
class Matrices:
    """All matrices of a model, and the bytes of what is none: norms, biases, positions."""

    kinds: tuple[MatrixKind, ...]
    other_bytes: int

    def under(self, policy: Policy) -> Matrices:
        """The same model as another policy stores it."""
        return replace(self, kinds=tuple(kind.under(policy) for kind in self.kinds))

    def nbytes(self, dialect: Dialect) -> int:
        """Bytes of the data files together."""
        return self.other_bytes + sum(kind.nbytes(dialect) for kind in self.kinds)

    @cached_property
    def products(self) -> tuple[MatrixKind, ...]:
        """Those that every token of the decoder passes, a tied table once: as the head."""
        tables = [kind for kind in self.kinds if kind.graph == DECODER and kind.part == "table"]
        others = (kind for kind in self.kinds if kind.graph == DECODER and kind.part != "table")
        return (*others, *(replace(kind, count=1) for kind in tables[:1]))


def matrices_of(job: Job) -> Matrices:
    """Of a described job, in the policy that it has."""
    found = Counter(each for graph in job.graphs for each in _matrices(graph))
    kinds = tuple(replace(kind, count=count) for kind, count in found.items())
    return Matrices(kinds, sum(_other_bytes(graph) for graph in job.graphs))


def _matrices(graph: Graph) -> Iterator[MatrixKind]:
    for source in graph.sources:
        if source.matrix is not None:
            yield MatrixKind(graph.name, source.matrix.rows, source.matrix.columns, source.matrix.scheme, 1)


def _other_bytes(graph: Graph) -> int:
    parts = (part for source in graph.sources if source.matrix is None for part in source.parameters)
    return sum(_padded(stored_bytes(part)) for part in parts)


def _padded(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE if nbytes >= PAGE else -(-nbytes // 64) * 64
