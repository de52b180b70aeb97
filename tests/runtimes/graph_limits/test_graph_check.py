"""Graphs from strangers: what could run for ever, take all memory or read elsewhere is refused before it is loaded."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lensmith.runtimes.bundle.checked_manifest import typed
from lensmith.runtimes.bundle.opening import MANIFEST, open_bundle
from lensmith.runtimes.graph_limits import graph_check
from lensmith.runtimes.graph_limits.graph_check import check_graph
from lensmith.runtimes.graph_limits.graph_values import BYTES, Refused
from lensmith.runtimes.graph_limits.onnx_messages import parse_model
from lensmith.targets.errors import InputError

onnx = pytest.importorskip("onnx", reason="needs lensmith[export]")

CPU_SECONDS = 5
HUGE = 1 << 62


def node(kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs, outputs, domain=domain, **attributes)


def tensor(name: str, values: list[int]) -> Any:
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values)


def function(name: str, nodes: list[Any], domain: str = "lensmith") -> Any:
    return onnx.helper.make_function(domain, name, ["x"], ["y"], nodes, [onnx.helper.make_opsetid("", 21)])


def bomb(model: Any) -> None:
    """Each of a chain of functions calls the next one twice; names are those of the project's own."""
    names = ("MatMulInt2", "UnpackInt2", "SplitQuarters", "UnpackInt3", "MatMulInt3", "AttentionBf16")
    del model.functions[:]
    for name, called in pairwise(names):
        calls = [node(called, ["x"], [f"v{index}"], "lensmith") for index in range(40)]
        model.functions.append(function(name, [*calls, node("Add", ["v0", "v1"], ["y"])]))
    model.functions.append(function(names[-1], [node("Neg", ["x"], ["y"])]))


def endless(model: Any) -> None:
    del model.functions[:]
    model.functions.append(function("MatMulInt4", [node("MatMulInt4", ["x"], ["y"], "lensmith")]))


def loop(trips: list[Any], name: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        ports = [onnx.helper.make_tensor_value_info(port, kind, []) for port, kind in (("i", 7), ("more", 9))]
        again = onnx.helper.make_tensor_value_info("again", 9, [])
        body = onnx.helper.make_graph([node("Identity", ["more"], ["again"])], "body", ports, [again])
        model.graph.node.extend([*trips, node("Loop", [name, ""], [], body=body)])
        model.graph.initializer.append(tensor("huge", [HUGE]))

    return edit


def added(*nodes: Any) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        model.graph.node.extend(nodes)
        model.graph.initializer.extend([tensor("huge", [HUGE]), tensor("wide", [1 << 20, 1 << 20]), tensor("one", [1]),
                                        tensor("zero", [0]), tensor("column shape", [-1, 1]),
                                        tensor("row shape", [1, -1]), tensor("square shape", [512, -1])])  # fmt: skip

    return edit


def attribute(name: str, value: int) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        found = [item for each in model.graph.node for item in each.attribute if item.name == name]
        assert found
        found[0].i = value

    return edit


def external(**place: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        weights = next(item for item in model.graph.initializer if item.external_data)
        for item in weights.external_data:
            item.value = place.get(item.key, item.value)

    return edit


def told_more(model: Any) -> None:
    weights = next(item for item in model.graph.initializer if item.external_data)
    weights.external_data.add(key="base", value="1")


def shape(*dims: int) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        model.graph.initializer[0].dims[:] = dims

    return edit


def repeated(model: Any) -> None:
    """The same bytes under many names, of which each would be copied."""
    largest = max(model.graph.initializer, key=lambda tensor: math.prod(tensor.dims) * bool(tensor.external_data))
    for index in range(1000):
        model.graph.initializer.append(largest)
        model.graph.initializer[-1].name = f"copy {index}"


def used(model: Any) -> None:
    product = next(each for each in model.graph.node if each.op_type == "MatMulInt4")
    for index in range(5000):
        model.graph.node.append(product)
        model.graph.node[-1].output[0] = f"more {index}"


def renamed(model: Any) -> None:
    model.graph.input[0].name = "other"


def widened(model: Any) -> None:
    past = next(port for port in model.graph.input if port.name.startswith("past_key_values."))
    past.type.tensor_type.shape.dim[1].dim_value = HUGE


def nested(model: Any) -> None:
    loop([], "huge")(model)
    model.graph.node[-1].attribute[0].g.node.append(model.graph.node[-1])


def chain(kind: str, count: int, start: str = "image_features", **attributes: Any) -> Callable[[Any], None]:
    """Each node takes what the one before made twice."""
    names = [start, *(f"v{index}" for index in range(count))]
    return added(*(node(kind, [one, one], [two], **attributes) for one, two in pairwise(names)))


def flat() -> list[Any]:
    """All features as a column and as a row."""
    return [node("Reshape", ["image_features", f"{name} shape"], [name]) for name in ("column", "row")]


def outer(kind: str) -> list[Any]:
    return [*flat(), node(kind, ["column", "row"], ["y"])]


def copies() -> list[Any]:
    return [*flat(), node("Shape", ["row"], ["row sizes"]), node("Expand", ["column", "row sizes"], ["y"])]


def look_ups() -> list[Any]:
    """For each value of a column all of a row."""
    return [*flat(), node("Cast", ["row"], ["places"], to=7), node("Gather", ["column", "places"], ["y"], axis=1)]


def doubling_functions(model: Any) -> None:
    names = ("MatMulInt2", "UnpackInt2", "SplitQuarters", "UnpackInt3", "MatMulInt3", "AttentionBf16")
    kept = [each for each in model.functions if each.name not in names]
    del model.functions[:]
    model.functions.extend(kept)
    for name, called in pairwise(names):
        calls = [node(called, ["x"], ["v0"], "lensmith"), node(called, ["v0"], ["v1"], "lensmith")]
        model.functions.append(function(name, [*calls, node(called, ["v1"], ["y"], "lensmith")]))
    model.functions.append(function(names[-1], [node("Concat", ["x", "x"], ["y"], axis=0)]))
    model.graph.node.append(node("MatMulInt2", ["image_features"], ["y"], "lensmith"))


def at_once(model: Any) -> None:
    """Many large values that are all used at the end."""
    made = [node("Concat", ["image_features"] * 64, [f"v{index}"], axis=1) for index in range(500)]
    added(*made, *(node("Neg", [f"v{index}"], [f"w{index}"]) for index in range(500)))(model)


def many_products(model: Any) -> None:
    """Each product is one that the model might make; all together they take hours."""
    first = [node("Reshape", ["logits", "square shape"], ["a0"]), node("Transpose", ["a0"], ["squares"], perm=[1, 0])]
    added(*first, *(node("MatMul", [f"a{index}", "squares"], [f"a{index + 1}"]) for index in range(5_000)))(model)


def long_cache(model: Any) -> None:
    """A length that the graph makes up, to which the keys that come out grow."""
    attention = next(each for each in model.graph.node if each.op_type == "CachedAttention")
    attention.input[5] = "long"
    model.graph.initializer.append(tensor("long", [1 << 40]))


def growing(model: Any) -> None:
    """Each turn doubles what the loop hands on."""
    added()(model)
    loop([], "one")(model)
    body = model.graph.node[-1].attribute[0].g
    body.input.append(onnx.helper.make_tensor_value_info("x", 1, []))
    body.output.append(onnx.helper.make_tensor_value_info("xx", 1, []))
    body.node.append(node("Concat", ["x", "x"], ["xx"], axis=0))
    model.graph.node[-1].input.append("image_features")
    model.graph.node[-1].output.append("y")


CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "function bomb": (bomb, "more than 1000 nodes in all"),
    "endless function": (endless, "calls itself"),
    "foreign function": (lambda m: m.functions.append(function("Mine", [], "mine")), "unknown function 'Mine'"),
    "loop of a constant": (loop([], "huge"), "it may multiply"),
    "loop of a product": (loop([node("Mul", ["huge", "huge"], ["n"])], "n"), "a Loop from numbers that have no bound"),
    "loop of a value": (loop([node("ReduceSum", ["input_ids"], ["n"])], "n"), "a Loop from numbers that have no bound"),
    "loop without an end": (loop([], ""), "a Loop of any number of turns"),
    "loop in a loop": (nested, "a Loop inside a Loop"),
    "condition": (added(node("If", ["one"], ["y"])), "the operator 'If'"),
    "huge constant": (added(node("ConstantOfShape", ["wide"], ["y"])), "the operator 'ConstantOfShape'"),
    "huge copy": (added(node("Expand", ["one", "wide"], ["y"])), "same may take 4.4e+12"),
    "huge range": (added(node("Range", ["one", "huge", "one"], ["y"])), "same may take 1.84e+19"),
    "huge border": (added(node("Concat", ["huge", "huge"], ["p"], axis=0), node("Pad", ["one", "p"], ["y"])),
                    "same may take 3.69e+19"),
    "another border": (added(node("Pad", ["one", "huge"], ["y"])), "a Pad of 1 numbers for 1 axes"),
    "doubling": (chain("Concat", 40, axis=0), "the numbers in a result of Concat may take"),
    "doubling of constants": (chain("Concat", 40, start="one", axis=0), "the bytes of results"),
    "doubling in functions": (doubling_functions, "the numbers in a result of"),
    "doubling by copies": (added(*copies()), "the numbers in a result of Expand"),
    "doubling by look-ups": (added(*look_ups()), "the numbers in a result of Gather"),
    "all pairs": (added(*outer("Add")), "the numbers in a result of Add may take"),
    "outer product": (added(*outer("MatMul")), "the numbers in a result of MatMul may take"),
    "comparison of all": (added(*outer("Equal")), "the numbers in a result of Equal may take"),
    "all at once": (at_once, "the numbers in all results at once may take"),
    "many products": (many_products, "it may multiply"),
    "length of a cache": (long_cache, "the numbers in a result of GroupQueryAttention may take"),
    "size of a value": (added(node("Cast", ["image_features"], ["i"], to=7), node("Expand", ["one", "i"], ["y"])),
                        "an Expand from numbers that have no bound"),
    "size of a token": (added(node("Range", ["zero", "input_ids", "one"], ["y"])), "a Range from numbers"),
    "growing loop": (growing, "a Loop that hands on something else"),
    "value from behind": (added(node("Neg", ["later"], ["y"]), node("Neg", ["one"], ["later"])), "is made by no node"),
    "sequences": (added(node("SequenceEmpty", [], ["y"])), "the operator 'SequenceEmpty'"),
    "operator of another": (added(node("Evil", ["one"], ["y"], "evil")), "the operator 'Evil' of 'evil'"),
    "operators of another": (lambda m: m.opset_import.append(onnx.helper.make_opsetid("evil", 1)), "the operator sets"),
    "heads": (attribute("num_heads", HUGE), "'num_heads' of NormRotary is out of range"),
    "many heads": (attribute("num_heads", (1 << 14) + 1), "'num_heads' of NormRotary is 16385"),
    "parts": (added(node("Split", ["one"], ["y", "z", "w"], num_outputs=2)), "num_outputs 2 and 3 outputs"),
    "no heads": (attribute("kv_num_heads", 0), "'kv_num_heads' of NormRotary is 0"),
    "rows of a product": (attribute("N", 1 << 25), "its weights"),
    "rows of the second of some products": (attribute("N2", 1 << 25), "says N2 33554432"),
    "block": (attribute("block_size", 0), "'block_size' of"),
    "weights elsewhere": (external(location="../secret"), "'../secret', which is not one of"),
    "weights behind the end": (external(offset="999999999"), "behind the end of"),
    "weights before the start": (external(offset="-1"), "lie at"),
    "weights in base 16": (external(offset="0x0"), "lie at"),
    "weights of a long number": (external(offset="0" * 16), "lie at"),
    "weights of another key": (told_more, "lie at"),
    "fewer weights": (external(length="1"), "have 1 bytes"),
    "shape of weights": (shape(1 << 30, 1 << 30, 1 << 30), "values inside the graph"),
    "negative shape": (shape(-1), "have the shape [-1]"),
    "one weight many times": (repeated, "bytes of weights in files of"),
    "one weight for many": (used, "its operators read"),
    "another input": (renamed, "its inputs have"),
    "heads of a state": (widened, "its inputs have 'past_key_values."),
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(made: Callable[[str], Path]) -> Path:
    return made("qwen3-vl-2b")


def changed(bundle: Path, folder: Path, edit: Callable[[Any], None]) -> tuple[Path, Any, Any]:
    """A decoder with an edit beside the weights of the bundle, its name, and the manifest."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    edit(model)
    (folder / "decoder.data").symlink_to(bundle / "decoder.data")
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    return folder / "decoder.onnx", "decoder", typed(manifest)


@pytest.mark.parametrize("case", CASES)
def test_strange_graphs_are_refused(bundle: Path, tmp_path: Path, case: str) -> None:
    edit, message = CASES[case]
    given = changed(bundle, tmp_path, edit)
    started = time.process_time()
    with pytest.raises(InputError, match="is not a graph that lensmith runs") as caught:
        check_graph(*given)
    assert time.process_time() - started < CPU_SECONDS
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\0", b"\x3a\xff\xff\xff\xff\x7f", b"\x3a\x02\x0a" * 1000, b"x" * 100])
def test_files_that_are_no_graphs_are_refused(bundle: Path, tmp_path: Path, data: bytes) -> None:
    path, *rest = changed(bundle, tmp_path, lambda model: None)
    check_graph(path, *rest)
    path.write_bytes(data)
    with pytest.raises(InputError, match="is not a graph that lensmith runs"):
        check_graph(path, *rest)


def test_nodes_are_counted_with_functions_and_loops_in_their_places(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, *rest = changed(bundle, tmp_path, loop([], "one"))
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(tensor("one", [1]))
    path.write_bytes(model.SerializeToString())
    functions = {each.name: each.node for each in model.functions}

    def count(nodes: Any) -> int:
        return sum(count(functions[each.op_type]) if each.op_type in functions else 1 for each in nodes)

    calls = count(model.graph.node)
    monkeypatch.setattr(graph_check, "MOST_NODES", calls + 1)  # and the one in the loop
    check_graph(path, *rest)
    monkeypatch.setattr(graph_check, "MOST_NODES", calls)
    with pytest.raises(InputError, match=f"more than {calls} nodes"):
        check_graph(path, *rest)


def test_types_are_those_of_onnx() -> None:
    names = {number: onnx.TensorProto.DataType.Name(number) for number in graph_check.BITS}
    assert names == graph_check.TYPES
    for number, bits in graph_check.BITS.items():
        wide = 8 * onnx.helper.tensor_dtype_to_np_dtype(number).itemsize
        assert bits == (4 if names[number].endswith("INT4") else wide)
        assert (number in BYTES) == (bits <= 8)


@pytest.mark.parametrize(
    ("inputs", "blocks", "fits"), [(64, 2, True), (65, 3, True), (96, 3, True), (97, 3, False), (64, 3, False)]
)
def test_the_last_block_of_a_product_may_be_shorter(inputs: int, blocks: int, fits: bool) -> None:
    product = node("MatMulNBits", ["x", "w"], ["y"], "com.microsoft", K=inputs, N=5, block_size=32)
    model = onnx.helper.make_model(onnx.helper.make_graph([product], "g", [], []))
    read = parse_model(model.SerializeToString()).graph.node[0]
    for dims, right in (([5, blocks, 16], fits), ([4, blocks, 16], False), ([5], False)):
        with nullcontext() if right else pytest.raises(Refused, match=f"K {inputs}, blocks of 32"):
            graph_check._check_product(read, {"w": dims})


KINDS = ("qwen3-vl-2b", "tarn-2b", "vqwen3-4b", "arlow-vision", "tensorrt", "plugin")


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_every_kind_pass(made: Callable[[str], Path], kind: str) -> None:
    opened = open_bundle(made(kind))
    for name in opened.content["graphs"]:
        assert opened.graph(name).suffix == ".onnx"
