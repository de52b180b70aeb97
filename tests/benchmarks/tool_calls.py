"""How often a bundle of the trained caller calls the right tool with the right arguments, and ends with the right text.

python tests/benchmarks/tool_calls.py BUNDLE [--cases 100] [--seed 7]

Serves the bundle and asks it through OpenAI's client. An errand is right when the parsed calls are, and the final text
behind the tools' answers is. Pictures are drawn anew, words in fonts that training never used; one picture in four has
sides that the processor must round.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.helpers.errand_talks import Asker, question
from tests.helpers.local_server import LENSMITH, local_server
from tests.training.errands import ERRANDS, NO_TOOL, TOOLS, heldout_errand
from tests.training.long_tasks import ALL_TASKS, square_examples
from tests.training.scenes import odd_size

Figures = tuple[int, int, int]  # cases, those with the right calls (or none), those with the right text, too


def errands(asker: Asker, count: int, seed: int, task: str) -> Figures:
    """Errands of one task whose tool is given, most often among others."""
    calls = finals = 0
    for number in range(count):
        scene, errand, names = heldout_errand(random.Random(f"{task}-{seed}-{number}"), task, odd_size)
        first, last = asker.do(errand, scene.image, names)
        calls += last is not None and (first.text, first.finish_reason) == ("", "tool_calls")
        finals += last is not None and (last.text, last.calls) == (errand.final, [])
    return count, calls, finals


def refusals(asker: Asker, count: int, seed: int, *, others: bool) -> Figures:
    """Errands without their tool; `others` gives the other two."""
    silent = right = 0
    for number in range(count):
        rng = random.Random(f"refusal-{seed}-{number}")
        scene, errand, _ = heldout_errand(rng, ERRANDS[number % len(ERRANDS)], odd_size)
        names = [name for name in TOOLS if name != errand.tool] if others else []
        reply = asker.ask([question(errand.prompt, [scene.image])], names)
        silent += not reply.calls
        right += (reply.text, reply.calls) == (NO_TOOL, [])
    return count, silent, right


def own_questions(asker: Asker, count: int, seed: int, *, given: bool) -> Figures:
    """Questions of `qwen3_5`, of all its tasks by turns, with all the tools or none."""
    silent = right = 0
    examples = {task: square_examples(task, -(-count // len(ALL_TASKS)), seed) for task in ALL_TASKS}
    for number in range(count):
        example = examples[ALL_TASKS[number % len(ALL_TASKS)]][number // len(ALL_TASKS)]
        asked = example.questions[0]
        reply = asker.ask([question(asked.prompt, example.images)], list(TOOLS) if given else [])
        silent += not reply.calls
        right += (reply.text, reply.calls) == (asked.answer, [])
    return count, silent, right


def rows(make: Callable[..., Asker], count: int, seed: int) -> Iterator[tuple[str, str, Figures]]:
    """Everything that is asked, its kind and its figures."""
    for thinking in (False, True):
        for stream in (False, True):
            asker = make(stream=stream, thinking=thinking)
            kind = ("streamed" if stream else "whole") + (", thinking" if thinking else "")
            parts = [(task, errands(asker, count // len(ERRANDS), seed, task)) for task in ERRANDS]
            yield from ((f"errand: {task}", kind, figures) for task, figures in parts)
            yield "errands", kind, tuple(map(sum, zip(*(figures for _, figures in parts), strict=True)))  # type: ignore[misc]
    for stream in (False, True):
        asker, kind = make(stream=stream), "streamed" if stream else "whole"
        yield "errand, no tools", kind, refusals(asker, count, seed, others=False)
        yield "errand, other tools", kind, refusals(asker, count, seed, others=True)
        yield "own question, no tools", kind, own_questions(asker, count, seed, given=False)
        yield "own question, all tools", kind, own_questions(asker, count, seed, given=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cases", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    table = Table("asked", "answer", "cases", "calls right, or none", "text right, too", box=None)
    with local_server([*LENSMITH, "serve", args.bundle]) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=600)

        def make(**options: Any) -> Asker:
            return Asker(client, args.bundle.resolve().name, **options)

        for asked, kind, (cases, calls, texts) in rows(make, args.cases, args.seed):
            table.add_row(asked, kind, *map(str, (cases, calls, texts)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
