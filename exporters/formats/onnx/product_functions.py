"""Functions of fused products: of some with one input, and of what is done to that input before it is rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

BLOCK_SIZES = dict.fromkeys((4, 3, 2), (16, 32, 64, 128)) | {8: (16, 32, 64, 128, 256)}  # of MatMulInt*, by bits
JOINABLE = tuple(f"MatMulInt{bits}" for bits in BLOCK_SIZES)
JOINED = {2: "Two", 3: "Three", 4: "Four"}  # how many of one input: what the operator's name begins with


class Prologue(NamedTuple):
    """Nodes that make X of A and `inputs`; a norm's also give `sum`, and may stand before some products of X."""

    nodes: str
    inputs: tuple[str, ...] = ()
    number: str = ""  # an attribute

    @property
    def adds(self) -> bool:
        return "skip" in self.inputs


PROLOGUES = {
    "SkipRmsNorm": Prologue(
        "X, mean, inverse, sum = com.microsoft.SkipSimplifiedLayerNormalization <epsilon: float = @epsilon>"
        " (A, skip, weight)",
        ("skip", "weight"),
        "epsilon",
    ),
    "SkipLayerNorm": Prologue(
        "X, mean, inverse, sum = com.microsoft.SkipLayerNormalization <epsilon: float = @epsilon>"
        " (A, skip, weight, beta)",
        ("skip", "weight", "beta"),
        "epsilon",
    ),
    "Gelu": Prologue("X = com.microsoft.Gelu (A)"),
    "FastGelu": Prologue("X = com.microsoft.FastGelu (A)"),
    "QuickGelu": Prologue("X = com.microsoft.QuickGelu <alpha: float = @alpha> (A)", number="alpha"),
    "GatedQuickGelu": Prologue(
        "open = com.microsoft.QuickGelu <alpha: float = @alpha> (gate)\n            X = Mul (A, open)",
        ("gate",),
        "alpha",
    ),
    "GatedSigmoid": Prologue("open = Sigmoid (gate)\n            X = Mul (A, open)", ("gate",)),
}


class Signature(NamedTuple):
    """Names of what products take beside their input, and of what they give."""

    sizes: Sequence[str]  # attributes
    weights: Sequence[str]
    optional: Sequence[str]
    outputs: Sequence[str]

    def call(self, operator: str, x: str) -> str:
        """The node of these products of x."""
        sizes = ", ".join(f"{name}: int = @{name}" for name in self.sizes)
        attributes = f"<{sizes}> " if sizes else ""
        inputs = ", ".join((x, *self.weights, *self.optional))
        return f"{', '.join(self.outputs)} = lensmith.{operator} {attributes}({inputs})"


def product_functions() -> dict[str, str]:
    """Functions by operator: all fused products."""
    made = {}
    for operator in JOINABLE:
        for count, name in JOINED.items():
            made[name + operator] = _joined(operator, count)
    for operator, signature in _signatures().items():
        for name, prologue in PROLOGUES.items():
            if prologue.adds or len(signature.outputs) == 1:
                made[name + operator] = _with_prologue(name, operator, signature)
    return made


def _signatures() -> dict[str, Signature]:
    """Of all products that may have a prologue."""
    made = {"MatMulInt8Rows": Signature((), ("B", "scales"), ("bias",), ("Y",))}
    for operator in JOINABLE:
        made[operator] = _packed([""])
        made |= {name + operator: _packed("1234"[:count]) for count, name in JOINED.items()}
    return made


def _packed(places: Sequence[str]) -> Signature:
    return Signature(
        sizes=("K", "block_size", *(f"N{place}" for place in places)),
        weights=[f"{name}{place}" for place in places for name in ("B", "scales")],
        optional=[f"{name}{place}" for place in places for name in ("zero_points", "bias")],
        outputs=[f"Y{place}" for place in places],
    )


def _function(name: str, attributes: Sequence[str], inputs: Sequence[str], outputs: Sequence[str], body: str) -> str:
    given = f" <{', '.join(attributes)}>" if attributes else ""
    return f"""
        <opset_import: ["" : 21, "com.microsoft" : 1, "lensmith" : 1], domain: "lensmith">
        {name}{given} ({", ".join(inputs)}) => ({", ".join(outputs)}) {{
            {body}
        }}
    """


def _joined(operator: str, count: int) -> str:
    """The kernel rounds their input once for all."""
    places = "1234"[:count]
    all_of_them, nodes = _packed(places), []
    for place in places:
        inputs = ", ".join(name + place for name in ("B", "scales", "zero_points", "bias"))
        sizes = f"K: int = @K, block_size: int = @block_size, N: int = @N{place}"
        nodes.append(f"Y{place} = lensmith.{operator} <{sizes}> (A, {inputs})")
    given = ("A", *all_of_them.weights, *all_of_them.optional)
    body = "\n            ".join(nodes)
    return _function(JOINED[count] + operator, all_of_them.sizes, given, all_of_them.outputs, body)


def _with_prologue(name: str, operator: str, signature: Signature) -> str:
    """The kernel does to each row what it needs when it rounds it, without writing it first."""
    prologue = PROLOGUES[name]
    return _function(
        name + operator,
        [*signature.sizes, *([prologue.number] if prologue.number else [])],
        ("A", *prologue.inputs, *signature.weights, *signature.optional),
        [*signature.outputs, *(["sum"] if prologue.adds else [])],
        f"{prologue.nodes}\n            {signature.call(operator, 'X')}",
    )
