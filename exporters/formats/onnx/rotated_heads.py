"""Norms and rotations of the heads of a layer as one operator: their nodes take longer to start than to compute."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from .native_operators import DOMAIN

ATTENTION = ("CachedAttention", "CachedAttentionInt8", "GroupQueryAttention")
ROTATED = ("RotaryEmbedding", "Reshape", "SimplifiedLayerNormalization", "Reshape")  # from the last one on


@dataclass(frozen=True)
class Heads:
    """Queries or keys: the nodes that norm and rotate them, the last one first."""

    nodes: tuple[ir.Node, ...]

    @property
    def product(self) -> ir.Value | None:
        return self.nodes[-1].inputs[0]

    @property
    def weight(self) -> ir.Value | None:
        return self.nodes[2].inputs[1]

    @property
    def turns(self) -> tuple[ir.Value | None, ...]:
        """Positions, cos and sin."""
        return tuple(self.nodes[0].inputs[1:])

    @property
    def count(self) -> int:
        return self.nodes[0].attributes["num_heads"].as_int()

    @property
    def alike(self) -> dict[str, int | float]:
        """Attributes that queries and keys share."""
        rotation, norm = self.nodes[0].attributes, self.nodes[2].attributes
        return {
            "rotary_embedding_dim": rotation["rotary_embedding_dim"].as_int(),
            "epsilon": norm["epsilon"].as_float(),
        }


def rotate_heads(graph: ir.Graph) -> None:
    """Replace what norms and rotates queries and keys on their way to attention, where graphs are not exact anyway."""
    for node in graph:
        if node.op_type not in ATTENTION:
            continue
        query, key = (_heads(value) for value in node.inputs[:2])
        if query and key and _is_rounded(key.product) and (query.turns, query.alike) == (key.turns, key.alike):
            _rotate(graph, query, key)


def _heads(rotated: ir.Value | None) -> Heads | None:
    nodes: list[ir.Node] = []
    value = rotated
    for kind in ROTATED:
        node = None if value is None else value.producer()
        if value is None or node is None or node.op_type != kind or len(value.uses()) > 1 or value.is_graph_output():
            return None
        nodes.append(node)
        value = node.inputs[0]
    return Heads(tuple(nodes))


def _is_rounded(value: ir.Value | None) -> bool:
    """Whether it is a product of activations that were rounded to int8."""
    node = None if value is None else value.producer()
    if node is None:
        return False
    level = node.attributes.get("accuracy_level")
    return node.domain == DOMAIN or (level is not None and level.as_int() == 4)


def _rotate(graph: ir.Graph, query: Heads, key: Heads) -> None:
    made = ir.node(
        "NormRotary",
        [query.product, key.product, query.weight, key.weight, *key.turns],
        {"num_heads": query.count, "kv_num_heads": key.count, **key.alike},
        domain=DOMAIN,
        num_outputs=2,
        name=query.nodes[0].name,
    )
    old = [heads.nodes[0].outputs[0] for heads in (query, key)]
    last = key.nodes[0]  # behind all that goes into both
    replace_nodes_and_values(graph, last, [*query.nodes, *key.nodes], [made], old, made.outputs)
