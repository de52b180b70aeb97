"""Figures of matplotlib as inline SVG, whose colours are CSS variables of the page around them."""

from __future__ import annotations

import atexit
import importlib
import io
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ...targets.errors import MissingExtra

Subject = TypeVar("Subject")

# matplotlib draws with these colours, which then become the variables --ink, --ours and so on.
PARTS = tuple(f"k{index}" for index in range(8))  # of the model
NAMES = ("ink", "faint", "ours", "rival", "other", "image", "vision", "prefill", *PARTS)
COLOURS = {name: f"#0000{index:02x}" for index, name in enumerate(NAMES, 1)}
INK, FAINT = COLOURS["ink"], COLOURS["faint"]
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "font.family": "sans-serif", "text.color": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": FAINT, "grid.color": FAINT,
    "grid.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
    "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0, "axes.titlesize": 9,
}  # fmt: skip
WIDTH, HALF = 8.4, 3.85  # inches of the two widths that the page has, in scale; a phone has the second alone
NAMESPACE = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
LONG = 12  # signs of a name of which not many stand side by side
STEPS = ((2.5, (1, 1.5, 2, 3, 4, 6, 8)), (200, (1, 2, 5)), (math.inf, (1,)))  # of a logarithmic axis that is so wide
PLAIN = (1e-4, 1e5)  # numbers that are written without a power of ten


def draw(plots: Mapping[str, Callable[[Any, Subject], None]], subject: Subject) -> dict[str, str]:
    """Each plot by its name, "" for one that drew nothing. Raises MissingExtra without matplotlib."""
    try:
        matplotlib, figures = _matplotlib()
    except ImportError as error:
        raise MissingExtra("drawing a report", "report") from error
    drawn = {}
    for name, plot in plots.items():
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
            drawn[name] = _drawn(figures, name, plot, subject)
    return drawn


def _drawn(figures: Any, name: str, plot: Callable[[Any, Subject], None], subject: Subject) -> str:
    """One plot, and where it is as wide as the page once more for phones, whose page shows that alone."""
    figure, phone = (figures.Figure(figsize=(width, 2), layout="constrained") for width in (WIDTH, HALF))
    plot(figure, subject)
    if not figure.axes or is_narrow(figure):
        return _svg(figure, name) if figure.axes else ""
    plot(phone, subject)
    return f'<div class="wide">{_svg(figure, name)}</div><div class="narrow">{_svg(phone, f"{name}-narrow")}</div>'


def is_narrow(figure: Any) -> bool:
    """Whether a plot has the room of half a page, or of a phone."""
    return bool(figure.get_figwidth() < WIDTH)


def _matplotlib() -> tuple[Any, Any]:
    """matplotlib and its figures. Its list of the fonts stays in a folder that goes with the process.

    Where a program has imported it before, or MPLCONFIGDIR names a folder, the list is where these want it.
    """
    if "matplotlib" in sys.modules or "MPLCONFIGDIR" in os.environ:
        return importlib.import_module("matplotlib"), importlib.import_module("matplotlib.figure")
    folder = tempfile.mkdtemp(prefix="lensmith-fonts-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["MPLCONFIGDIR"] = folder
    try:
        return importlib.import_module("matplotlib"), importlib.import_module("matplotlib.figure")
    finally:
        del os.environ["MPLCONFIGDIR"]


def _svg(figure: Any, name: str) -> str:
    """The figure as an <svg> element without ids that nothing refers to, and without a fixed size or font.

    The other ids become `name` and a number: matplotlib's follow from the last digits of positions.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()[out.getvalue().index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z]+[0-9_.]*_[0-9]+"', "", text)
    text = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" {NAMESPACE}>', text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for index, found in enumerate(dict.fromkeys(re.findall(r' id="([^"]+)"', text))):
        text = re.sub(rf'(id="|#){re.escape(found)}(?=["\)])', rf"\g<1>{name}-{index}", text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def legend(figure: Any, handles: Mapping[str, Any], *, columns: int) -> None:
    """The names of what is drawn, above all axes; in fewer columns where there is less room."""
    columns = max(1, columns // 2) if is_narrow(figure) and any(len(name) > LONG for name in handles) else columns
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=columns, handlelength=1, handleheight=1,
        borderpad=0,
    )  # fmt: skip


def power(exponent: int) -> str:
    """A power of ten in letters, since an inline SVG has no other exponents: "10⁻⁴", and 1 for the zeroth."""
    return "10" + str(exponent).translate(SUPERSCRIPTS) if exponent else "1"


def log_axis(axis: Any, low: float, high: float) -> None:
    """A logarithmic axis of matplotlib around values from `low` to `high` above 0, with few and readable numbers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low / 1.3, high * 1.3)})
    steps = next(steps for most, steps in STEPS if high / low < most)
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    shown = [tick for tick in ticks if low / 1.3 <= tick <= high * 1.3]
    axis.set_ticks(shown, [_number(tick) for tick in shown])
    axis.set_ticks([], minor=True)


def _number(value: float) -> str:
    if PLAIN[0] <= value < PLAIN[1]:
        return f"{value:.6g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    digit = round(value / 10.0**exponent)
    return power(exponent) if digit == 1 else f"{digit}\N{MIDDLE DOT}{power(exponent)}"
