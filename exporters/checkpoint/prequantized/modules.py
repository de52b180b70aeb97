"""The stored tensors of one quantized module, and errors that name the part that is missing or has another shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ....targets.errors import InputError
from ..safetensors_files import StoredTensor


@dataclass(frozen=True)
class Module:
    """A module with the parts of its weight by the end of their names, and what the checkpoint says of its format."""

    name: str
    parts: Mapping[str, StoredTensor]
    settings: Mapping[str, Any]

    @property
    def weight_name(self) -> str:
        """The name of the weight that the parts stand for."""
        return f"{self.name}.weight"

    def need(self, *names: str, rank: int | None = None, dtypes: tuple[str, ...] = ()) -> StoredTensor:
        """The first part of these names that is there; InputError where none is or where it is of another kind."""
        found = next((self.parts[name] for name in names if name in self.parts), None)
        if found is None:
            there = ", ".join(sorted(part.name for part in self.parts.values()))
            raise InputError(f"{self.name}.{names[0]} is missing beside {there}, and its weight cannot be computed "
                             "without it; download the checkpoint again")  # fmt: skip
        if not found.size:
            raise InputError(f"{found.name} is empty (shape {list(found.shape)}); download the checkpoint again")
        if (rank is not None and len(found.shape) != rank) or (dtypes and found.dtype not in dtypes):
            kind = f"{' or '.join(dtypes)}{f' with {rank} dimensions' if rank is not None else ''}".strip()
            raise InputError(f"{found.name} is {found.dtype} of shape {list(found.shape)}, expected {kind}: it does "
                             "not belong to the quantization that the checkpoint declares")  # fmt: skip
        return found

    def check(self, part: StoredTensor, *shape: int) -> None:
        """InputError unless a part has this shape."""
        if part.shape != shape:
            raise InputError(f"{part.name} has shape {list(part.shape)}; its module's other tensors imply "
                             f"{list(shape)}: they do not belong together")  # fmt: skip

    def refuse(self, what: str) -> InputError:
        """The error for a module that cannot be computed."""
        return InputError(f"{self.name}: {what}")
