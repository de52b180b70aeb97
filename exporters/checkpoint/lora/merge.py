"""The tensors of a base with an adapter merged into them, computed as they are read.

The same as peft's merge in float32: W + scaling * (B @ A), with DoRA scaled row by row to the length that was learned.
B @ A is summed in float64, so that the result does not depend on how many rows are asked for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ....targets.errors import InputError, closest
from ..lazy_tensors import ComputedTensor, Floats, LazyTensor
from ..safetensors_files import StoredTensor
from .adapter import Adapter, Change

TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"
MATRIX, EMBEDDING = {"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}
MORE = {"lora_B.bias", "lora_magnitude_vector"}


def merged(tensors: Mapping[str, LazyTensor], adapter: Adapter) -> dict[str, LazyTensor]:
    """All tensors by name, changed where the adapter says so; InputError for tensors of it that have no place."""
    found = _untied(tensors, adapter)
    for name, tensor in adapter.saved.items():
        shape = _target(found, name, tensor).shape
        if tensor.shape != shape:
            raise InputError(
                f"the adapter has {tensor.name!r} of shape {list(tensor.shape)}, and the base {list(shape)}; a base "
                "that was resized before training must be saved with its adapter merged"
            )
        found[name] = tensor.renamed(name)
    for module, change in adapter.changes.items():
        name = f"{module}.weight"
        weight = _target(found, name, next(iter(change.parts.values())))
        found[name] = _changed(weight, change, adapter)
        if "lora_B.bias" in change.parts:
            scaling = adapter.settings.scaling(change.module, change.parts["lora_A"].shape[0])
            found[f"{module}.bias"] = _with_bias(found, f"{module}.bias", change.parts["lora_B.bias"], scaling)
    return dict(sorted(found.items()))


def _untied(tensors: Mapping[str, LazyTensor], adapter: Adapter) -> dict[str, LazyTensor]:
    """The base's tensors, its head beside the token table where one of the two changes without the other."""
    found, head = dict(tensors), HEAD.removesuffix(".weight")
    table = next((name for name in tensors if name.endswith(TABLE)), None)
    if table is None or HEAD in tensors:
        return found
    names = {f"{module}.weight" for module in adapter.changes} | set(adapter.saved)
    if names & {table, HEAD}:
        if adapter.settings.tied:
            raise InputError(f"{adapter.path} changes the token table and the head {head} together "
                             "(ensure_weight_tying), which lensmith does not merge; merge it with peft")  # fmt: skip
        found[HEAD] = tensors[table].renamed(HEAD)
    return found


def _target(found: Mapping[str, LazyTensor], name: str, part: StoredTensor) -> LazyTensor:
    if name not in found:
        raise InputError(f"the adapter has {part.name!r} for {name!r}, which the base does not have; "
                         f"{closest(name, found) or 'is it the adapter of another model?'}")  # fmt: skip
    return found[name]


@dataclass(frozen=True)
class _Delta:
    """scaling * B @ A of some rows: of a matrix [outputs, inputs], or of a table whose rows are tokens."""

    a: StoredTensor
    b: StoredTensor
    scaling: np.float32
    table: bool

    def rows(self, start: int, stop: int) -> Floats:
        if self.table:  # A [rank, tokens], B [width, rank]
            left, right = self.a.columns(start, stop).astype(np.float64).T, self.b.numpy(np.float64).T
        else:
            left = self.b.rows(start, stop, np.float64).reshape(stop - start, -1)
            right = self.a.numpy(np.float64).reshape(self.a.shape[0], -1)
        product: Floats = (left @ right).astype(np.float32)
        product *= self.scaling
        return product


def _changed(weight: LazyTensor, change: Change, adapter: Adapter) -> ComputedTensor:
    names, parts = set(change.parts), change.parts
    table = bool(names & EMBEDDING)
    wanted = EMBEDDING if table else MATRIX
    wrong = sorted(wanted - names) or sorted(names - wanted - (set() if table else MORE))
    if wrong:
        what = "is missing" if wanted - names else "cannot be merged"
        raise InputError(f"{adapter.path}: {wrong[0]} of {change.module} {what}; download the adapter again, or merge "
                         "it with peft")  # fmt: skip
    a, b = (parts[name] for name in sorted(wanted))
    rank = a.shape[0] if a.shape else 0
    _check_shapes(weight, a, b, rank, table=table)
    delta = _Delta(a, b, np.float32(adapter.settings.scaling(change.module, rank)), table)
    compute = _plain(weight, delta)
    if adapter.settings.magnitudes:
        compute = _scaled(weight, compute, change, adapter)
    elif "lora_magnitude_vector" in names:
        raise InputError(f"{adapter.path} has {parts['lora_magnitude_vector'].name}, and its configuration no "
                         "use_dora; download the adapter again")  # fmt: skip
    return ComputedTensor(weight.name, weight.shape, "F32", (weight, *parts.values()), compute)


def _check_shapes(weight: LazyTensor, a: StoredTensor, b: StoredTensor, rank: int, *, table: bool) -> None:
    rows, columns = weight.shape[0], weight.size // max(1, weight.shape[0])
    found = (a.size, b.size, b.shape[:2] if len(b.shape) >= 2 else b.shape)
    outputs, inputs = (columns, rows) if table else (rows, columns)
    if (
        not rank
        or len(a.shape) < 2
        or (table and len(a.shape) + len(b.shape) != 4)
        or found != (rank * inputs, outputs * rank, (outputs, rank))
    ):
        raise InputError(f"the adapter has {a.name!r} of shape {list(a.shape)} and {b.name!r} of shape "
                         f"{list(b.shape)}, which do not fit {weight.name} of shape {list(weight.shape)}; is it the "
                         "adapter of another model?")  # fmt: skip


def _plain(weight: LazyTensor, delta: _Delta) -> Callable[[int, int], Floats]:
    def compute(start: int, stop: int) -> Floats:
        rows = weight.rows(start, stop).reshape(stop - start, -1)
        return np.asarray(rows + delta.rows(start, stop))

    return compute


def _scaled(
    weight: LazyTensor, compute: Callable[[int, int], Floats], change: Change, adapter: Adapter
) -> Callable[[int, int], Floats]:
    """DoRA: each row at the length that was learned."""
    lengths = change.parts.get("lora_magnitude_vector")
    if lengths is None or len(weight.shape) != 2 or lengths.size != weight.shape[0] or "lora_A" not in change.parts:
        raise InputError(f"{adapter.path}: DoRA needs a lora_magnitude_vector of {weight.shape[0]} rows for "
                         f"{change.module}; merge the adapter with peft")  # fmt: skip

    def scaled(start: int, stop: int) -> Floats:
        rows = compute(start, stop)
        norms = np.sqrt((rows.astype(np.float64) ** 2).sum(1)).astype(np.float32)
        factors = lengths.numpy().reshape(-1)[start:stop] / norms
        return np.asarray(factors[:, None] * rows)

    return scaled


def _with_bias(found: Mapping[str, LazyTensor], name: str, part: StoredTensor, scaling: float) -> ComputedTensor:
    bias = _target(found, name, part)
    if part.shape != bias.shape:
        raise InputError(f"the adapter has {part.name!r} of shape {list(part.shape)}, and the base {list(bias.shape)}")

    def compute(start: int, stop: int) -> Floats:
        return np.asarray(bias.rows(start, stop) + part.rows(start, stop) * np.float32(scaling))

    return ComputedTensor(name, bias.shape, "F32", (bias, part), compute)
