"""From a checkpoint to the two GGUF files of llama.cpp: `model.gguf` and, for the vision encoder, `mmproj.gguf`."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
from gguf import GGMLQuantizationType as Type

from ....runtimes.engines.llamacpp.library import llama
from ....targets.errors import InputError
from ...spec import ModelSpec
from . import vocabulary
from .file_types import MMPROJ_NUMBERS, file_type
from .llama_quantizer import (
    Outlook,
    check_type,
    foresee,
)
from .tensors import Tensor
from .writer import add, write_outline
from .written_tensors import check_samples

if TYPE_CHECKING:
    from ....targets.profile import TargetProfile
    from ...graphs.graph_files import Graph
    from ...job import Job, Options

MODEL, MMPROJ, IMATRIX = "model.gguf", "mmproj.gguf", "imatrix.gguf"
ENCODER = "vision_encoder"
TOOLS = ("gguf",)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """One of the two files, before it is written."""

    graph: str  # what it is in the manifest: "decoder" or "vision_encoder"
    name: str
    architecture: str
    stored: Type
    tensors: tuple[Tensor, ...]
    metadata: dict[str, Any]
    quantizer: bool = False  # whether llama.cpp's makes it; what it chooses for each tensor is in its outlook


def refuse(options: Options, _: TargetProfile) -> None:
    """An InputError for wishes that llama.cpp's files have no place for."""
    if options.target is not None:
        raise InputError(f"GGUF files are the same for every device; leave out --target {options.target}")
    if options.kv_cache not in (None, "float"):
        raise InputError(f"--kv-cache {options.kv_cache} is no part of GGUF files; their runtime chooses: leave it out")


def without_spaced_videos(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections of a manifest without videos whose time is in the positions: llama.cpp hides by these what is later.

    Frames with one position in time would see a part of each other, and text behind a video not all of it.
    """
    if "tokens_per_second" not in sections.get("video", {}):
        return sections
    log.warning("llama.cpp cannot compute videos of this family: the bundle takes pictures and text")
    return {name: section for name, section in sections.items() if name != "video"}


def check(job: Job) -> None:
    """Describe both files and drop them again; InputError for what llama.cpp has no place for."""
    described = files(job)
    if job.tokenizer.is_here:
        vocabulary.check(job.tokenizer)
    wishes = tensor_types(job.options.tensor_types)
    if any(file.quantizer for file in described):
        llama()  # raises MissingExtra
        file = next(file for file in described if file.quantizer)
        matrices = [tensor.name for tensor in file.tensors if tensor.type(Type.F16) == Type.F16]
        for pattern in wishes:
            try:
                found = any(re.search(pattern, name) for name in matrices)  # as llama.cpp looks for it, too
            except re.error as error:
                raise InputError(f"the tensor type's pattern {pattern!r} is no regular expression ({error})") from error
            if not found:
                raise InputError(
                    f"the tensor type's pattern {pattern!r} finds none of the {len(matrices)} matrices of {file.name}, "
                    f"whose names are like {matrices[0]}; see `lensmith inspect --tensors` of a bundle for all"
                )
    elif job.options.tensor_types:
        raise InputError(
            f"precision {job.options.precision} is written without llama.cpp's quantizer, which alone knows "
            "--tensor-type; use one like q4_k_m"
        )


def outlook(job: Job, file: File) -> Outlook:
    """What llama.cpp's quantizer will make of a file of a job; it must be one that it makes."""
    number, overrides = file_type(job.options.precision).number, tensor_types(job.options.tensor_types)
    columns = {tensor.name: tensor.shape[1] for tensor in file.tensors if tensor.type(Type.F16) == Type.F16}
    with tempfile.TemporaryDirectory() as folder:
        outline, kept = Path(folder) / file.name, without_loss(job, file)
        write_outline(outline, file.architecture, file.tensors, kept, lambda writer: add(writer, file.metadata))
        found = foresee(outline, number, columns={}, overrides=overrides)
        if not (found.needs_importance or job.calibrated.importance):
            return found
        return replace(found, types=foresee(outline, number, columns=columns, overrides=overrides).types)


def ready(job: Job) -> None:
    """InputError, before anything is written, for a file type that llama.cpp makes with importance alone."""
    if job.calibrated.importance or not needs_importance(job):
        return
    raise InputError(
        f"precision {job.options.precision} needs to know which columns of this model matter: add --calibrate imatrix"
    )


def needs_importance(job: Job) -> bool:
    """Whether llama.cpp refuses the file type for this model unless it is told the importance of columns."""
    return any(outlook(job, file).needs_importance for file in files(job) if file.quantizer)


def files(job: Job) -> tuple[File, ...]:
    """The files of a job, one without images; InputError for what llama.cpp has no place for."""
    spec, made = job.spec, job.family.gguf
    if not isinstance(spec, ModelSpec):
        raise InputError(
            f"{job.family.name} is a vision encoder alone, for which llama.cpp has no place; "
            "export it with --format onnx"
        )
    if made is None:
        raise InputError(f"lensmith writes no GGUF files of {job.family.name} yet; export it with --format onnx")
    kind, prefixes = file_type(job.options.precision), job.family.prefixes
    sources = [job.checkpoint.tensor(name) for name in sorted({s.name for graph in job.graphs for s in graph.sources})]
    decoder = made.decoder(spec, prefixes)
    model = {**decoder.metadata(), "general.type": "model", "general.file_type": kind.number}
    written = File("decoder", MODEL, gguf.MODEL_ARCH_NAMES[decoder.arch], Type[kind.model],
                   tuple(decoder.tensors(sources)), model, quantizer=kind.quantizer)  # fmt: skip
    if made.vision is None:
        return (written,)
    vision = made.vision(spec, prefixes, job.sections)
    encoder = {**vision.metadata(), "general.type": "mmproj", "general.file_type": MMPROJ_NUMBERS[kind.mmproj]}
    return File(ENCODER, MMPROJ, "clip", Type[kind.mmproj], tuple(vision.tensors(sources)), encoder), written


def without_loss(job: Job, file: File) -> Type:
    """The smallest float type that holds what the checkpoint has."""
    kinds = {job.checkpoint.tensors[t.sources[0]].dtype for t in file.tensors if t.type(Type.F16) == Type.F16}
    return {"F16": Type.F16, "BF16": Type.BF16}.get(kinds.pop(), Type.F32) if len(kinds) == 1 else Type.F32


def tensor_types(wishes: Iterable[str]) -> dict[str, str]:
    """Types by pattern, of PATTERN=TYPE; InputError for anything else."""
    found = {}
    for wish in wishes:
        pattern, equals, kind = wish.rpartition("=")
        if not pattern or not equals:
            raise InputError(f"the tensor type {wish!r} is not PATTERN=TYPE, such as 'ffn_down=q6_k'")
        check_type(kind)
        if pattern in found:
            raise InputError(f"the tensor type's pattern {pattern!r} is given twice; leave one of them out")
        found[pattern] = kind
    return found


def signatures(job: Job) -> dict[str, Any]:
    """The files as the manifest lists graphs, with what goes in and comes out."""
    spec = job.spec
    assert spec.decoder is not None
    axes: list[int | str] = [] if spec.decoder.mrope_section is None else [3]
    ids, positions = ["batch", "sequence"], [*axes, "batch", "sequence"]
    decoder = {"input_ids": _port("INT64", ids), "position_ids": _port("INT64", positions)}
    logits = {"logits": _port("FLOAT", ["batch", "num_logits", spec.decoder.vocab])}
    features = {"image_features": _port("FLOAT", ["image_tokens", spec.decoder.hidden])}
    encoder = "mmproj" if encoder_graphs(job) else ENCODER
    encoders = {} if spec.vision is None else {encoder: {"file": MMPROJ, "inputs": {}, "outputs": features}}
    return encoders | {"decoder": {"file": MODEL, "inputs": decoder | features, "outputs": logits}}


def encoder_graphs(job: Job) -> tuple[Graph, ...]:
    """Vision encoders that a bundle has as ONNX besides, where llama.cpp computes something else."""
    besides = job.family.gguf is not None and job.family.gguf.encoder_besides
    return tuple(graph for graph in job.graphs if graph.name == ENCODER and besides)


def encoder_precision(precision: str) -> str:
    """Of such an encoder."""
    return {"f32": "fp32", "f16": "fp16", "bf16": "fp16"}.get(precision, "int8")


def _port(dtype: str, shape: list[Any]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape}


def notes(job: Job) -> Iterator[str]:
    """What a user should know before the files are built."""
    if job.family.gguf is not None and job.family.gguf.note:
        yield job.family.gguf.note


def decoder_bits(job: Job) -> float:
    """Bits of a weight of the decoder's matrices, with those of their scales."""
    block, nbytes = gguf.GGML_QUANT_SIZES[Type[file_type(job.options.precision).model]]
    return 8 * nbytes / block


def check_sample(job: Job, folder: Path) -> None:
    """Raises CheckFailed for files in a folder whose tensors are not the checkpoint's."""
    for file in files(job):
        check_samples(file.tensors, folder / file.name)


def planned(job: Job) -> dict[str, Iterator[tuple[str, int, int]]]:
    """How the tensors of each file will be stored, by the file's name without its end."""
    return {Path(file.name).stem: stored(job, file) for file in files(job)}


def stored(job: Job, file: File) -> Iterator[tuple[str, int, int]]:
    """How each tensor of a file is stored, its values and its bytes."""
    plain = without_loss(job, file) if file.quantizer else file.stored
    chosen = outlook(job, file).types if file.quantizer else {}
    for tensor in file.tensors:
        kind, size = chosen.get(tensor.name, tensor.type(plain)), prod(tensor.shape)
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        yield kind.name, size, size // block * nbytes
