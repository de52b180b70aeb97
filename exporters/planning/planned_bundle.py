"""What a job will take before anything is written: bytes by component, memory of the device, image tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...runtimes.bundle.checked_manifest import inputs_of
from ...runtimes.generation.intake import DEFAULT_CONTEXT
from ...runtimes.media.pixels import grid_tokens, image_grid, image_spec
from ...targets.profile import TargetProfile
from ..formats.onnx.ort_attention import SCORES
from ..graphs.blocks import SourceTensor
from ..graphs.graph_files import Graph
from ..graphs.state_names import State, all_states
from ..job import Job
from ..notes import notes
from ..spec import Spec
from ..storage import weights
from .device_plan import DevicePlan, plan_device
from .golden_sizes import golden_bytes
from .proposals import ANYTHING, Budget

IMAGE_SIZES = ((224, 224), (448, 448), (640, 480), (896, 672), (1280, 720), (1920, 1080), (4032, 3024))  # width, height
BASE_MEMORY_BYTES = 190_000_000  # the interpreter, the libraries and the graphs; measured on Linux
BLOCK_COPIES = 8  # arrays of a block's size that are alive while it is quantized; measured
MANIFEST_TENSOR_BYTES = 250  # of lensmith.json for each tensor


@dataclass(frozen=True)
class Storage:
    """All matrices of a component that are stored the same way."""

    component: str
    precision: str  # "int4, groups of 128"
    tensors: int
    parameters: int
    disk_bytes: int


@dataclass(frozen=True)
class Plan:
    """The figures of a job."""

    architecture: str
    checkpoint: str
    checkpoint_bytes: int
    parameters: int
    precision: str
    target: str
    storage: tuple[Storage, ...]
    component_bytes: dict[str, int]  # of files: a graph with its data, or all tensors of a GGUF file
    bundle_bytes: int  # with golden traces, where `--golden auto` records them here
    golden_bytes: int  # of which these are
    export_memory_bytes: int
    context: int
    cache_bytes_per_token: int
    cache_bytes: int  # of the whole context
    state_bytes: int  # of recurrent states, whatever the context
    default_context: int
    device_memory_bytes: int  # weights, states and the KV cache of the default context; activations come on top
    image_tokens: dict[str, int]  # by "width x height"
    attention_bytes: dict[str, int]  # by the same, of an encoder without a decoder; empty for others
    device: DevicePlan  # what it takes there, how long, and what else would fit
    notes: tuple[str, ...]  # what to know before the work, in sentences

    def to_json(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {**asdict(self), "device": {**asdict(self.device), "fits": self.device.fits}}


def make_plan(job: Job, target: TargetProfile | None = None, wishes: Budget = ANYTHING) -> Plan:
    """The figures of a prepared job; nothing is read or written.

    `target` is the device that runs it, by default the job's; `wishes` are what it must keep to there.
    """
    storage = tuple(_storage(job))
    parts = _component_bytes(job, storage)
    weight_bytes = sum(parts.values())
    states, context, traces = _states(job), job.spec.context, golden_bytes(job)
    token_bytes = sum(state.nbytes for state in states if state.grows)
    state_bytes = sum(state.nbytes for state in states if not state.grows)
    default, tokens = min(context, DEFAULT_CONTEXT), image_tokens(job)
    return Plan(
        architecture=job.family.name,
        checkpoint=str(job.checkpoint.model_path),
        checkpoint_bytes=job.checkpoint.nbytes,
        parameters=job.parameters,
        precision=job.options.precision,
        target=job.target.name,
        storage=storage,
        component_bytes=parts,
        bundle_bytes=weight_bytes + _small_bytes(job) + traces,
        golden_bytes=traces,
        export_memory_bytes=BASE_MEMORY_BYTES + weights.THREADS * BLOCK_COPIES * 4 * weights.BLOCK_ELEMENTS,
        context=context,
        cache_bytes_per_token=token_bytes,
        cache_bytes=token_bytes * context,
        state_bytes=state_bytes,
        default_context=default,
        device_memory_bytes=weight_bytes + state_bytes + token_bytes * default,
        image_tokens=tokens,
        attention_bytes=_attention_bytes(job.spec, tokens),
        device=plan_device(job, target or job.target, tokens, wishes),
        notes=(*notes(job), *_missing(job)),
    )


def _missing(job: Job) -> Iterator[str]:
    """What a folder of configurations leaves open."""
    if not job.checkpoint.outline:
        return
    yield (
        "there are no weights here: tensors are those that config.json implies, all in one type, and what fine-tuning "
        "left out is not known"
    )
    if job.spec.decoder is not None and not job.tokenizer.is_here:
        yield "there is no tokenizer.json: the tokenizer and golden traces are not counted"


def _states(job: Job) -> list[State]:
    """What the decoder keeps from token to token, in the type of its activations; an encoder keeps nothing."""
    if job.spec.decoder is None:
        return []
    states = list(all_states(job.spec.decoder, job.policy.kv_cache))
    if not job.target.halves or job.options.precision == "fp32":
        return states
    return [state if state.exact or state.bits != 32 else replace(state, bits=16) for state in states]


def _attention_bytes(spec: Spec, tokens: dict[str, int]) -> dict[str, int]:
    """Of a bias for each pair of patches, built with one copy, and of the scores of a few queries at a time."""
    if spec.decoder is not None or spec.vision is None:
        return {}
    squares = {pixels: 4 * (count * spec.vision.merge_size**2) ** 2 for pixels, count in tokens.items()}
    biases = 2 if spec.vision.biased else 0
    return {pixels: biases * square + 4 * SCORES for pixels, square in squares.items()}


def image_tokens(job: Job) -> dict[str, int]:
    """Tokens in the prompt for images of common sizes, by "width x height"."""
    inputs = inputs_of(job.sections)
    if not inputs.takes_images:
        return {}
    spec = image_spec(inputs)
    return {f"{width} x {height}": grid_tokens(image_grid(height, width, spec), spec) for width, height in IMAGE_SIZES}


def _component_bytes(job: Job, storage: Iterable[Storage]) -> dict[str, int]:
    """Of graphs with their data files, which are those of the files to the byte, and of tensors in other files."""
    parts = {graph.name: _graph_bytes(job, graph) for graph in job.lowering.graphs(job)}
    others = Counter[str]()
    for row in storage:
        if row.component not in parts:
            others[row.component] += row.disk_bytes
    return {**parts, **others}


def _graph_bytes(job: Job, graph: Graph) -> int:
    """Bytes of the two files of a graph."""
    _, size = weights.layout(graph, job.checkpoint)
    return size + weights.graph_file_bytes(graph, job.checkpoint)


def _small_bytes(job: Job) -> int:
    """Bytes of the tokenizer, the template, the licence and, roughly, the manifest."""
    texts = (job.checkpoint.chat_template, job.checkpoint.license_text)
    tensors = sum(len(graph.sources) for graph in job.graphs)
    small = sum(len(text.encode()) for text in texts if text) + tensors * MANIFEST_TENSOR_BYTES
    has_tokenizer = job.spec.decoder is not None and job.tokenizer.is_here
    return small + (job.checkpoint.tokenizer_path.stat().st_size if has_tokenizer else 0)


def _storage(job: Job) -> Iterable[Storage]:
    """One row for each way in which tensors of a part are stored, the largest first."""
    graphs = {graph.name: _stored(job, graph) for graph in job.lowering.graphs(job)}
    parts: dict[str, Iterable[tuple[str, int, int]]] = {**graphs, **job.lowering.files(job)}
    for part, found in parts.items():
        tensors, parameters, disk = Counter[str](), Counter[str](), Counter[str]()
        for kind, size, nbytes in found:
            tensors[kind] += 1
            parameters[kind] += size
            disk[kind] += nbytes
        for kind, nbytes in disk.most_common():
            yield Storage(part, kind, tensors[kind], parameters[kind], nbytes)


def _stored(job: Job, graph: Graph) -> Iterator[tuple[str, int, int]]:
    """How each tensor of a graph is stored, its values and its bytes."""
    for source in graph.sources:
        size = job.checkpoint.tensors[source.name].size
        yield _precision(source), size, sum(weights.stored_bytes(parameter) for parameter in source.parameters)


def _precision(source: SourceTensor) -> str:
    if source.matrix is None:
        return "float32 (norms, biases, tables)"
    scheme = source.matrix.scheme
    if not scheme.quantized:
        return f"float{scheme.bits}"
    by_row = scheme.group_size == source.matrix.columns
    kind = "float" if scheme.float8 else "int"
    return f"{kind}{scheme.bits}, " + ("one scale for each row" if by_row else f"groups of {scheme.group_size}")
