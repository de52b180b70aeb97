"""The command that makes a bundle again, from what its manifest records: all that its bytes depend on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ...runtimes.bundle.opening import Bundle
from ...runtimes.generation.loading import answers
from ..checkpoint.folder import Checkpoint
from ..job import Settled
from ..storage.scheme import GROUP_SIZES

USUAL = Settled()
BUILT_IN = "built-in"  # samples without a name of their own
SIZES = {value: name for name, value in GROUP_SIZES.items()}

# Options of calibration by the names of CalibrationOptions; True is a flag alone.
CALIBRATION = {
    "method": "--calibrate",
    "only_samples": "--only-samples",
    "limit": "--sample-count",
    "answer_tokens": "--answer-tokens",
    "answer_temperature": "--answer-temperature",
    "seed": "--seed",
    "budget": "--budget",
    "max_kl": "--max-kl",
}


def export_command(bundle: Bundle, checkpoint: Checkpoint | None = None) -> str:
    """In the words of a shell. `checkpoint` is where it is on this machine; without it, what the manifest calls it."""
    words = [*_source(bundle, checkpoint), "-o", bundle.path.name, *_build(bundle), *_limits(bundle),
             *_calibration(bundle), *_beside(bundle)]  # fmt: skip
    return shlex.join(["lensmith", "export", *words])


def _source(bundle: Bundle, checkpoint: Checkpoint | None) -> Iterator[str]:
    """The checkpoint, by its commit where it came from the hub, and the adapter that was merged into it."""
    source = bundle.manifest.source
    yield str(checkpoint.path if checkpoint else source.name)
    if checkpoint is None and source.hub is not None:
        yield from ("--hub-revision", source.hub.commit)
    if source.adapter is not None:
        here = checkpoint.adapter if checkpoint else None
        hub = source.adapter_hub.repository if source.adapter_hub else source.adapter.name
        yield from ("--adapter", str(here or hub))


def _build(bundle: Bundle) -> Iterator[str]:
    options = bundle.content["options"]
    yield from ("--format", options["format"])
    if options["format"] != "gguf":  # whose files are for any
        yield from ("--target", str(options.get("target") or bundle.content["target"]))
    yield from ("--precision", options["precision"])
    size, own = options.get("group_size"), bundle.manifest.source.quantization is not None
    grouped = options["format"] != "gguf" and options["precision"].startswith("int")
    if size is not None and (size != USUAL.group_size or (own and grouped)):  # a quantized checkpoint has its own
        yield from ("--group-size", SIZES.get(size, str(size)))
    yield from ["--asymmetric"] if options.get("symmetric") is False else []
    if options["format"] == "onnx" and answers(bundle) and options.get("kv_cache"):
        yield from ("--kv-cache", options["kv_cache"])
    for each in options.get("tensor_types") or ():
        yield from ("--tensor-type", each)


def _limits(bundle: Bundle) -> Iterator[str]:
    options = bundle.content["options"]
    for name in ("context", "max_pixels", "revision"):
        if options.get(name) is not None:
            yield from (f"--{name.replace('_', '-')}", str(options[name]))


def _calibration(bundle: Bundle) -> Iterator[str]:
    """What was asked for; bundles of before say the method and the samples alone."""
    evidence: Mapping[str, Any] = bundle.content["evidence"].get("calibration") or {}
    asked = evidence.get("asked") or {"method": evidence["method"]} if evidence.get("method") else {}
    for name, option in CALIBRATION.items():
        if name in asked:
            yield from [option] if asked[name] is True else [option, str(asked[name])]
    source = (evidence.get("samples") or {}).get("source")
    yield from ("--samples", source) if source and source != BUILT_IN else ()


def _beside(bundle: Bundle) -> Iterator[str]:
    """Files that not every export writes."""
    yield from ["--with-handler"] if "handler.py" in bundle.manifest.files else []
    traced = any(name.startswith("golden/") for name in bundle.manifest.files)
    yield from [] if traced else ["--golden", "never"]
