"""`lensmith inspect`: what a bundle is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..targets.errors import InputError
from .option_types import AS_JSON, BUNDLE, Once
from .screen import console, count, pairs, print_json, size, table

if TYPE_CHECKING:
    from ..runtimes.bundle.calibration_evidence import CalibrationEvidence
    from ..runtimes.bundle.input_sections import Speech
    from ..runtimes.bundle.opening import Bundle
    from ..runtimes.bundle.origin import Source


@click.command(cls=Once, short_help="Show what BUNDLE is: sizes, precision, limits, evidence.")
@BUNDLE
@click.option("--tensors", is_flag=True, help="List each tensor with how it is stored and why.")
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write how the bundle was calibrated as one page with plots.",
)
@AS_JSON
def inspect(bundle: Path, tensors: bool, page: Path | None, as_json: bool) -> None:
    """Show what BUNDLE is: identity, sizes, precision, inputs and outputs, limits, evidence."""
    from ..runtimes.bundle.calibration_evidence import read_evidence
    from ..runtimes.bundle.opening import open_bundle
    from ..runtimes.engines.native import wanted_instructions, wanted_kernels
    from ..runtimes.tuning.tuned_files import read_tuning

    opened = open_bundle(bundle)
    calibration = read_evidence(opened.content)
    if page is not None:
        from ..exporters.reports.report import calibration_html
        from ..runtimes.storage.new_file import write_text

        if calibration is None:
            raise InputError(f"{opened.path} was not calibrated, so there is nothing for {page} to show; "
                             "export it with --calibrate descent")  # fmt: skip
        made = calibration_html(
            calibration,
            model=opened.manifest.source.name,
            precision=opened.manifest.options.precision,
        )
        write_text(page, made)
    if as_json:
        tuned = read_tuning(opened)
        print_json({"bundle": str(bundle), "kernels": wanted_kernels(), "instructions": wanted_instructions(),
                    "tuned": tuned and asdict(tuned), **opened.content})  # fmt: skip
    else:
        _print_parts(opened, calibration, tensors=tensors)
    if page is not None:
        click.echo(page, err=as_json)


def _print_parts(opened: Bundle, calibration: CalibrationEvidence | None, *, tensors: bool) -> None:
    screen = console()
    for part in (_identity, _architecture, _sizes, _precision, _ports, _engines, _limits, _evidence):
        shown = part(opened)
        if shown is not None:
            screen.print(shown)
            screen.print()
    if calibration is not None:
        from ..exporters.reports.report import calibration_table

        screen.print(calibration_table(calibration))
        screen.print()
    if tensors:
        rows = [(name, entry.bits, entry.group_size or "", count(entry.parameters), entry.reason)
                for name, entry in opened.manifest.precision.items()]  # fmt: skip
        screen.print(table("Tensors", ["tensor", ">bits", ">group", ">parameters", "reason"], rows))


def _identity(bundle: Bundle) -> Any:
    from ..runtimes.engines.native import wanted_instructions, wanted_kernels

    manifest, source, instructions = bundle.manifest, bundle.manifest.source, wanted_instructions()
    every = bundle.content["options"]  # also those that no runtime reads
    return pairs("Bundle", {
        "path": bundle.path,
        "family": manifest.family,
        "made from": ", ".join(_origin(source)),
        "licence": source.license or "not stated",
        "parameters": f"{source.parameters:,}",
        "target": manifest.target,
        "options": ", ".join(f"{name} {value}" for name, value in every.items()),
        "kernels here": f"{', '.join(wanted_kernels())} with {instructions}" if instructions else "ONNX Runtime's",
        "tuned here": _tuned(bundle),
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    })  # fmt: skip


def _tuned(bundle: Bundle) -> str:
    """What `lensmith tune` found on this device, in words."""
    from ..runtimes.tuning.tuned_files import read_tuning, tuned_elsewhere

    if (tuned := read_tuning(bundle)) is not None:
        return tuned.words or "the usual defaults were quickest"
    if tuned_elsewhere(bundle):
        return "no; for another processor, number of cores or version, which is not used; see: lensmith tune"
    return "no; see: lensmith tune"


def _origin(source: Source) -> Iterator[str]:
    """The checkpoint's name, and how its weights came about."""
    yield source.name
    if source.hub:
        yield f"commit {source.hub.commit}"
    if source.quantization:
        yield f"quantized by {source.quantization.method}"
    if source.adapter:
        hub = source.adapter_hub
        place = f"{hub.repository} commit {hub.commit}" if hub else source.adapter.name
        yield f"with the adapter {place} merged into it"


def _architecture(bundle: Bundle) -> Any:
    """Layers, widths, heads and parameters of each part."""
    names = ("layers", "linear_layers", "hidden", "heads", "kv_heads", "vocab", "parameters")
    rows = [
        (name.replace("_", " "), *("" if (found := getattr(part, key)) is None else f"{found:,}" for key in names))
        for name, part in bundle.manifest.parts.items()
    ]
    return table("Parts", ["part", *(f">{name.replace('_', ' ')}" for name in names)], rows)


def _sizes(bundle: Bundle) -> Any:
    from .storage_tables import component_sizes

    files = {name: file.size for name, file in bundle.manifest.files.items()}
    rows = [*component_sizes(files), ("all", "", size(sum(files.values())))]
    return table("Sizes", ["component", "files", ">size"], rows)


def _precision(bundle: Bundle) -> Any:
    """How many tensors are stored in each way, and what they take."""
    rows: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in bundle.manifest.precision.values():
        zero_points = entry.bits <= 8 and not entry.symmetric
        row = rows[entry.bits, entry.group_size or "", "yes" if zero_points else "", entry.reason]
        for index, value in enumerate((1, entry.parameters, entry.bytes)):
            row[index] += value
    ordered = sorted(rows.items(), key=lambda item: -item[1][2])
    shown = [(*kind, tensors, count(parameters), size(nbytes), reason)
             for (*kind, reason), (tensors, parameters, nbytes) in ordered]  # fmt: skip
    columns = [">bits", ">group", "zero points", ">tensors", ">parameters", ">on disk", "reason"]
    return table("Precision", columns, shown)


def _ports(bundle: Bundle) -> Any:
    """Inputs and outputs of the graphs; those of the KV cache as one row of their pattern."""
    rows: list[tuple[Any, ...]] = []
    for graph, entry in bundle.manifest.graphs.items():
        for kind, ports in (("input", entry.inputs), ("output", entry.outputs)):
            shown: dict[str, tuple[Any, ...]] = {}
            for name, port in ports.items():
                pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
                shown[pattern] = (graph, kind, pattern, port.dtype, f"[{', '.join(map(str, port.shape))}]")
            rows += shown.values()
    return table("Graphs", ["graph", "", "name", "type", "shape"], rows)


def _engines(bundle: Bundle) -> Any:
    """What was built for GPUs; None for a bundle without engines."""
    rows = []
    for name, graph in bundle.manifest.graphs.items():
        if engine := graph.engine:
            kernels = engine.kernels
            known = ["not known"] * 4
            if kernels:
                recorded = "yes" if kernels.recordable else "no"
                known = [str(kernels.kernels), str(kernels.fused), str(len(kernels.written_out)), recorded]
            layers = ", ".join(f"{count} {kind}" for kind, count in engine.layers.items())
            chips = ", ".join(engine.capabilities)
            rows.append((name, f"{engine.flavour} {engine.version}", chips, layers, *known))
    columns = ["graph", "built by", "compute capabilities", "layers", ">kernels", ">widen packed weights",
               ">weights written out", "CUDA graphs"]  # fmt: skip
    return table("Engines", columns, rows) if rows else None


def _limits(bundle: Bundle) -> Any:
    """What is accepted; what ends an answer, by token, and which files say so."""
    manifest = bundle.manifest
    names = ("context", "max_image_tokens", "max_pixels", "min_pixels") if manifest.takes_images else ("context",)
    limits: dict[str, object] = {name.replace("_", " "): getattr(manifest.limits, name) for name in names}
    if video := manifest.video:
        of_video = {name: getattr(video, name) for name in ("max_pixels", "max_frames", "max_tokens")}
        limits |= {f"video {name.replace('_', ' ')}": value for name, value in of_video.items() if value is not None}
    if prompt := manifest.prompt:
        limits |= {f"answers end at {token}": ", ".join(files) for token, files in prompt.end_tokens.items()}
        limits |= _speech(prompt.speech) if prompt.speech else {}
    return pairs("Limits", limits)


def _speech(speech: Speech) -> dict[str, str]:
    """How answers are written."""
    calls = {"xml": "in XML", "json": "in JSON", None: "none that are known"}[speech.tool_calls]
    return {"calls of tools": calls, "thoughts": "between <think> and </think>" if speech.reasoning else "none"}


def _evidence(bundle: Bundle) -> Any:
    """All that was recorded but calibration, which has tables of its own."""
    recorded = {name: value for name, value in bundle.content["evidence"].items() if name != "calibration"}
    return pairs("Evidence", dict(_flat(recorded)) or {"none": "nothing else was recorded"})


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested figures as one level of names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            yield prefix + name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else value
