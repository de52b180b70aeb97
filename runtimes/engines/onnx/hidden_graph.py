"""A decoder's graph with one more output: the hidden states behind its last norm, which graphs with a draft head have.

Bundles without a draft head have no such output. What it needs is in the file: the logits are a product of the
positions that are wanted and a matrix, so that the graph is cut in front of it, and opened again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....targets.errors import InputError
from .editable_graph import END, FLOAT, INT64, add_port, add_whole

LOGITS, NUM_LOGITS = b"logits", b"num_logits"
HIDDEN, NUM_HIDDEN = b"hidden_states", b"num_hidden_states"


def add_hidden_states(model: Any, path: Path) -> None:
    """Give a graph, of the file `path`, the input num_hidden_states and the output hidden_states as
    docs/bundle-format.md has them: `num_logits` counts from the positions that these give.

    Raises InputError for a graph of another form.
    """
    graph = model.graph
    index, name = _head(path, graph)
    for node in graph.node:
        node.input[:] = [NUM_HIDDEN if each == NUM_LOGITS else HIDDEN if each == name else each for each in node.input]
        node.output[:] = [HIDDEN if each == name else each for each in node.output]
    for value in graph.value_info:
        value.name = HIDDEN if value.name == name else value.name
    add_port(graph.input, NUM_HIDDEN, INT64, [1])
    add_port(graph.output, HIDDEN, FLOAT, ["batch", "num_hidden_states", "hidden"])
    begin, kept = b"hidden_states.begin", b"hidden_states.kept"
    end, axis = add_whole(graph, b"hidden_states.end", END), add_whole(graph, b"hidden_states.axis", 1)
    graph.node[index].input[0] = kept
    rest = [type(node).FromString(node.SerializeToString()) for node in graph.node[index:]]
    del graph.node[index:]
    graph.node.add(op_type=b"Sub", input=[NUM_HIDDEN, NUM_LOGITS], output=[begin])
    graph.node.add(op_type=b"Slice", input=[HIDDEN, begin, end, axis], output=[kept])
    graph.node.extend(rest)


def _head(path: Path, graph: Any) -> tuple[int, bytes]:
    """The node that takes the hidden states of the wanted positions to logits, and the name of these."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    try:
        index = makers[LOGITS]
        name = graph.node[index].input[0]
        source = graph.node[makers[name]]
        norm = graph.node[makers[source.input[0]]] if source.op_type == b"Slice" else source
    except LookupError:
        norm = None
    if norm is None or not norm.op_type.endswith(b"Normalization"):
        raise InputError(f"{path} shows no hidden states in front of its logits; export it again")
    return index, name
