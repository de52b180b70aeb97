"""The loop of a product: one picture, questions one after another, text as it is made.

python examples/product_loop.py BUNDLE IMAGE QUESTION [QUESTION ...]
"""

import sys

from lensmith.runtimes import InputError, load, user_message


def main(bundle: str, image: str, *questions: str) -> None:
    model = load(bundle, context=4096)
    messages = [user_message(questions[0], [image])]
    for question in questions:
        if question is not questions[0]:
            messages.append(user_message(question))
        with model.generate(messages, max_new_tokens=100) as answer:
            for piece in answer:
                print(piece, end="", flush=True)
        timings = answer.timings  # what is shared with the turn before is not computed again
        print()
        print(f"[{timings.prompt_tokens} tokens, {timings.reused_tokens} of them reused]", file=sys.stderr)
        messages.append({"role": "assistant", "content": answer.text})


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InputError as error:  # one sentence: what was found, what was expected, what to do
        sys.exit(f"{error}")
