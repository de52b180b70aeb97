"""Whether the output head is the token table: by config.json and by the weights, as transformers 5 decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...targets.errors import InputError
from ..graphs.graph_files import Prefixes
from ..spec import ModelSpec
from .folder import Checkpoint
from .lazy_tensors import LazyTensor

BLOCK_ELEMENTS = 1 << 22  # compared at a time


def settle_head(checkpoint: Checkpoint, spec: ModelSpec, prefixes: Prefixes) -> tuple[Checkpoint, ModelSpec]:
    """The checkpoint and its spec, tied only where both agree (modeling_utils.py, `tie_weights`).

    A saved head with other values than the table stays a head of its own, whatever config.json says. Of a tied pair
    either may be left out of the weights. InputError where the head is not tied and not there.
    """
    table, head = f"{prefixes.text}.embed_tokens.weight", f"{prefixes.head}.weight"
    tensors = checkpoint.tensors
    if head not in tensors and not spec.decoder.tied:
        raise InputError(
            f"{checkpoint.path} has no {head}, and config.json does not tie it to the token table: set "
            "tie_word_embeddings to true at the top of config.json if the model was trained so, or complete the weights"
        )
    if not spec.decoder.tied or head not in tensors:
        return checkpoint, spec
    if table not in tensors:
        return checkpoint.renamed({head: table}), spec
    tied = _equal(tensors[table], tensors[head])
    return checkpoint, replace(spec, decoder=replace(spec.decoder, tied=tied))


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    if one.shape != other.shape or not one.shape:
        return False
    step = max(1, BLOCK_ELEMENTS * one.shape[0] // max(1, one.size))
    starts = range(0, one.shape[0], step)
    blocks = ((start, min(start + step, one.shape[0])) for start in starts)
    return all(np.array_equal(one.rows(*block), other.rows(*block)) for block in blocks)
