"""What a calibration says and in which order: a table for each subject."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from ...runtimes.bundle.calibration_evidence import (
    CALIBRATED,
    CANDIDATES,
    NEAREST,
    ORDER,
    CalibratedMatrix,
    CalibrationEvidence,
    LayerDrift,
    drifts,
    each_layer,
    place,
    sensitivities,
    shared_inputs,
    short_kinds,
    unit_name,
)
from .calibration_summary import less
from .judgement_rows import COLUMNS, NONE, SIDES, change_of, judged_rows
from .sections import ReportSection, Row
from .units import (
    duration,
    nats,
    percent,
)

OUTLIERS = 10  # inputs that are named
OUTSIDE = "outside of layers"


def sections(evidence: CalibrationEvidence) -> Iterator[ReportSection]:
    """All subjects that the evidence has figures of, in the order of the page."""
    for made in (_judgement, _drift, _bits, _outliers, _sensitivity, _activations, _samples):
        section = made(evidence)
        if section.rows:
            yield section


def _judgement(evidence: CalibrationEvidence) -> ReportSection:
    names = [name for name in COLUMNS if name in (*CANDIDATES, *evidence.judgement)]
    judged = [evidence.judged(name) for name in names]
    counts = next((j.positions for j in judged if j.positions), {})
    lead = (
        f"{sum(counts.values()):,} positions of samples that calibration never saw; KL divergence from the float32 "
        "model in nats, by what the position is: a token of an image, text alone, text behind an image, or one behind "
        "which a token of an answer comes. Groups are kinds of samples that were calibrated on, kinds that were not, "
        "and the answers of both."
    )
    head = ("", *(COLUMNS[name].replace("{method}", evidence.method) for name in names), "change")
    return ReportSection("judgement", "Held-out samples", lead, head, tuple(judged_rows(judged)))


def _drift(evidence: CalibrationEvidence) -> ReportSection:
    rows = drifts(evidence)
    lead = (
        "Relative mean square error of what enters the decoder's matrices on held-out samples, which all layers in "
        "front add up to: the geometric mean of each layer's inputs as a line, their range as a band."
    )
    head = ("layer", "rounded to nearest", "calibrated", "change")
    alt = ""
    if rows:
        first, last = rows[0], rows[-1]
        told = [
            f"{name} from {first.mean(side) or 0:.1e} to {last.mean(side) or 0:.1e}" for side, name in SIDES.items()
        ]
        alt = f"Lines of the error of the inputs of decoder layers {first.layer} to {last.layer}: {', '.join(told)}"
    return ReportSection("drift", "Error along the depth", lead, head, tuple(map(_drift_row, rows)), alt, True)


def _drift_row(row: LayerDrift) -> Row:
    nearest, calibrated = row.mean(NEAREST), row.mean(CALIBRATED)
    shown = ("0" if value is None else f"{value:.2e}" for value in (nearest, calibrated))
    return str(row.layer), *shown, change_of(nearest, calibrated, less)


def _bits(evidence: CalibrationEvidence) -> ReportSection:
    """How many matrices of each part are stored in each way."""
    counts: Counter[tuple[int, int, str]] = Counter()
    for matrix in evidence.matrices:
        if matrix.bits is not None:
            where = place(matrix.name)
            counts[matrix.bits, matrix.group_size or 0, where.stack if where else OUTSIDE] += 1
    ways = sorted({(bits, group) for bits, group, _ in counts})
    parts = [part for part in (*ORDER, OUTSIDE) if any(key[2] == part for key in counts)]
    rows = [
        (f"{bits} bits, groups of {group}", *(str(counts[bits, group, part] or NONE) for part in parts))
        for bits, group in ways
    ]
    lead = "How each matrix is stored, by layer and kind. Hue stands for bits; smaller groups are stronger in shade."
    alt = f"Heat map of bits by layer and kind of matrix: {'; '.join(_counted(row, parts) for row in rows)}"
    return ReportSection("bits", "Bits by layer", lead, ("matrices", *parts), tuple(rows), alt)


def _counted(row: Row, parts: Sequence[str]) -> str:
    told = [f"{count} of the {part}" for part, count in zip(parts, row[1:], strict=True) if count != NONE]
    return f"{row[0]} for {', '.join(told)}"


def _outliers(evidence: CalibrationEvidence) -> ReportSection:
    """The inputs with the largest channels; matrices that share an input are one row."""
    found = {row.name: row for row in evidence.matrices if row.outliers}
    inputs = [
        rows for layer in each_layer(found) for rows in shared_inputs(layer, lambda n: found[n].outliers).values()
    ]
    top = sorted(inputs, key=lambda names: -(found[names[0]].outliers or 0))[:OUTLIERS]
    rows = tuple(_outlier_row([found[name] for name in names]) for names in top)
    lead = (
        "Mean magnitude of the largest channel of each matrix's inputs over that of the median channel, on the "
        f"calibration samples: all inputs as dots, the largest of each layer as a line, and the {len(rows)} largest."
    )
    alt = f"Lines of the largest outlier by layer; the most is {rows[0][1]} at {rows[0][0]}" if rows else ""
    return ReportSection("outliers", "Outlier channels", lead, ("input of", "largest over median", "bits"), rows, alt)


def _outlier_row(rows: Sequence[CalibratedMatrix]) -> Row:
    bits = ", ".join(dict.fromkeys(str(row.bits) for row in rows if row.bits is not None))
    spread = rows[0].outliers or 0.0
    times = f"{spread:,.0f}" if spread >= 100 else f"{spread:.1f}"
    return _inputs_of([row.name for row in rows]), times, bits or NONE


def _inputs_of(names: Sequence[str]) -> str:
    """Where matrices are: "decoder, layer 3: gate_proj, up_proj"."""
    places = [where for name in names if (where := place(name))]
    if not places:
        return names[0].removesuffix(".weight")
    kinds = short_kinds(where.kind for where in places).values()
    return f"{places[0].stack}, layer {places[0].layer}: {', '.join(kinds)}"


def _sensitivity(evidence: CalibrationEvidence) -> ReportSection:
    found = sensitivities(evidence)
    total = sum(found.values()) or 1.0
    # What the matrices of each unit got: "4 (5), 8 (2)" for five matrices of 4 bits and two of 8.
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row in evidence.matrices:
        unit = next((unit for unit in evidence.sensitivity if f"{row.name}.".startswith(f"{unit}.")), None)
        if unit is not None and row.bits is not None:
            counts[unit_name(unit)][row.bits] += 1
    bits = {
        unit: ", ".join(f"{bits} ({count})" for bits, count in sorted(found.items())) for unit, found in counts.items()
    }
    rows = tuple((_layer(name), nats(kl), percent(kl / total), bits.get(name, NONE)) for name, kl in found.items())
    lead = (
        "KL divergence in nats when a layer alone is rounded to the fewest bits, on a few calibration samples; the "
        "bits and groups of each matrix were chosen from it. Bits with the number of matrices that got them."
    )
    head = ("layer", "KL", "share", "bits it got")
    most = max(found, key=found.__getitem__, default="")
    alt = f"Bars of the sensitivity of {len(found)} layers; the most sensitive is {_layer(most)}"
    return ReportSection("sensitivity", "Sensitivity by layer", lead, head, rows, alt, True)


def _layer(name: str) -> str:
    return f"layer {name}" if name.isdigit() else name


def _activations(evidence: CalibrationEvidence) -> ReportSection:
    made = evidence.activations
    added = {} if made is None else made.added
    kept = () if made is None else made.roles
    rows = tuple((role, f"{error:.1e}", "int8" if role in kept else "float32") for role, error in added.items())
    lead = "" if made is None else (
        "Relative mean square error that image features get when the inputs of a role's matrices are rounded to 8 bits "
        f"as one tensor, on a few calibration pictures; all that are kept may add {made.limit:.1e}. Weights in 8 bits "
        f"alone make {made.weights_error:.1e}, what was chosen {made.error:.1e}."
    )  # fmt: skip
    return ReportSection(
        "activations", "Activations of the vision encoder", lead, ("inputs of", "error", "kept in"), rows
    )


def _samples(evidence: CalibrationEvidence) -> ReportSection:
    made = evidence.samples
    told = (f"{method} was worse on {' and '.join(groups)}" if groups else f"{method} was no worse than rounding "
            "to nearest anywhere" for method, groups in evidence.tried.items())  # fmt: skip
    kept = Counter(row.method for row in evidence.matrices if row.method is not None)  # some are left to a weaker one
    counted = {
        "samples": made.calibrated, "pictures": made.pictures, "tokens of images": made.image_tokens,
        "tokens of text": made.text_tokens,
    }  # fmt: skip
    pairs = {
        "samples": made.source,
        "SHA-256": made.sha256,
        "seed of the choice": made.seed,
        "calibrated on": ", ".join(f"{count:,} {name}" for name, count in counted.items() if count is not None) or None,
        "kinds": ", ".join(f"{count:,} {kind}" for kind, count in made.kinds.items()) or None,
        "kinds that were only judged": ", ".join(f"{count:,} {kind}" for kind, count in made.foreign_kinds.items())
        or None,
        "held out": None if made.held_out is None else f"{made.held_out:,} samples",
        "answered by the model": None if (own := made.own_answers) is None
        else f"{own.samples:,} samples, {own.tokens:,} tokens, by {own.by}",
        "warning": "; ".join(made.warnings) or None,
        "method": evidence.method,
        "methods of the matrices": ", ".join(f"{count:,} {name}" for name, count in kept.items()) or None,
        "methods tried": "; ".join(told) or None,
        "matrices measured": evidence.measured,
        "time": None if evidence.seconds is None else duration(evidence.seconds),
        "the bundle has": f"weights calibrated by {evidence.method}" if evidence.kept
        else "weights rounded to nearest" + (", which were better on the held-out samples" if evidence.tried else ""),
    }  # fmt: skip
    rows = tuple((name, str(value)) for name, value in pairs.items() if value is not None)
    return ReportSection(
        "samples", "What was sampled", "Held-out samples are judged and never calibrated on.", (), rows
    )
