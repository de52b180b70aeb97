"""The plots of a calibration, with the layers from left to right."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...runtimes.bundle.calibration_evidence import (
    CALIBRATED,
    DECODER,
    NEAREST,
    CalibratedMatrix,
    CalibrationEvidence,
    by_layer,
    drifts,
    place,
    sensitivities,
    shared_inputs,
    short_kinds,
)
from .svg import (
    COLOURS,
    INK,
    is_narrow,
    legend,
    log_axis,
)
from .svg import draw as draw_all

LABELS = 18  # numbers of layers that have room side by side
CELL = 0.19  # inches of height of a row of the heat map
TITLE = 1.3  # rows of room for the name of a stack
LONG_CELL, SHORT_CELL = 14, 48  # most layers whose cells have room for bits and group, or for the bits alone
NARROW = 0.4  # as many cells have room for words in a plot for phones
GROUP_SHADES = (0.22, 0.62)  # opacities of the largest groups and of the smallest, the most exact; text stays legible
BITS_COLOURS = {2: "other", 3: "image", 4: "ours", 8: "vision"}
STACK_COLOURS = {DECODER: "ours", "vision encoder": "vision", "DeepStack mergers": "image", "draft head": "other"}
SIDES = {NEAREST: ("rival", "rounded to nearest"), CALIBRATED: ("ours", "calibrated")}

Plot = Callable[[Any, CalibrationEvidence], None]


def draw(evidence: CalibrationEvidence) -> dict[str, str]:
    """The plots by the name of their section, "" without figures. Raises MissingExtra without matplotlib."""
    return draw_all(PLOTS, evidence)


def _drift(figure: Any, evidence: CalibrationEvidence) -> None:
    """Geometric mean of each layer as a line, and the range of its inputs as a band."""
    rows = drifts(evidence)
    every = [value for row in rows for values in row.inputs.values() for value in values]
    if not every:
        return
    figure.set_figheight(2.9)
    axes, handles = figure.subplots(), {}
    for side, (colour, label) in SIDES.items():
        shown = [row for row in rows if row.inputs[side]]
        layers = [row.layer for row in shown]
        low, high = ([pick(row.inputs[side]) for row in shown] for pick in (min, max))
        axes.fill_between(layers, low, high, color=COLOURS[colour], alpha=0.2, linewidth=0)
        means = [row.mean(side) for row in shown]
        handles[label] = axes.plot(layers, means, color=COLOURS[colour], marker="o", markersize=3.5, linewidth=1.8)[0]
    log_axis(axes.yaxis, min(every), max(every))
    axes.set_ylabel("relative error of inputs")
    _layers(axes, max(row.layer for row in rows), "layer of the decoder")
    axes.grid(axis="y")
    legend(figure, handles, columns=2)


def _bits(figure: Any, evidence: CalibrationEvidence) -> None:
    """A heat map for each stack: hue by bits, shade by group size, and the bits in figures where there is room."""
    matrices = {row.name: row for row in evidence.matrices if row.bits is not None}
    stacks = by_layer(matrices)
    if not stacks:
        return
    kinds = {stack: _kinds(layers) for stack, layers in stacks.items()}
    deepest = max(max(layers) for layers in stacks.values())
    heights = [len(found) + TITLE for found in kinds.values()]
    figure.set_figheight(0.9 + CELL * sum(heights))
    figure.get_layout_engine().set(h_pad=0.03, hspace=0)
    # Opacity by bits and group size, of all groups with as many bits.
    sizes: dict[int, set[int]] = defaultdict(set)
    for row in matrices.values():
        if place(row.name):
            sizes[row.bits or 0].add(row.group_size or 0)
    weak, strong = GROUP_SHADES
    shades = {
        (bits, size): strong - (strong - weak) * index / max(len(found) - 1, 1)
        for bits, found in sizes.items()
        for index, size in enumerate(sorted(found))
    }
    panels = figure.subplots(len(stacks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    handles: dict[tuple[int, int], Any] = {}
    for axes, (stack, layers) in zip(panels, stacks.items(), strict=True):
        cells = [(layer, matrices[name]) for layer, names in layers.items() for name in names]
        handles |= _heat(axes, cells, kinds[stack], shades, deepest)
        axes.text(-0.47, -0.5 - TITLE / 2, stack, va="center")
    _layers(panels[-1], deepest, "layer")
    legend(figure, {_stored(*key): handles[key] for key in sorted(handles)}, columns=4)


def _kinds(layers: Mapping[int, Sequence[str]]) -> list[str]:
    """The kinds of matrices of a stack by their blocks, in the order that blocks have within a layer."""
    kinds: dict[str, None] = {}
    blocks: dict[str, int] = {}
    for names in layers.values():
        found = dict.fromkeys(where.kind for name in names if (where := place(name)))
        kinds |= found
        for index, block in enumerate(dict.fromkeys(map(_block, found))):
            blocks.setdefault(block, index)
    order = list(blocks)
    return sorted(kinds, key=lambda kind: (blocks[_block(kind)], order.index(_block(kind))))


def _block(kind: str) -> str:
    return kind.rpartition(".")[0]


def _heat(
    axes: Any,
    cells: Sequence[tuple[int, CalibratedMatrix]],
    kinds: Sequence[str],
    shades: Mapping[tuple[int, int], float],
    deepest: int,
) -> dict[tuple[int, int], Any]:
    """Draw the cells of one stack; what stands for each pair of bits and group size."""
    classes: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for layer, row in cells:
        where = place(row.name)
        assert where is not None
        classes[row.bits or 0, row.group_size or 0].append((layer, kinds.index(where.kind)))
    handles, share = {}, NARROW if is_narrow(axes.figure) else 1
    for (bits, group), places in classes.items():
        x, y = zip(*places, strict=True)
        colour = COLOURS[BITS_COLOURS.get(bits, "rival")]
        handles[bits, group] = axes.bar(
            x, 0.9, bottom=[row - 0.45 for row in y], width=0.94, color=colour, alpha=shades[bits, group], linewidth=0
        )
        for at in places:
            text = f"{bits} / {group}" if deepest < LONG_CELL * share else str(bits)
            if deepest < SHORT_CELL * share:
                axes.text(*at, text, ha="center", va="center_baseline", fontsize=7.5)
    short = short_kinds(kinds)
    axes.set_yticks(range(len(kinds)), [short[kind] for kind in kinds])
    axes.set_ylim(len(kinds) - 0.5, -0.5 - TITLE)
    axes.spines["bottom"].set_visible(False)
    return handles


def _stored(bits: int, group: int) -> str:
    return f"{bits} bits, groups of {group}" if group else f"{bits} bits"


def _outliers(figure: Any, evidence: CalibrationEvidence) -> None:
    """Each input as a dot, and the largest of each layer as a line, for each stack."""
    found = {row.name: row.outliers for row in evidence.matrices if row.outliers}
    stacks = by_layer(found)
    if not stacks:
        return
    figure.set_figheight(2.9)
    axes, handles = figure.subplots(), {}
    for stack, layers in stacks.items():
        colour = COLOURS[STACK_COLOURS[stack]]
        dots = [(layer, value) for layer, names in layers.items() for value in shared_inputs(names, found.__getitem__)]
        axes.scatter(*zip(*dots, strict=True), s=9, color=colour, alpha=0.45, linewidth=0)
        tops = [max(found[name] for name in names) for names in layers.values()]
        handles[stack] = axes.plot(list(layers), tops, color=colour, marker="o", markersize=3.5, linewidth=1.6)[0]
    log_axis(axes.yaxis, max(1.0, min(found.values())), max(found.values()))
    axes.set_ylabel("largest over median")
    _layers(axes, max(max(layers) for layers in stacks.values()), "layer")
    axes.grid(axis="y")
    legend(figure, handles, columns=4)


def _sensitivity(figure: Any, evidence: CalibrationEvidence) -> None:
    """Bars of the layers, and to the left of them, with room for their names, of what is outside of layers."""
    found = sensitivities(evidence)
    if not found:
        return
    figure.set_figheight(2.5)
    axes, names = figure.subplots(), list(found)
    inside = [int(name) for name in names if name.isdigit()]
    outside = [name for name in names if not name.isdigit()]
    gap = max(1.0, len(inside) / (5 if is_narrow(figure) else 14))
    left = {name: (index - len(outside)) * gap for index, name in enumerate(outside)}
    axes.bar([*left.values(), *inside], list(found.values()), width=0.7, color=COLOURS["ours"])
    deepest = max(inside, default=0)
    shown = range(0, deepest + 1, _step(axes, deepest))
    axes.set_xticks([*left.values(), *shown], [*(name.replace(" ", "\n") for name in left), *map(str, shown)])
    axes.set_xlim(-0.6 * (gap if left else 1.0) - len(left) * gap, deepest + 0.6)
    axes.set_xlabel("layer of the decoder")
    axes.set_ylabel("KL divergence, nats")
    axes.grid(axis="y")


def _layers(axes: Any, deepest: int, label: str) -> None:
    """Numbers of layers that never touch each other."""
    shown = range(0, deepest + 1, _step(axes, deepest))
    axes.set_xticks(shown, list(map(str, shown)), color=INK)
    axes.set_xlim(-0.6, deepest + 0.6)
    axes.set_xlabel(label)


def _step(axes: Any, deepest: int) -> int:
    return math.ceil((deepest + 1) / (LABELS * NARROW if is_narrow(axes.figure) else LABELS))


PLOTS: Mapping[str, Plot] = {"drift": _drift, "bits": _bits, "outliers": _outliers, "sensitivity": _sensitivity}
