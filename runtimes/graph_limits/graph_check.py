"""Whether a graph file is one that lensmith may have written: nothing else reaches ONNX Runtime or TensorRT.

Operators are those of a list, functions and loops end, sizes in attributes and constants are those of real models,
weights lie inside the bundle's files, and inputs and outputs are those of the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...targets.errors import InputError
from ..bundle.graph_entries import GraphEntry
from ..bundle.manifest import Manifest
from .graph_bounds import DeclaredGraph, check_bounds
from .graph_operators import FUSED, OPERATORS, OWN, Prologue
from .graph_values import Refused
from .onnx_messages import parse_model

MOST_BYTES = 32_000_000  # of a graph without its weights; those of real models take up to a few megabytes
MOST_NODES = 25_000  # of a graph with its functions in their places; those of real models take up to 7,000
MOST_INLINE = 1 << 22  # values of a tensor inside the graph's file
LARGE = 1 << 31  # of any size
MOST_USES = 8  # of each byte of weights; tables of tokens are read by the look-up, the head and the draft head
TYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FLOAT16", 11: "DOUBLE",
         16: "BFLOAT16", 17: "FLOAT8E4M3FN", 21: "UINT4", 22: "INT4"}  # fmt: skip
BITS = {1: 32, 2: 8, 3: 8, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 16: 16, 17: 8, 21: 4, 22: 4}
FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS = 1, 2, 3, 4, 5, 6, 7, 8  # AttributeProto.AttributeType
LOOPS = ("Loop", "Scan")


def check_graph(path: Path, name: str, manifest: Manifest) -> None:
    """Raise InputError unless the ONNX file of a manifest's graph `name` is one that this runtime may load."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise Refused(f"it has more than {MOST_BYTES} bytes besides its weights")
        model = parse_model(data)
        _check_model(model, manifest.graphs[name])
        files = manifest.files
        weights = {_text(item.name): _check_tensor(item, path.parent, files) for item in model.graph.initializer}
        size = _files_bytes(model.graph, path.parent)
        _check_uses(model.graph, weights, size)
        check_bounds(model.graph, model.functions, DeclaredGraph.of(manifest, name), size)
    except (Refused, ValueError, OverflowError) as error:
        what = " ".join(str(error).split())[:500]
        raise InputError(f"{path} is not a graph that lensmith runs: {what}; export the bundle again.") from None


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Refused(what)


def _check_model(model: Any, entry: GraphEntry) -> None:
    unusual = [name for name in ("training_info", "configuration") if len(getattr(model, name))]
    _require(not unusual, f"it has {', '.join(unusual)}")
    domains = {_text(opset.domain).removeprefix("ai.onnx") for opset in model.opset_import}
    _require(domains <= OPERATORS.keys(), f"it uses the operator sets {sorted(domains)}, expected {list(OPERATORS)}")
    _check_nodes(model.graph, _function_sizes(model.functions), inside="")
    _check_ports(model.graph, entry)
    weights = {_text(tensor.name): list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if b"MatMul" in node.op_type:
            _check_product(node, weights)


def _function_sizes(functions: Any) -> dict[tuple[str, str], int]:
    """How many nodes each function has with all that it calls in place; Refused where it calls itself or grows."""
    bodies: dict[tuple[str, str], Any] = {}
    for function in functions:
        key = _text(function.domain), _text(function.name)
        _require(key[0] in OWN and key[1] in OPERATORS[key[0]], f"it has the unknown function {key[1]!r}")
        _require(key not in bodies, f"it has the function {key[1]!r} twice")
        _require(not function.overload and not function.attribute_proto, f"the function {key[1]!r} has variants")
        bodies[key] = function
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], callers: tuple[tuple[str, str], ...]) -> int:
        _require(key not in callers, f"the function {key[1]!r} calls itself")
        if key not in sizes:
            _require(key in bodies, f"it has no function for the operator {key[1]!r}")
            total = 0
            for node in bodies[key].node:
                _check_node(node, f"function {key[1]!r}", inside="a function")
                called = _text(node.domain), _text(node.op_type)
                total += size(called, (*callers, key)) if called[0] in OWN else 1
                _require(total <= 1000, f"the function {key[1]!r} has more than 1000 nodes in all")
            sizes[key] = total
        return sizes[key]

    for key in bodies:
        size(key, ())
    return sizes


def _check_nodes(graph: Any, functions: Mapping[tuple[str, str], int], *, inside: str) -> int:
    """Check the nodes of a graph or of the body of a loop; how many there are with functions in place."""
    _require(not graph.sparse_initializer, "it has sparse weights")
    total = 0
    for node in graph.node:
        _check_node(node, "graph", inside=inside)
        key = _text(node.domain), _text(node.op_type)
        _require(key[0] not in OWN or key in functions, f"it has no function for the operator {key[1]!r}")
        total += functions.get(key, 1)
        if key[0] == "" and key[1] in LOOPS:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    total += _check_nodes(attribute.g, functions, inside=f"a {key[1]}")
        _require(total <= MOST_NODES, f"it has more than {MOST_NODES} nodes")
    return total


def _check_node(node: Any, where: str, *, inside: str) -> None:
    domain, kind = _text(node.domain), _text(node.op_type)
    domain = "" if domain == "ai.onnx" else domain
    known = kind in OPERATORS.get(domain, ()) and not node.overload and not node.device_configurations
    _require(known, f"its {where} has the operator {kind[:80]!r} of {domain[:80] or 'ONNX'!r}, which no bundle needs")
    _require(not (inside and kind in LOOPS), f"it has a {kind} inside {inside}")
    for attribute in node.attribute:
        _check_attribute(kind, attribute, inside)
        if kind == "Split" and attribute.name == b"num_outputs":  # ONNX Runtime ends the process where they differ
            outputs = len(node.output)
            _require(attribute.i == outputs, f"its Split has num_outputs {attribute.i} and {outputs} outputs")


def _check_attribute(kind: str, attribute: Any, inside: str) -> None:
    name = _text(attribute.name)
    where = f"the attribute {name[:80]!r} of {kind}"
    plain = attribute.type in (FLOAT, INT, STRING, TENSOR, FLOATS, INTS, STRINGS) and not attribute.HasField("g")
    loop = attribute.type == GRAPH and kind in LOOPS and name == "body"
    _require(plain or loop, f"{where} has the type {attribute.type}")
    _require(not attribute.ref_attr_name or inside == "a function", f"{where} refers to another one")
    lists = (attribute.tensors, attribute.graphs, attribute.type_protos, attribute.sparse_tensors)
    _require(not any(map(len, lists)), f"{where} has several values of a kind that no operator takes")
    numbers = [*attribute.ints, attribute.i]
    _require(all(abs(number) <= LARGE for number in numbers), f"{where} is out of range: {numbers[:4]}")
    floats = [*attribute.floats, attribute.f]
    _require(all(map(math.isfinite, floats)), f"{where} is not finite")
    if attribute.HasField("t"):
        _check_tensor(attribute.t, None, {})
    if name in COUNTS:
        _require(1 <= attribute.i <= COUNTS[name] or bool(attribute.ref_attr_name), f"{where} is {attribute.i}")


# Attributes that kernels multiply with and divide by, and the most that is sensible.
SIZES = ("N", "N1", "N2", "N3", "N4")  # of the outputs of a product, and of some of one input
COUNTS = {
    **dict.fromkeys(("num_heads", "kv_num_heads", "q_num_heads", "q_num_groups"), 1 << 14),
    **dict.fromkeys(("K", "block_size", *SIZES), 1 << 26),
    "bits": 16,
    "num_scan_inputs": 64,
}


def _check_product(node: Any, weights: Mapping[str, list[int]]) -> None:
    """The sizes in the attributes of a product, or of some, are those of its weights [N, blocks, bytes of a block]."""
    sizes = {_text(attribute.name): attribute.i for attribute in node.attribute}
    outputs = [name for name in SIZES if name in sizes]
    if not {"K", "block_size"} <= sizes.keys():
        return
    prologue, _ = FUSED.get(_text(node.op_type), (Prologue(), ""))
    for name, given in zip(outputs, node.input[1 + prologue.inputs :: 2], strict=False):
        dims = weights.get(_text(given))
        if dims is not None:
            _check_weights(_text(node.op_type), name, sizes, dims)


def _check_weights(kind: str, name: str, sizes: Mapping[str, int], dims: list[int]) -> None:
    inputs, outputs, block = sizes["K"], sizes[name], sizes["block_size"]
    fits = len(dims) >= 2 and dims[0] == outputs and dims[1] == -(-inputs // max(block, 1))
    _require(
        fits or not kind.endswith(("MatMulNBits", "MatMulInt4", "MatMulInt8")),
        f"{kind} says {name} {outputs}, K {inputs}, blocks of {block}; its weights {dims}",
    )


def _files_bytes(graph: Any, folder: Path) -> int:
    """How large the files are in which the weights of a graph lie."""
    places = {_text(item.value) for tensor in graph.initializer for item in tensor.external_data
              if item.key == b"location"}  # fmt: skip
    return sum((folder / place).stat().st_size for place in places)


def _check_uses(graph: Any, weights: Mapping[str, int], size: int) -> None:
    """Engines copy weights into layouts of their own, once for each use: all take a few times the files' `size`."""
    used = sum(weights.get(_text(name), 0) for node in graph.node for name in node.input)
    most = MOST_USES * size + MOST_BYTES
    _require(sum(weights.values()) <= most, f"it has {sum(weights.values())} bytes of weights in files of {size}")
    _require(used <= most, f"its operators read {used} bytes of weights from files of {size}")


def _check_tensor(tensor: Any, folder: Path | None, files: Mapping[str, Any]) -> int:
    """Of a type and size that exist, its values inside a file of the bundle; `folder` None: in the graph itself.

    Gives its size in bytes.
    """
    name, dims = _text(tensor.name)[:200], list(tensor.dims)
    where = f"the weights {name!r}" if name else "a constant"
    _require(tensor.data_type in BITS, f"{where} have the type {tensor.data_type}")
    _require(all(0 <= size < LARGE for size in dims) and len(dims) <= 8, f"{where} have the shape {dims[:8]}")
    values = math.prod(dims)
    nbytes: int = (values * BITS[tensor.data_type] + 7) // 8
    if tensor.data_location == 0 and not tensor.external_data:
        _require(values <= MOST_INLINE, f"{where} have {values} values inside the graph")
        listed = [len(getattr(tensor, f"{kind}_data")) for kind in ("float", "int32", "int64", "double", "uint64")]
        packed = values if BITS[tensor.data_type] >= 8 else (values + 1) // 2
        right = len(tensor.raw_data) == nbytes if tensor.HasField("raw_data") else sum(listed) in (values, packed)
        _require(right and not tensor.string_data, f"{where} have other values than their shape {dims} wants")
        return nbytes
    _require(folder is not None and tensor.data_location == 1, f"{where} lie in an unknown place")
    assert folder is not None
    place = {_text(item.key): _text(item.value) for item in tensor.external_data}
    _require(len(place) == len(tensor.external_data), f"{where} say twice where they lie")
    file = place.pop("location", "")
    _require(file in files and "/" not in file, f"{where} lie in {file[:200]!r}, which is not one of its files")
    numbers = {key: place.pop(key, "0") for key in ("offset", "length")}
    _require(all(len(text) < 16 and text.isascii() and text.isdecimal() for text in numbers.values()) and not place,
             f"{where} lie at {numbers}")  # fmt: skip
    begin, length = int(numbers["offset"]), int(numbers["length"])
    _require(length == nbytes, f"{where} have {length} bytes, and their shape {dims} takes {nbytes}")
    _require(begin + length <= (folder / file).stat().st_size, f"{where} lie behind the end of {file}")
    return nbytes


def _check_ports(graph: Any, entry: GraphEntry) -> None:
    """Inputs and outputs are those of the manifest: what is allocated follows from these."""
    weights = {_text(tensor.name) for tensor in graph.initializer}
    for kind, ports, declared in (("inputs", graph.input, entry.inputs), ("outputs", graph.output, entry.outputs)):
        found = {_text(port.name): _port(port) for port in ports}
        found = {name: port for name, port in found.items() if name not in weights}
        expected = {name: (port.dtype, port.shape) for name, port in declared.items()}
        _require(len(found) == len(ports), f"its {kind} have one name twice, or are weights")
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        name = differing[0] if differing else ""
        _require(not differing, f"its {kind} have {name[:200]!r} {found.get(name)}, the manifest {expected.get(name)}")


def _port(port: Any) -> tuple[str, list[int | str]]:
    tensor = port.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else _text(dim.dim_param) for dim in tensor.shape.dim]
    return TYPES.get(tensor.elem_type, "unknown"), sizes


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
