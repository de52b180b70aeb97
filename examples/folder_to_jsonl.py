"""One question about each picture of a folder, a line of JSON for each; what cannot be read is a line, too.

python examples/folder_to_jsonl.py BUNDLE FOLDER QUESTION > answers.jsonl
"""

import json
import sys
from pathlib import Path

from lensmith.runtimes import InputError, load


def main(bundle: str, folder: str, question: str) -> None:
    model = load(bundle)
    for path in sorted(Path(folder).iterdir()):
        if not path.is_file():
            continue
        try:
            answer = model.ask(question, [path], max_new_tokens=100)
            line = {"file": path.name, "answer": answer.read(), "finish_reason": answer.finish_reason}
        except InputError as error:
            line = {"file": path.name, "error": str(error)}
        print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
