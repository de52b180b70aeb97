"""What drafts are worth: time a token when all, some or none of them are right, for each number of drafts.

python tests/benchmarks/drafts.py BUNDLE [--threads 2] [--tokens 64] [--most 1 2 4 7] [--head 1 2 3 4]

A first answer without drafts says what is right; then so many drafts a step are made of it, of which 0, 50, 80 or 100 %
are right by chance; behind a wrong one all are lost. Tokens must be equal each time. With --head a draft head takes its
time for so many guesses a step, or for as many as by default (0). The last row is what is made of the text itself, as
by default.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lensmith.runtimes import Model, user_message
from lensmith.runtimes.bundle.opening import open_bundle
from lensmith.runtimes.generation import token_loop
from lensmith.runtimes.generation.answer import Answer
from lensmith.runtimes.generation.drafting import Choice
from lensmith.runtimes.generation.following_head import FollowingHead
from lensmith.runtimes.generation.mtp_drafts import MtpDrafts
from lensmith.runtimes.generation.ngram_drafts import MOST_DRAFTS
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.helpers.foreseeing import ByChance, ForcedHead, Foreseeing

SHARES = (0.0, 0.5, 0.8, 1.0)
PROMPT = "Write a list of things. " * 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--most", type=int, nargs="*", default=(1, 2, 4, MOST_DRAFTS))
    parser.add_argument("--head", type=int, nargs="*", default=())
    args = parser.parse_args()
    model = Model(open_bundle(args.bundle), threads=args.threads, context=2048, prefix_bytes=0)

    def answer(draft: bool) -> Answer:
        options: dict[str, Any] = {"max_new_tokens": args.tokens + 1, "ignore_eos": True, "draft": draft}
        made = model.generate([user_message(PROMPT)], **options)
        made.read()
        return made

    answer(False)  # warms up
    plain = answer(False)
    table = Table("drafts a step", "right by chance", "drafted", "right", "ms a token", "speed")

    def add(most: str, right: str, made: Answer) -> None:
        if made.ids != plain.ids:
            raise SystemExit(f"the answer with {most} drafts, {right} right, is another")
        timings, speed = made.timings, plain.timings.decode_ms / made.timings.decode_ms
        counts = (str(timings.drafted_tokens), str(timings.accepted_tokens))
        table.add_row(most, right, *counts, f"{timings.decode_ms / args.tokens:.1f}", f"{speed:.2f}x")

    add("none", "", plain)
    for most in args.most:
        for share in SHARES:
            drafts = ByChance(plain.timings.prompt_tokens, plain.ids, share, most)
            with patch.object(token_loop, "NgramDrafts", lambda *_, drafts=drafts: drafts):
                add(str(most), f"{share:.0%}", answer(True))
    for count in args.head:
        for share in SHARES:
            make = partial(forced, plain=plain, share=share, count=count)
            with (
                patch.object(token_loop, "NgramDrafts", lambda *_: Foreseeing(0, [], 0)),
                patch.object(token_loop, "MtpDrafts", make),
            ):
                add(f"{count or 'some'} of the head", f"{share:.0%}", answer(True))
    add("of the text", "", answer(True))
    Console().print(table)


def forced(
    head: FollowingHead, offset: int, never: Any, choose: Choice, *, plain: Answer, share: float, count: int
) -> MtpDrafts:
    """Drafts of a head, a share of which is right: so many a step, or 0: as many as seem worth their time."""
    known: Any = ForcedHead(head, plain.timings.prompt_tokens, plain.ids, share)
    drafts = MtpDrafts(known, offset, never, choose)
    if count:
        drafts._pace.next_count = lambda: count  # type: ignore[method-assign]
    return drafts


if __name__ == "__main__":
    main()
