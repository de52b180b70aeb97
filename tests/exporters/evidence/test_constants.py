"""Epsilons of norms and rotary frequencies are those of PyTorch's modules; outputs of graphs hardly show them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from lensmith.exporters.evidence import constants
from lensmith.exporters.evidence.constants import check_constants, of_modules
from lensmith.exporters.evidence.torch_loading import import_torch
from lensmith.exporters.families.llava import llava_gguf
from lensmith.exporters.formats.gguf import gguf_decoder
from lensmith.exporters.formats.gguf import gguf_writing as gguf
from lensmith.exporters.formats.onnx.ort import OrtDialect
from lensmith.exporters.formats.tensorrt.tensorrt_dialect import TensorRTDialect
from lensmith.exporters.graphs import decoder, rope, vit
from lensmith.exporters.pipeline import Job, Options, prepare
from lensmith.exporters.storage import weights
from lensmith.targets.errors import CheckFailed

from tests.helpers import ladder
from tests.helpers.arlow import CHECKPOINT
from tests.paths import TINY

Break = Callable[[pytest.MonkeyPatch], None]
FORMATS: dict[str, dict[str, Any]] = {
    "onnx": {"precision": "int4"},
    "cuda": {"target": "cuda"},
    "tensorrt": {"format": "tensorrt", "target": "jetson-thor"},
    "gguf": {"format": "gguf", "precision": "f16"},
}


def check(path: Path, folder: Path, **options: Any) -> None:
    """As an export does, with the graphs alone or metadata of GGUF files without rounding."""
    ladder.need_torch()
    job = prepare(path, Options(**options))
    if options.get("format") == "gguf":
        gguf.write_plain(job, folder)
    files = [folder / entry["file"] for entry in job.lowering.signatures(job).values()]
    for graph in job.lowering.graphs(job):
        ir.save(weights.with_data(graph, job.checkpoint), folder / f"{graph.name}.onnx")
    check_constants(files, modules(job), "it")


def modules(job: Job) -> Any:
    return of_modules(job.family.modules(job.checkpoint, job.spec), import_torch()[0], job.family.prefixes)


@pytest.mark.parametrize(
    ("name", "form"),
    [*(("qwen3_5", form) for form in FORMATS), ("llava", "cuda"), ("llava", "gguf"), ("qwen3_vl", "onnx")],
)
def test_right_graphs_pass(name: str, form: str, tmp_path: Path) -> None:
    check(TINY / name, tmp_path, **FORMATS[form])


def test_an_encoder_alone_passes(tmp_path: Path) -> None:
    check(CHECKPOINT, tmp_path, precision="fp32")


def stretched(factor: float, pair: int) -> Break:
    """One rotary frequency of the decoder."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        def inverse(*about: Any) -> Any:
            found = rope.inverse_frequencies(*about).copy()
            found[pair] *= found.dtype.type(factor)
            return found

        patch.setattr(decoder, "inverse_frequencies", inverse)

    return apply


def norm(dialect: type, kind: str, which: int) -> Break:
    """The epsilon of one norm, as somebody might have read it from elsewhere."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        real, calls = getattr(dialect, kind), count()

        def other(self: Any, op: Any, *about: Any) -> Any:
            return real(self, op, *about[:-1], about[-1] * (1.3 if next(calls) == which else 1))

        patch.setattr(dialect, kind, other)

    return apply


def metadata(module: Any, key: str, change: Callable[[Any], Any]) -> Break:
    def apply(patch: pytest.MonkeyPatch) -> None:
        for name in ("_common", "_rotary", "common_metadata"):
            real = getattr(module, name, dict)

            def changed(*about: Any, real: Any = real) -> Any:
                return {each: change(value) if each.endswith(key) else value for each, value in real(*about).items()}

            patch.setattr(module, name, changed, raising=False)

    return apply


def vision_base(patch: pytest.MonkeyPatch) -> None:
    real = vit.patch_angles
    patch.setattr(
        vit, "patch_angles", lambda op, dialect, grid, spec: real(op, dialect, grid, replace(spec, rope_theta=10_010.0))
    )


def last_axis(patch: pytest.MonkeyPatch) -> None:
    """The axis that the slowest frequency follows."""
    real = decoder.mrope_source
    patch.setattr(decoder, "mrope_source", lambda section, **_: [*real(section)[:-1], (real(section)[-1] + 1) % 3])


WRONG: dict[str, tuple[str, str, Break, str]] = {
    "a norm": ("qwen3_vl", "onnx", norm(OrtDialect, "rms_norm", 3), "1.30000001e-06, PyTorch's 9.99999997e-07"),
    "an added norm": ("qwen3_5", "cuda", norm(OrtDialect, "add_rms_norm", 2), "of the decoder is 1.3"),
    "l2 norm": ("qwen3_5", "onnx", norm(OrtDialect, "l2_norm", 1), "of the decoder is 4.06"),
    "vision norm": ("llava", "tensorrt", norm(TensorRTDialect, "layer_norm", 1), "vision_encoder is 1.29"),
    "slowest pair": ("llava", "onnx", stretched(1.0001, -1), "pair 15 of the heads of the decoder"),
    "fastest pair": ("qwen3_5", "onnx", stretched(1.0001, 0), "pair 0 of the heads of the decoder"),
    "vision base": ("qwen3_vl", "onnx", vision_base, "pair 1 of the heads of the vision_encoder"),
    "axis": ("qwen3_vl", "onnx", last_axis, "pair 15 of the heads of the decoder"),
    "gguf norm": ("qwen3_5", "gguf", metadata(gguf_decoder, "rms_epsilon", lambda e: 1.3 * e), "decoder is 1.3"),
    "gguf image": ("llava", "gguf", metadata(llava_gguf, "norm_epsilon", lambda e: 1.3 * e), "vision_encoder is 1.29"),
    "gguf base": ("qwen3_5", "gguf", metadata(gguf_decoder, "freq_base", lambda b: 1.001 * b), "pair 1 of the heads"),
    "gguf sections": (
        "qwen3_vl", "gguf", metadata(gguf_decoder, "sections", lambda s: [s[0] + 1, s[1] - 1, *s[2:]]), "pair 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_other_constants_are_named(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, form, broken, where = WRONG[what]
    broken(monkeypatch)
    with pytest.raises(CheckFailed, match=re.escape(where)):
        check(TINY / name, tmp_path, **FORMATS[form])


def test_graphs_without_positions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "FREQUENCIES", "nothing")
    with pytest.raises(CheckFailed, match="pair 0 of the heads of the decoder"):
        check(TINY / "llava", tmp_path, **FORMATS["onnx"])
