"""This machine as a target of its own: the text of a profile with what was measured."""

from __future__ import annotations

import platform

from ...targets.errors import InputError
from ...targets.profile import load_target
from ..engines.native import wanted_instructions
from ..process.core_limits import usable_cores
from ..process.cpu import cpu_features
from ..process.memory_limits import memory_bytes
from .machine_rates import measured_rates

PROFILE = """\
# {machine}: measured by `lensmith targets --measure` with {kernels}.
description = "{machine}, as measured"
dialect = "ort"
accuracy_level = 4
cpu_features = [{features}]
int8_activations = [{roles}]
prefill_chunk = {chunk}

[device]
memory_bytes = {total}  # all that this process may take: the machine's, or its container's
usable_bytes = {usable}  # available when this was measured
read_bytes_per_s = {reading:.3e}  # weights of 4 bits with one row of inputs: what decoding does
threads = {threads}
formats = ["onnx", "gguf"]
bits = [8, 4]
group_size = 128

# Operations a second, a multiplication and a sum being two: products of {rows} rows of inputs.
[device.operations_per_s]
{rates}
"""


def measured_profile(threads: int | None) -> str:
    """The text of a TOML file; InputError where the system does not say how much memory it has."""
    count = threads or usable_cores()
    total, usable = memory_bytes()
    if not total:
        raise InputError("this system does not say how much memory it has; copy what `lensmith targets cpu` shows and "
                         "fill in yours")  # fmt: skip
    from .machine_rates import ROWS

    usual = load_target("cpu")
    base = usual if not cpu_features() or cpu_features() & set(usual.cpu_features) else load_target("cpu-any")
    reading, rates = measured_rates(count)
    instructions = wanted_instructions()
    return PROFILE.format(
        machine=f"{platform.machine()} with {count} threads",
        kernels=f"lensmith's kernels for {instructions}" if instructions else "ONNX Runtime's own kernels",
        features=_quoted(base.cpu_features),
        roles=_quoted(base.int8_activations),
        chunk=base.prefill_chunk,
        total=total,
        usable=usable,
        reading=reading,
        threads=count,
        rows=ROWS,
        rates="\n".join(f"{name} = {rate:.3e}" for name, rate in rates.items()),
    )


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)
