"""Runs the stages of a graph over many samples at once: one stage's weights and the values between two stages live."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from ...exporters.checkpoint.folder import Checkpoint
from ...exporters.formats.onnx.ort import OPSETS
from ...exporters.graphs.blocks import SourceTensor
from ...exporters.graphs.graph_files import IR_VERSIONS
from ...exporters.storage.rounding import through_8_bits
from .shelf import Room, Shelf
from .stages import Product, Stage

Floats = NDArray[np.float32]
Values = MutableMapping[str, NDArray[Any]]
Effective = Callable[[Product], Floats | None]  # what a matrix is taken for; None: what the checkpoint has
TABLE_ROWS = 4096  # of a table in memory at a time


class StageRunner:
    """A stage as a session of ONNX Runtime in float32. Weights are inputs: others need no other session."""

    def __init__(self, stage: Stage, checkpoint: Checkpoint, like: Values, threads: int) -> None:
        """`like` are the values of a sample, which tell the types of the inputs."""
        self.stage, self.checkpoint = stage, checkpoint
        self.weights = {str(s.parameters[0].name): _load(checkpoint, s) for s in stage.sources}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # numpy works between two runs
        options.enable_cpu_mem_arena = False  # one keeps gigabytes as long as any of its values lives
        model = _model(stage, {**{name: like[name] for name in stage.inputs}, **self.weights})
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def original(self, product: Product) -> Floats:
        """The matrix of a product as the checkpoint has it, [rows, columns]."""
        return self.weights[str(product.source.parameters[0].name)]

    def feeds(self, effective: Effective) -> dict[str, onnxruntime.OrtValue]:
        """The weights of the stage, with some matrices replaced."""
        arrays = dict(self.weights)
        for product in self.stage.products:
            replaced = effective(product)
            if replaced is not None:
                arrays[str(product.source.parameters[0].name)] = np.ascontiguousarray(replaced)
        return {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}

    def run(self, values: Values, weights: Mapping[str, onnxruntime.OrtValue], rounded: Collection[str] = ()) -> None:
        """Advance one sample in place: what is not needed any more goes, what the stage makes comes.

        The inputs of matrices named in `rounded` take the values that 8 bits for the whole tensor leave.
        """
        outputs = self.stage.outputs
        if outputs:
            taken = {name: values[name] for name in self.stage.inputs}
            for name in {product.input for product in self.stage.products if product.source.name in rounded}:
                taken[name] = through_8_bits(values[name])
            own = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in taken.items()}
            made = self.session.run_with_ort_values(list(outputs), {**own, **weights})
            values.update({name: value.numpy() for name, value in zip(outputs, made, strict=True)})
        for name in [name for name in values if name not in self.stage.needed]:
            del values[name]


class SampleStream:
    """All samples on their way through the stages."""

    def __init__(self, samples: Sequence[Values], room: Room | None = None) -> None:
        room = room or Room(None)
        self.samples = [Shelf(sample, room) for sample in samples]

    def look_up(self, stage: Stage, tables: Callable[[SourceTensor, NDArray[np.int64]], Floats]) -> None:
        """Add the rows of tables that a stage needs, of all samples at once."""
        for wanted in stage.lookups:
            ids = [sample[wanted.ids] for sample in self.samples]
            unique, places = np.unique(np.concatenate([i.ravel() for i in ids]), return_inverse=True)
            rows, start = tables(wanted.source, unique), 0
            for sample, own in zip(self.samples, ids, strict=True):
                sample[wanted.output] = rows[places[start : start + own.size]].reshape(*own.shape, -1)
                start += own.size

    def advance(
        self, runner: StageRunner, effective: Effective = lambda _: None, rounded: Collection[str] = ()
    ) -> None:
        """Take all samples through one stage; `rounded` are the matrices whose inputs are rounded to 8 bits."""
        weights = runner.feeds(effective)
        for sample in self.samples:
            runner.run(sample, weights, rounded)


def relative_error(pairs: Iterable[tuple[Floats, Floats]]) -> float:
    """The relative mean square error of the second of each pair, over all."""
    lost = total = 0.0
    for plain, other in pairs:
        lost += float(np.square(plain - other).sum(dtype=np.float64))
        total += float(np.square(plain).sum(dtype=np.float64))
    return lost / max(total, 1e-30)


def table_rows(checkpoint: Checkpoint, source: SourceTensor, ids: NDArray[np.int64]) -> Floats:
    """Rows of a table by sorted id, read in blocks."""
    tensor, parts = checkpoint.tensor(source.name), []
    for start, block in table_blocks(checkpoint, source):
        parts.append(block[ids[(ids >= start) & (ids < start + len(block))] - start])
    return np.concatenate(parts) if parts else np.zeros((0, tensor.shape[1]), np.float32)


def table_blocks(checkpoint: Checkpoint, source: SourceTensor) -> Iterator[tuple[int, Floats]]:
    """A table in blocks of rows, each with the index of its first row."""
    tensor = checkpoint.tensor(source.name)
    for start in range(0, tensor.shape[0], TABLE_ROWS):
        yield start, tensor.rows(start, min(start + TABLE_ROWS, tensor.shape[0]))


def _load(checkpoint: Checkpoint, source: SourceTensor) -> Floats:
    array = checkpoint.tensor(source.name).numpy()
    packed: Floats = source.pack(array)[0]
    return packed


def _model(stage: Stage, like: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """The nodes of a stage as a model of its own; shapes are left to the runtime, types are those of `like`."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in like.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in stage.outputs]
    used = {value for node in stage.nodes for value in node.inputs if value is not None}
    constants = [
        ir.to_proto(node) for node in {value.producer() for value in used} if node and node.op_type == "Constant"
    ]
    tensors = [_tensor(value) for value in used if value.const_value is not None]
    graph = onnx.helper.make_graph(
        [*constants, *(ir.to_proto(node) for node in stage.nodes)], "stage", inputs, outputs, tensors
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSIONS[OPSETS[""]])


def _tensor(value: ir.Value) -> onnx.TensorProto:
    assert value.const_value is not None
    return onnx.numpy_helper.from_array(value.const_value.numpy(), str(value.name))
