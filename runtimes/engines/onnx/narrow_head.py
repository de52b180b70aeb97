"""A draft head whose logits are those of the first tokens of a vocabulary alone.

Nearly all that a small head takes for one guess is the product with the rows of every token. Vocabularies made by
merging pairs begin with what is met most, so that the first rows hold nearly all that is said in many languages; and a
guess that is missed for this costs time, never a right answer. The rows that are left are those in the bundle's file.
"""

from __future__ import annotations

from typing import Any

LOGITS = b"logits"


def narrow(model: Any, tokens: int) -> bool:
    """Let a graph give logits of its first `tokens` alone; False, and nothing is changed, for one of another form."""
    graph = model.graph
    node = next((node for node in graph.node if LOGITS in node.output), None)
    known = {tensor.name: tensor for tensor in graph.initializer}
    if node is None or any(name and name not in known for name in node.input[1:]):
        return False
    weights = [known[name] for name in node.input[1:] if name]
    rows = {tensor.dims[0] for tensor in weights}
    if len(rows) != 1 or tokens >= (vocab := rows.pop()) or any(not _in_file(tensor) for tensor in weights):
        return False
    for index, name in enumerate(node.input):
        if index and name:
            node.input[index] = b"first." + name
            _cut(graph.initializer.add(), known[name], vocab, tokens)
    for attribute in node.attribute:
        if attribute.name == b"N":
            attribute.i = tokens
    _logits(graph).dim[2].dim_value = tokens
    del graph.value_info[:]
    return True


def _in_file(tensor: Any) -> bool:
    return bool(tensor.dims) and {b"location", b"offset", b"length"} <= {entry.key for entry in tensor.external_data}


def _cut(made: Any, tensor: Any, vocab: int, tokens: int) -> None:
    """The first rows of a tensor, as one of their own at the same place of the same file."""
    made.CopyFrom(tensor)
    made.name, made.dims[0] = b"first." + tensor.name, tokens
    for entry in made.external_data:
        if entry.key == b"length":
            entry.value = str(int(entry.value) // vocab * tokens).encode()


def _logits(graph: Any) -> Any:
    return next(port for port in graph.output if port.name == LOGITS).type.tensor_type.shape
