"""A matrix of builds as a TOML file says it: models by targets by formats by precisions, and what leaves some out."""

from __future__ import annotations

import tomllib
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ...runtimes.storage.reading import read_utf8
from ...targets.errors import InputError

MOST_BYTES, MOST_CELLS = 1 << 20, 10_000
Names = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class Cell(msgspec.Struct, frozen=True):
    """One build of the matrix."""

    model: str  # the folder of a checkpoint
    target: str
    format: str
    precision: str

    @property
    def name(self) -> str:
        """As people call it: "qwen3_vl-cpu-onnx-int4"."""
        return "-".join((Path(self.model).name, Path(self.target).stem, self.format, self.precision))


class Skipped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cells that are left out: those in which all that is said is so."""

    model: str | None = None
    target: str | None = None
    format: str | None = None
    precision: str | None = None

    def meets(self, cell: Cell) -> bool:
        """Whether a cell is one of them; a model may be called by the name of its folder."""
        said = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        named = {"model": (cell.model, Path(cell.model).name), "target": (cell.target, Path(cell.target).name)}
        return all(value in named.get(name, (getattr(cell, name),)) for name, value in said.items())


class Compared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the builds are measured for the report."""

    against: bool = True  # each model's checkpoint in PyTorch, too
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    baselines: tuple[str, ...] = ()
    tasks: str | None = None
    benchmark: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    repeats: Annotated[int, msgspec.Meta(ge=1)] = 3
    threads: Annotated[int, msgspec.Meta(ge=1)] | None = None
    image: str | None = None


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to build, where to put it, and how to measure it. Paths are those of a shell in the file's folder."""

    models: Names
    targets: Names = ("cpu",)
    formats: Names = ("onnx",)
    precisions: Names = ("int4",)
    out: str = "matrix"
    golden: Literal["auto", "always", "never"] = "auto"
    skip: tuple[Skipped, ...] = ()
    compare: Compared = Compared()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All builds that are not left out, model by model."""
        every = (Cell(*values) for values in product(self.models, self.targets, self.formats, self.precisions))
        return tuple(dict.fromkeys(cell for cell in every if not any(each.meets(cell) for each in self.skip)))


def read_matrix(path: Path) -> Matrix:
    """The matrix of a file, with whole paths; InputError for what cannot be read, is unknown or leaves nothing."""
    text = read_utf8(path, MOST_BYTES, "a matrix of builds as TOML")
    try:
        found = msgspec.convert(tomllib.loads(text), Matrix)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InputError(
            f"{path} is no matrix of builds: {error}; expected {', '.join(Matrix.__struct_fields__)}"
        ) from None
    folder = path.resolve().parent
    compare = msgspec.structs.replace(
        found.compare, tasks=_whole(folder, found.compare.tasks), image=_whole(folder, found.compare.image)
    )
    placed = msgspec.structs.replace(
        found,
        models=tuple(str(folder / name) for name in found.models),
        targets=tuple(str(folder / name) if name.endswith(".toml") else name for name in found.targets),
        out=str(folder / found.out),
        compare=compare,
    )
    if not 0 < len(placed.cells) <= MOST_CELLS:
        raise InputError(f"{path} has {len(placed.cells)} builds; expected 1 to {MOST_CELLS}: change what it skips")
    return placed


def _whole(folder: Path, name: str | None) -> str | None:
    return None if name is None else str(folder / name)
