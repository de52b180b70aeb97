"""What recurrent states are made of, for the last few tokens of a step, so that they can go back to any of these.

A recurrent state has all tokens in it. A graph therefore gives besides, for its last tokens, the rows that the products
in front of its recurrent operators make; a second graph, cut out of the same file, takes the states from before a step
and some of these rows to the states behind them. Its operators go token by token, so these are the same bits as those
of a step that never had more tokens. Rows take 0.4 MB a token for a model of 2 billion parameters, its states 20 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .editable_graph import END, FLOAT, add_port, add_whole

MOST_ROWS = 8  # tokens at the end of a step whose rows are kept
PAST, PRESENT, ROWS = b"past.", b"present.", b"rows."
REPLAYED = frozenset({
    b"CausalConvWithState", b"Constant", b"LinearAttention", b"LinearAttentionGate", b"Mul", b"QuickGelu", b"Reshape",
    b"SimplifiedLayerNormalization", b"Split", b"Transpose",
})  # fmt: skip


def add_state_rows(model: Any) -> bytes | None:
    """Give a graph outputs `rows.0`, `rows.1`, ... [1, up to MOST_ROWS, width] of the last tokens.

    Returns the graph that replays them: it has these as inputs, of any number of tokens, and recurrent states as inputs
    and outputs. None, and nothing is changed, for a graph of another form.
    """
    graph = model.graph
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    kept, cut = _replayed(graph, makers)
    if not cut or any(b"MatMul" not in graph.node[makers[name]].op_type for name in cut):
        return None
    replay = _cut_out(model, kept, cut)
    begin, end, axis = (
        add_whole(graph, ROWS + name, value) for name, value in ((b"begin", -MOST_ROWS), (b"end", END), (b"axis", 1))
    )
    for index, name in reversed([*enumerate(cut)]):  # ONNX Runtime takes nodes without followers last one first
        graph.node.add(name=_port(index), op_type=b"Slice", input=[name, begin, end, axis], output=[_port(index)])
    for index in range(len(cut)):
        add_port(graph.output, _port(index), FLOAT, [1, "rows", f"width_{index}"])
    data: bytes = replay.SerializeToString()
    return data


def _replayed(graph: Any, makers: dict[bytes, int]) -> tuple[set[int], list[bytes]]:
    """The nodes between products and recurrent states, and what they take of products, in order."""
    known = {port.name for port in graph.input}
    wanted = [port.name for port in graph.output if port.name.replace(PRESENT, PAST) in known]
    kept, cut = set[int](), set[bytes]()
    while wanted:
        index = makers.get(name := wanted.pop())
        if index is None or index in kept:
            continue
        if graph.node[index].op_type in REPLAYED:
            kept.add(index)
            wanted += graph.node[index].input
        else:
            cut.add(name)
    return kept, sorted(cut, key=lambda name: makers[name])


def _cut_out(model: Any, kept: set[int], cut: Sequence[bytes]) -> Any:
    made = type(model).FromString(model.SerializeToString())
    graph, ports = made.graph, {name: _port(index) for index, name in enumerate(cut)}
    nodes = [model.graph.node[index] for index in sorted(kept)]
    del graph.node[:], graph.value_info[:], made.functions[:]
    graph.node.extend(nodes)
    for node in graph.node:
        node.input[:] = [ports.get(name, name) for name in node.input]
    read, written = ({name for node in nodes for name in names(node)} for names in (_inputs, _outputs))
    for values, names in ((graph.initializer, read), (graph.input, read), (graph.output, written)):
        some = [value for value in values if value.name in names]
        del values[:]
        values.extend(some)
    for index, name in enumerate(ports.values()):
        add_port(graph.input, name, FLOAT, [1, "rows", f"width_{index}"])
    return made


def _inputs(node: Any) -> Sequence[bytes]:
    names: Sequence[bytes] = node.input
    return names


def _outputs(node: Any) -> Sequence[bytes]:
    names: Sequence[bytes] = node.output
    return names


def _port(index: int) -> bytes:
    return ROWS + str(index).encode()
