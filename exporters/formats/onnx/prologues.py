"""Norms and activations as parts of the products that follow them: their results are rounded, and never written."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from .native_operators import DOMAIN, FUNCTIONS
from .ort_attention import MS

NORMS = {"SkipSimplifiedLayerNormalization": "SkipRmsNorm", "SkipLayerNormalization": "SkipLayerNorm"}
ACTIVATIONS = ("Gelu", "FastGelu", "QuickGelu")
NUMBERS = ("epsilon", "alpha")
LOGITS = "logits"  # the input of what makes them stays, since runtimes show it as hidden states
GATES = {(MS, "QuickGelu"): "GatedQuickGelu", ("", "Sigmoid"): "GatedSigmoid"}  # of a value that it is multiplied by


class Found(NamedTuple):
    """A prologue of a product: its name, its inputs, and the nodes that it stands for, of which the last makes X."""

    name: str
    inputs: tuple[ir.Value | None, ...]
    nodes: tuple[ir.Node, ...]


def fuse_prologues(graph: ir.Graph) -> None:
    """Make one operator of each product of lensmith's and what only makes its input.

    Only where weights are initializers as they are, which no order of nodes concerns.
    """
    for node in list(graph):
        if node.domain == DOMAIN and node.outputs[0].name != LOGITS and (found := _find(node.inputs[0])) is not None:
            name = found.name + node.op_type
            if name in FUNCTIONS and _reads_initializers(node):
                _fuse(graph, node, found)


def _reads_initializers(node: ir.Node) -> bool:
    return all(value is None or value.is_initializer() for value in node.inputs[1:])


def _find(x: ir.Value | None) -> Found | None:
    if x is None or not _has_one_use(x) or (maker := x.producer()) is None:
        return None
    if maker.domain == MS and maker.op_type in NORMS:
        return _norm(x, maker)
    if maker.domain == MS and maker.op_type in ACTIVATIONS:
        return Found(maker.op_type, tuple(maker.inputs), (maker,))
    return _gated(maker) if (maker.domain, maker.op_type) == ("", "Mul") else None


def _has_one_use(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _norm(x: ir.Value, maker: ir.Node) -> Found | None:
    """Where the mean and the inverse deviation are not asked for, and no bias is added."""
    name, unused = NORMS[maker.op_type], maker.outputs[1:3]
    fits = x is maker.outputs[0] and len(maker.inputs) == 3 + (name == "SkipLayerNorm")
    fits = fits and not any(value.uses() or value.is_graph_output() for value in unused)
    return Found(name, tuple(maker.inputs), (maker,)) if fits else None


def _gated(product: ir.Node) -> Found | None:
    """Of a value times what an activation makes of another."""
    for opened, value in (product.inputs, reversed(product.inputs)):
        gate = opened.producer() if opened is not None else None
        kind = None if gate is None else GATES.get((gate.domain, gate.op_type))
        if opened is not None and gate is not None and kind is not None and _has_one_use(opened):
            return Found(kind, (value, gate.inputs[0]), (gate, product))
    return None


def _fuse(graph: ir.Graph, node: ir.Node, found: Found) -> None:
    """In the place of what made its input: everything that reads the sum of a norm stands behind that."""
    *_, last = found.nodes
    attributes = {key: part.attributes[key].value for part in found.nodes for key in NUMBERS if key in part.attributes}
    attributes |= {key: value.value for key, value in node.attributes.items()}
    sums = [last.outputs[3]] if found.name in NORMS.values() else []
    made = ir.node(
        found.name + node.op_type,
        [*found.inputs, *node.inputs[1:]],
        attributes,
        domain=DOMAIN,
        num_outputs=len(node.outputs) + len(sums),
        name=node.name,
    )
    replace_nodes_and_values(graph, last, [*found.nodes, node], [made], [*node.outputs, *sums], made.outputs)
