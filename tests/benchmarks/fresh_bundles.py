"""Exports the trained models with many sets of options, verifies each bundle in several ways and asks it questions.

python tests/benchmarks/fresh_bundles.py [--models qwen3_vl ...] [--sets 'gguf*' ...] [--questions N] [--log FILE]

A row for each bundle: the ways to verify it, with the part of a limit that was used up or the sentence of a failure,
and how many questions were answered right. "elsewhere" is a machine that the bundle knows nothing of, where limits are
asked in place of bits.
Exit code 1 where an export or a verification failed. Golden traces of the same prompts are recorded once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from lensmith.calibration import calibrated_export
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.exporters.comparing.cases import Case, read_tasks
from lensmith.exporters.evidence import recording
from lensmith.exporters.evidence.golden_media import CLIP, sources
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.storage.scheme import CHANNEL
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.engines.run_wishes import usable_device
from lensmith.runtimes.evidence import verification as verifying
from lensmith.runtimes.evidence.traces import Traces, read_traces
from lensmith.runtimes.generation.loading import load
from lensmith.targets.errors import LensmithError

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.paths import TINY

MODELS = ("qwen3_vl", "qwen3_5", "llava")
FEW = {"limit": 8}  # samples to calibrate on: what is asked is whether a bundle is what it says, not how good it is
TOKENS = 24


@dataclass(frozen=True)
class Set:
    """Options of an export, and of its calibration if there is one."""

    options: Mapping[str, Any]
    calibration: Mapping[str, Any] | None = None


def plain(**options: Any) -> Set:
    return Set(options)


def calibrated(method: str = "mse", more: Mapping[str, Any] = {}, **options: Any) -> Set:
    return Set(options, {**FEW, "method": method, **more})


GGUF = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "iq4_nl", "iq4_xs",
        "q3_k_m", "iq3_s", "q2_k")  # fmt: skip
LOWEST = ("iq3_xxs", "iq2_s", "iq2_xxs", "iq1_m")  # which want importance
SETS: dict[str, Set] = {
    **{name: plain(precision=name) for name in ("fp32", "fp16", "int8", "int4", "int3", "int2")},
    "int8 g32": plain(precision="int8", group_size=32),
    "int8 asym": plain(precision="int8", symmetric=False),
    "int8 channel": plain(precision="int8", group_size=CHANNEL),
    "int4 g32": plain(group_size=32),
    "int4 g64": plain(group_size=64),
    "int4 channel": plain(group_size=CHANNEL),
    "int4 asym": plain(symmetric=False),
    "int4 asym g32": plain(group_size=32, symmetric=False),
    "int4 asym channel": plain(group_size=CHANNEL, symmetric=False),
    "int3 asym g32": plain(precision="int3", group_size=32, symmetric=False),
    "int2 g32": plain(precision="int2", group_size=32),
    "int2 asym g64": plain(precision="int2", group_size=64, symmetric=False),
    "int4 context": plain(context=600),
    "int4 pixels": plain(max_pixels=40_000),
    "any int8": plain(precision="int8", target="cpu-any"),
    "any int4": plain(target="cpu-any"),
    "any int3": plain(precision="int3", target="cpu-any"),
    "cuda fp16": plain(precision="fp16", target="cuda"),
    "cuda int8": plain(precision="int8", target="cuda"),
    "cuda int4": plain(target="cuda"),
    "cuda int4 asym g32": plain(target="cuda", group_size=32, symmetric=False),
    "cuda int4 mse": calibrated(target="cuda"),
    "cuda-bf16 int4": plain(target="cuda-bf16"),
    "tensorrt fp32": plain(format="tensorrt", target="jetson-thor", precision="fp32"),
    **{f"tensorrt {name}": plain(format="tensorrt", target="jetson-thor", precision=name)
       for name in ("fp16", "int8", "fp8", "int4")},
    "tensorrt int4 mse": calibrated(format="tensorrt", target="jetson-thor"),
    **{f"int4 {method}": calibrated(method) for method in ("mse", "awq", "gptq", "descent")},
    "int4 asym g32 gptq": calibrated("gptq", symmetric=False, group_size=32),
    "int3 descent": calibrated("descent", precision="int3"),
    "int3 asym awq": calibrated("awq", precision="int3", symmetric=False),
    "int2 g32 gptq": calibrated("gptq", precision="int2", group_size=32),
    "int2 asym descent": calibrated("descent", precision="int2", symmetric=False),
    "kv fp32": calibrated(precision="fp32", kv_cache="int8"),
    "kv fp16": calibrated(precision="fp16", kv_cache="int8"),
    "kv int8": calibrated(precision="int8", kv_cache="int8"),
    "kv int4": calibrated(kv_cache="int8"),
    "kv int2 asym descent": calibrated("descent", precision="int2", symmetric=False, kv_cache="int8"),
    "kv cuda int4": calibrated(target="cuda", kv_cache="int8"),
    "int4 max-kl": calibrated(more={"max_kl": 0.5}),
    "int4 asym max-kl": calibrated("descent", more={"max_kl": 0.5}, symmetric=False),
    "int4 budget": calibrated(more={"budget": 3_600_000}),
    **{f"gguf {name}": plain(format="gguf", precision=name) for name in GGUF},
    **{f"gguf {name} imatrix": calibrated("imatrix", format="gguf", precision=name) for name in ("q4_k_m", *LOWEST)},
    "gguf q4_0 table": plain(format="gguf", precision="q4_0", tensor_types=("token_embd=q8_0",)),
    "gguf f16 context": plain(format="gguf", context=600),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How a bundle is verified; `elsewhere`: as if the record knew nothing of this machine."""

    native: bool | None = None
    threads: int | None = None
    elsewhere: bool = False


WAYS = {
    "here": Way(),
    "plain": Way(native=False),
    "elsewhere": Way(native=False, threads=1, elsewhere=True),
}


def traces_of(folder: Path) -> Any:
    """Gives PyTorch's traces of a model within a context and a limit of pixels."""

    @cache
    def make(name: str, context: int | None, max_pixels: int | None) -> Traces:
        options = Options(precision="fp32", context=context, max_pixels=max_pixels)
        return read_traces(export(prepare(TINY / name, options), folder / f"traces-{name}-{context}-{max_pixels}"))

    return make


def exported(name: str, chosen: Set, traces: Any, out: Path) -> Bundle:
    options = Options(**{"precision": "f16" if chosen.options.get("format") == "gguf" else "int4", **chosen.options})
    job, recorded = prepare(TINY / name, options), traces(name, options.context, options.max_pixels)

    def record(checkpoint: Any, spec: Any, writer: Any, manifest: Mapping[str, Any], **_: Any) -> Traces:
        files = {file: made for file, made in sources().items() if file != CLIP or "video" in manifest}
        return recording.write(recorded, writer, files)

    job = replace(job, family=replace(job.family, record=record))
    if chosen.calibration is None:
        return export(job, out, golden="always")
    return export(
        job, out, golden="always", integers=calibrated_export.calibrated(CalibrationOptions(**chosen.calibration))
    )


@contextmanager
def unknown(elsewhere: bool) -> Iterator[None]:
    if not elsewhere:
        yield
        return
    with mock.patch.object(verifying, "arithmetic", return_value=None):
        yield


def verified(bundle: Bundle, way: Way) -> tuple[str, float]:
    """The sentence of a failure, if there is one, and the largest share of a limit that was used up."""
    with unknown(way.elsewhere):
        report = verifying.verify(
            bundle.path, native=way.native, threads=way.threads, device=usable_device(bundle.manifest)
        )
    shares = [row.value / row.limit for row in report.rows if row.figure.endswith("_change") and row.limit]
    return ("" if report.passed else report.summary()), max(shares, default=0.0)


def right(bundle: Bundle, questions: list[Case]) -> int:
    model = load(bundle.path, device=usable_device(bundle.manifest))
    return sum(
        "".join(model.ask(case.prompt, list(case.images), max_new_tokens=TOKENS)).strip() == case.answer
        for case in questions
    )


def row_of(name: str, chosen: Set, traces: Any, out: Path, questions: list[Case]) -> Iterator[tuple[str, Any]]:
    started = time.process_time()
    bundle = exported(name, chosen, traces, out)
    yield "export, s of CPU", round(time.process_time() - started, 1)
    if not bundle.content["evidence"]["golden"]["recorded"]:
        yield "proven", bundle.content["evidence"]["golden"].get("proven", "NOT PROVEN")
        return
    for way, how in WAYS.items():
        failure, share = verified(bundle, how)
        yield way, failure or round(share, 3)
    yield "right", right(bundle, questions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--sets", nargs="+", default=["*"], help="patterns of names of SETS")
    parser.add_argument("--questions", type=int, default=1, help="of each task")
    parser.add_argument("--log", type=Path, help="a JSON line for each bundle, as soon as it is done")
    wishes = parser.parse_args()
    questions = read_tasks(TINY / "heldout" / "tasks.jsonl", wishes.questions)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        traces = traces_of(Path(folder))
        for name in wishes.models:
            for title in (title for title in SETS if any(fnmatch(title, each) for each in wishes.sets)):
                row: dict[str, Any] = {"model": name, "set": title, "questions": len(questions)}
                with tempfile.TemporaryDirectory() as place:
                    try:
                        row.update(row_of(name, SETS[title], traces, Path(place) / "bundle", questions))
                    except LensmithError as error:
                        row["error"] = str(error)
                    except Exception:
                        row["error"] = traceback.format_exc()
                bad = "error" in row or any(isinstance(row.get(way), str) for way in WAYS)
                failed += bad
                print(json.dumps(row), flush=True)
                if wishes.log:
                    with wishes.log.open("a", encoding="utf-8") as log:
                        log.write(json.dumps(row) + "\n")
    print(f"{failed} bundles failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
