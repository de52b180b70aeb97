"""A fuzz of the kernels under sanitizers: python -m tests.fuzz.kernels [--cases 3000] [--seed 0] [--optimize -O1].

Right cases must give what they should, wrong ones an error that names the operator, and none a report of a sanitizer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.fuzz.cases import expected, expected_dims, has_finite_values, is_right, right_case, wrong_case
from tests.fuzz.driver import Case, Outcome, build, cannot_sanitize, describe, run_cases

BATCH = 500  # cases of a process


def draw_cases(count: int, seed: int) -> list[Case]:
    """A quarter of them right."""
    draw = np.random.default_rng(seed)
    return [right_case(draw) if i % 4 == 0 else wrong_case(draw) for i in range(count)]


def fault(case: Case, outcome: Outcome) -> str:
    """What is wrong with the outcome of a case, or nothing."""
    if not is_right(case):
        if outcome.output is not None:
            return "sizes that do not fit were taken"
        return "" if outcome.error.startswith(f"{case.operator}: ") else f"the error is {outcome.error!r}"
    if outcome.output is None:
        return f"refused: {outcome.error}"
    if outcome.dims != expected_dims(case):
        return f"the shape is {outcome.dims}, expected {expected_dims(case)}"
    if not outcome.output.size or not has_finite_values(case):
        return ""
    wanted, bound = expected(case)
    wrong = ~(np.abs(outcome.output - wanted) <= bound)
    return f"{np.count_nonzero(wrong)} of {wrong.size} values are off" if wrong.any() else ""


def check(program: Path, cases: Sequence[Case]) -> Counter[str]:
    """Counts of what came of the cases; AssertionError at the first fault."""
    counts: Counter[str] = Counter()
    for start in range(0, len(cases), BATCH):
        some = cases[start : start + BATCH]
        run = run_cases(program, some)
        if run.crash:
            raise AssertionError(f"{describe(run.crash.case)} ended with {run.crash.returncode}:\n{run.crash.text}")
        for case, outcome in zip(some, run.outcomes, strict=True):
            found = fault(case, outcome)
            if found:
                raise AssertionError(f"{describe(case)}: {found}")
            counts["answered" if outcome.output is not None else "refused"] += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimize", default="-O1")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        reason = cannot_sanitize(Path(folder))
        if reason:
            print(reason, file=sys.stderr)
            return 1
        program = build(Path(folder), options.optimize)
        counts = check(program, draw_cases(options.cases, options.seed))
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
