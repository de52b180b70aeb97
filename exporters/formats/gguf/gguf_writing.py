"""Writes the two files of llama.cpp, and has its quantizer round them."""

from __future__ import annotations

import functools
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import yaml
from gguf import GGMLQuantizationType as Type

from ....runtimes.bundle.bundle_writer import BundleWriter
from ...checkpoint.hub import repository_of
from ...progress import Progress
from . import vocabulary
from .file_types import file_type
from .gguf_files import IMATRIX, MODEL, File, files, tensor_types, without_loss
from .imatrix import by_tensor, write_imatrix
from .llama_quantizer import (
    quantize,
)
from .writer import add, write

if TYPE_CHECKING:
    from ...job import Job

LOSSLESS = ".lossless.gguf"  # what the quantizer reads; not a part of the bundle


def write_files(job: Job, writer: BundleWriter, key: str, progress: Progress) -> None:
    """Write both files, each a stage of its own; holds a block of rows of one tensor in memory."""
    for file in files(job):
        with writer.stage(f"{file.graph}-{key}", [file.name]) as done:
            if not done and file.quantizer:
                _write_quantized(job, file, writer, progress)
            elif not done:
                _write_file(job, file, writer.add(file.name), file.stored, progress)
    if job.calibrated.importance:
        model = next(file for file in files(job) if file.name == MODEL)
        energies = by_tensor(job.calibrated.importance, model.tensors)
        write_imatrix(writer.add(IMATRIX), energies, [str(job.calibrated.evidence["samples"]["source"])])


def _write_file(job: Job, file: File, path: Path, stored: Type, progress: Progress) -> None:
    fill = functools.partial(_fill, job=job, file=file)
    total, done = sum(prod(tensor.shape) for tensor in file.tensors), 0

    def advance(elements: int) -> None:
        nonlocal done
        done += elements
        progress(file.graph, done, total)

    write(path, file.architecture, file.tensors, stored, fill, advance)


def write_plain(job: Job, folder: Path) -> None:
    """Write both files of a job in floats into any folder."""
    for file in files(job):
        _write_file(job, file, folder / file.name, file.stored, lambda *_: None)


def _write_quantized(job: Job, file: File, writer: BundleWriter, progress: Progress) -> None:
    """Write a file without loss, let llama.cpp quantize it, and remove it."""
    lossless = writer.partial / LOSSLESS
    try:
        _write_file(job, file, lossless, without_loss(job, file), progress)
        quantize(
            lossless,
            writer.add(file.name),
            file_type(job.options.precision).number,
            energies=by_tensor(job.calibrated.importance, file.tensors),
            overrides=tensor_types(job.options.tensor_types),
        )
    finally:
        lossless.unlink(missing_ok=True)


def _fill(writer: gguf.GGUFWriter, *, job: Job, file: File) -> None:
    _general(writer, job)
    add(writer, file.metadata)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if file.name == MODEL:
        assert job.spec.decoder is not None
        vocabulary.add_vocabulary(
            writer, job.tokenizer, job.spec.decoder.vocab, job.sections["prompt"]["eos_token_ids"]
        )


def _general(writer: gguf.GGUFWriter, job: Job) -> None:
    """Name, licence, base model and sampling defaults, as the checkpoint's README.md and configurations say."""
    parameters, shared, experts, count = writer.get_total_parameter_count()
    folder, hub = job.checkpoint.path.resolve(), repository_of(job.checkpoint.path)
    name = None if hub is None else hub["repository"].rpartition("/")[2]
    try:
        metadata = gguf.Metadata.load(None, folder, name, parameters)
    except (yaml.YAMLError, UnicodeDecodeError):  # of a README.md that is written for people alone
        metadata = gguf.Metadata(license=job.checkpoint.license)
    metadata.name = metadata.name or name or folder.name
    penalty = job.checkpoint.generation_config.get("repetition_penalty")  # in its own word, which gguf 0.19 misses
    metadata.sampling_penalty_repeat = metadata.sampling_penalty_repeat or penalty
    metadata.size_label = metadata.size_label or gguf.size_label(parameters, shared, experts, count)
    metadata.set_gguf_meta_model(writer)
