"""Sessions of ONNX Runtime, with the settings that all graphs want."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ....targets.errors import InputError
from ...process.interrupt import ended_by
from ..native import LIBRARY, wanted_kernels
from ..refusals import reason_of


def session(
    path: Path,
    threads: int | None,
    *,
    profile: bool = False,
    native: bool | None = None,
    graph: bytes | None = None,
) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU; `threads` None means one for each core, `native` as of `wanted_kernels`.

    `graph` takes the place of what is in the file; its data lie beside that, or where a link there leads.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # shapes change from step to step: a planned arena only doubles the memory
    # Idle threads of one graph must not spin while the other graph runs: a small model answers twice as fast.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # DequantizeLinear in front of a product becomes MatMulNBits at load: with activations as they are, not in 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # On Arm KleidiAI rounds activations by row and scales to bfloat16: not what a bundle was proven with.
    options.add_session_config_entry("mlas.disable_kleidiai", "1")
    # Without VNNI, products of 8 bits add pairs in 16 bits, which overflow; so signed weights become unsigned there.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4  # none: what fails is raised, and said once
    if wanted_kernels(native):
        options.register_custom_ops_library(str(LIBRARY))
    return load_session(path, options, ["CPUExecutionProvider"], profile=profile, graph=graph)


def load_session(
    path: Path,
    options: ort.SessionOptions,
    providers: Sequence[Any],
    *,
    profile: bool = False,
    graph: bytes | None = None,
) -> ort.InferenceSession:
    """A session with these options and providers; an InputError where ONNX Runtime refuses. `graph` as of `session`."""
    options.log_severity_level = max(options.log_severity_level, 3)
    options.enable_profiling = profile
    if graph is not None:
        folder = str(path.resolve().parent)  # where a link of the hub's cache leads, as when the file itself is opened
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        return ort.InferenceSession(str(path) if graph is None else graph, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises its own unrelated types here
        message = f"{path} cannot be loaded by onnxruntime {ort.__version__} ({reason_of(error)}); export it again"
        raise InputError(message) from error


@contextmanager
def interruptible() -> Iterator[ort.RunOptions]:
    """Options of one run, which ONNX Runtime ends at its next operator once the caller's work is no longer wanted."""
    options = ort.RunOptions()

    def end() -> None:
        options.terminate = True

    with ended_by(end):
        yield options
