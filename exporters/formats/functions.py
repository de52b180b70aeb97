"""Functions that give meaning to operators that are not ONNX's own: every graph file carries those it uses."""

from __future__ import annotations

from collections.abc import Iterable

import onnx.parser
import onnx_ir as ir

from .onnx import native_operators as native
from .tensorrt import tensorrt_attention

Name = tuple[str, str]  # domain and operator
VERSIONS = {module.DOMAIN: module.VERSION for module in (native, tensorrt_attention)}
FUNCTIONS: dict[Name, str] = {
    (module.DOMAIN, name): text for module in (native, tensorrt_attention) for name, text in module.FUNCTIONS.items()
}


def with_dependencies(names: Iterable[Name]) -> list[Name]:
    """Operators and those that their functions use, in order of their names."""
    found: set[Name] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting += [other for other in FUNCTIONS if ".".join(other) + " " in FUNCTIONS[name] and other not in found]
    return sorted(found)


def add_functions(graph: ir.Graph) -> list[ir.Function]:
    """The functions of operators in a graph, whose operator sets grow by their domains."""
    used = with_dependencies((node.domain, node.op_type) for node in graph if node.domain in VERSIONS)
    graph.opset_imports.update({domain: VERSIONS[domain] for domain, _ in used})
    return [ir.serde.deserialize_function(onnx.parser.parse_function(FUNCTIONS[name])) for name in used]
