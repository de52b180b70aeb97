"""Products of one input as one operator: it is rounded once for all, and threads meet once behind them."""

from __future__ import annotations

from collections import defaultdict

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from .native_operators import DOMAIN
from .product_functions import JOINABLE, JOINED

Key = tuple[object, ...]


def join_products(graph: ir.Graph) -> None:
    """Replace lensmith's own products of the same input, with blocks of one size and weights of as many bits.

    Only where weights are initializers as they are, which no order of nodes concerns.
    """
    found: dict[Key, list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.domain == DOMAIN and node.op_type in JOINABLE and _reads_initializers(node):
            sizes = (node.attributes[name].value for name in ("K", "block_size"))
            found[(node.inputs[0], node.op_type, *sizes, _has_zero_points(node))].append(node)
    for alike in found.values():
        for start in range(0, len(alike), max(JOINED)):
            _join(graph, alike[start : start + max(JOINED)])


def _has_zero_points(node: ir.Node) -> bool:
    return len(node.inputs) > 3 and node.inputs[3] is not None


def _reads_initializers(node: ir.Node) -> bool:
    return all(value is None or value.is_initializer() for value in node.inputs[1:])


def _join(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    if len(nodes) not in JOINED:
        return
    first, old = nodes[0], [node.outputs[0] for node in nodes]
    sizes = {f"N{place}": node.attributes["N"].value for place, node in enumerate(nodes, 1)}
    shared = {name: first.attributes[name].value for name in ("K", "block_size")}
    made = ir.node(
        JOINED[len(nodes)] + first.op_type,
        _inputs(nodes),
        shared | sizes,
        domain=DOMAIN,
        num_outputs=len(nodes),
        name=first.name,
    )
    replace_nodes_and_values(graph, first, nodes, [made], old, made.outputs)


def _inputs(nodes: list[ir.Node]) -> list[ir.Value | None]:
    """Their input, weights and scales of each, then zero points and bias of each; none that are missing at the end."""
    each = [[*node.inputs[1:], None, None] for node in nodes]
    inputs = [nodes[0].inputs[0], *(value for part in each for value in part[:2])]
    inputs += [value for part in each for value in part[2:4]]
    while inputs[-1] is None:
        inputs.pop()
    return inputs
