"""Two bundles on the same questions: right answers, answers that differ, tokens a second, size.

python examples/compare_bundles.py BUNDLE BUNDLE TASKS.jsonl [LIMIT]
"""

import json
import sys
from pathlib import Path

from lensmith.runtimes import load


def answers(bundle: str, tasks: list, folder: Path) -> list:
    """The answer to each task and a line of figures about the bundle."""
    model, given, tokens, seconds = load(bundle), [], 0, 0.0
    for task in tasks:
        images = [folder / image for image in task.get("images", [])]
        answer = model.ask(task["prompt"], images, max_new_tokens=200)
        given.append(answer.read().strip())
        tokens += answer.timings.new_tokens
        seconds += (answer.timings.first_token_ms + answer.timings.decode_ms) / 1000
    right = sum(answer == task["answer"] for answer, task in zip(given, tasks, strict=True))
    size = sum(file.stat().st_size for file in Path(bundle).rglob("*") if file.is_file())
    print(f"{bundle}: {right}/{len(tasks)} right, {tokens / seconds:.1f} tokens/s in all, {size / 1e6:.2f} MB")
    return given


def main(first: str, second: str, file: str, limit: str = "100") -> None:
    tasks = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()][: int(limit)]
    one, other = (answers(bundle, tasks, Path(file).parent) for bundle in (first, second))
    for task, left, right in zip(tasks, one, other, strict=True):
        if left != right:
            print(json.dumps({"prompt": task["prompt"], "first": left, "second": right}, ensure_ascii=False))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
