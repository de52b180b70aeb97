"""A graph cut into stages that run one after the other, each with the weights of its own matrices only.

A value belongs to the stage of as many matrices as lie on the longest way to it. So the matrices of one stage can have
the same input, like those of queries, keys and values, and never depend on each other. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...exporters.graphs.blocks import SourceTensor
from ...exporters.graphs.graph_files import Graph
from ...exporters.graphs.matrices import Matrix


@dataclass(frozen=True)
class Product:
    """A matrix, the value that it is multiplied with, and the product."""

    source: SourceTensor
    input: str
    output: str

    @property
    def matrix(self) -> Matrix:
        assert self.source.matrix is not None
        return self.source.matrix


@dataclass(frozen=True)
class LookUp:
    """Rows of a table by id."""

    source: SourceTensor
    ids: str
    output: str


@dataclass(frozen=True)
class Stage:
    """Nodes that run together. Its products are those at its beginning, whose inputs are among its inputs."""

    nodes: tuple[ir.Node, ...]
    products: tuple[Product, ...]
    lookups: tuple[LookUp, ...]  # whose rows are inputs too: tables are too large to be whole in memory
    sources: tuple[SourceTensor, ...]  # of all weights, those of the products among them
    inputs: tuple[str, ...]  # from earlier stages, from outside, and the rows of lookups
    outputs: tuple[str, ...]  # what later stages and the caller need
    needed: frozenset[str]  # values of this stage and of earlier ones that count behind it


@dataclass(frozen=True)
class Stages:
    """The stages of a graph up to the output head, which is left out, and the product of the head."""

    stages: tuple[Stage, ...]
    head: Product | None


def cut(graph: Graph) -> Stages:
    """Cut a float32 graph; its states of earlier tokens stay inputs, and present states are left out."""
    weights = {str(p.name): s for s in (*graph.sources, *graph.borrowed) for p in s.parameters}
    nodes = [node for node in graph.model.graph if not _is_constant(node)]
    depths = _depths(nodes, weights)
    head = next((p for node in nodes for p in _products(node, weights) if p.output == "logits"), None)
    kept = [node for node in nodes if head is None or depths[node] < depths[head_node(nodes, head)]]
    groups = [[node for node in kept if depths[node] == depth] for depth in range(1 + max(depths[n] for n in kept))]
    results = {str(v.name) for v in graph.model.graph.outputs if not str(v.name).startswith("present")}
    results |= set() if head is None else {head.input}
    stages, needed = [], results
    for group in reversed(groups):
        stage = _stage(group, weights, needed)
        stages.append(stage)
        looked_up = {found.output for found in stage.lookups}
        needed = (needed | set(stage.inputs)) - set(_made(group)) - looked_up
        needed |= {found.ids for found in stage.lookups}
    return Stages(tuple(reversed(stages)), head)


def by_input(stage: Stage) -> Iterator[tuple[str, list[Product]]]:
    """The products of a stage that share an input, with its name."""
    for value in dict.fromkeys(product.input for product in stage.products):
        yield value, [product for product in stage.products if product.input == value]


def head_node(nodes: Sequence[ir.Node], head: Product) -> ir.Node:
    """The node that makes the logits."""
    return next(node for node in nodes if head.output in [value.name for value in node.outputs])


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain == ""


def _depths(nodes: Sequence[ir.Node], weights: Mapping[str, SourceTensor]) -> dict[ir.Node, int]:
    depths: dict[ir.Node, int] = {}
    for node in nodes:
        before = [depths[p] for value in node.inputs if value is not None and (p := value.producer()) in depths and p]
        depths[node] = max(before, default=0) + bool([*_products(node, weights)])
    return depths


def _products(node: ir.Node, weights: Mapping[str, SourceTensor]) -> Iterator[Product]:
    names = [value.name if value is not None else None for value in node.inputs]
    if node.op_type == "FusedMatMul" and names[1] in weights and weights[str(names[1])].matrix is not None:
        yield Product(weights[str(names[1])], str(names[0]), str(node.outputs[0].name))


def _lookups(node: ir.Node, weights: Mapping[str, SourceTensor]) -> Iterator[LookUp]:
    if node.op_type == "Gather" and (source := weights.get(str(_name(node, 0)))) and source.matrix is not None:
        yield LookUp(source, str(_name(node, 1)), str(node.outputs[0].name))


def _name(node: ir.Node, index: int) -> str | None:
    value = node.inputs[index]
    return None if value is None else value.name


def _made(nodes: Sequence[ir.Node]) -> Iterator[str]:
    return (str(value.name) for node in nodes for value in node.outputs if value.name)


def _stage(nodes: Sequence[ir.Node], weights: Mapping[str, SourceTensor], needed: set[str]) -> Stage:
    lookups = tuple(found for node in nodes for found in _lookups(node, weights))
    looked_up = {found.output for found in lookups}
    run = tuple(node for node in nodes if not looked_up.intersection(_made([node])))
    made = set(_made(run))
    used = {str(v.name): v for node in run for v in node.inputs if v is not None and v.name and v.name not in made}
    constants = {name for name, value in used.items() if value.const_value is not None or _from_constant(value)}
    return Stage(
        nodes=run,
        products=tuple(found for node in run for found in _products(node, weights)),
        lookups=lookups,
        sources=tuple({weights[name].name: weights[name] for name in used if name in weights}.values()),
        inputs=tuple(name for name in used if name not in weights and name not in constants),
        outputs=tuple(name for name in made if name in needed),
        needed=frozenset(needed),
    )


def _from_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and _is_constant(producer)
