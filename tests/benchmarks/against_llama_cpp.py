"""Speed of a bundle next to llama.cpp on the same model, prompt and image, each in a process of its own.

    python tests/benchmarks/against_llama_cpp.py BUNDLE MODEL.gguf MMPROJ.gguf [--threads 2] [--repeats 3]

The GGUF files come from llama.cpp's own convert_hf_to_gguf.py (once plain, once with --mmproj) and its quantizer
(Q4_0); llama-cpp-python runs them. Prints medians and ratios: first token with an image, decode speed, peak RSS.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

QUESTION = "Describe this picture in detail."
STEPS = 32


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture of any size, the same on every machine."""
    seeds = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(seeds).resize((width, height), Image.Resampling.BICUBIC)


def lensmith(args: argparse.Namespace) -> dict[str, Any]:
    from lensmith.runtimes import GenerationOptions

    from tests.helpers.extras import load

    model = load(args.bundle, threads=args.threads, context=2048)
    image = picture(*args.size)
    options = GenerationOptions(max_new_tokens=STEPS + 1, ignore_eos=True, draft=False)
    firsts, speeds = [], []
    for repeat in range(args.repeats + 1):
        model.forget()
        answer = model.ask(QUESTION, [image], options)
        answer.read()
        if repeat:  # the first run warms up
            firsts.append(answer.timings.first_token_ms / 1000)
            speeds.append(answer.timings.tokens_per_s)
    return {"first_token_s": firsts, "decode_tokens_per_s": speeds, "prompt_tokens": answer.timings.prompt_tokens}


def llama_cpp(args: argparse.Namespace) -> dict[str, Any]:
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import MTMDChatHandler

    handler = MTMDChatHandler(clip_model_path=args.mmproj, verbose=False, use_gpu=False)
    model = Llama(args.model, chat_handler=handler, n_ctx=2048, n_batch=512, n_threads=args.threads,
                  n_threads_batch=args.threads, n_gpu_layers=0, verbose=False)  # fmt: skip
    buffer = io.BytesIO()
    picture(*args.size).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    firsts: list[float] = []
    for repeat in range(args.repeats + 1):
        started = time.perf_counter()
        messages: Any = [{"role": "user", "content": content}]
        made: Any = model.create_chat_completion(messages, max_tokens=1, temperature=0)
        if repeat:
            firsts.append(time.perf_counter() - started)
    speeds = [decode_speed(model) for _ in range(args.repeats)]
    return {"first_token_s": firsts, "decode_tokens_per_s": speeds, "prompt_tokens": made["usage"]["prompt_tokens"]}


def decode_speed(model: Any) -> float:
    """Tokens/s of single steps behind whatever the context holds."""
    started = time.perf_counter()
    for token in range(100, 100 + STEPS):
        model.eval([token])
    return STEPS / (time.perf_counter() - started)


CONTENDERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"lensmith": lensmith, "llama.cpp": llama_cpp}


def measured(name: str) -> dict[str, Any]:
    """The figures of one contender, from a process of its own."""
    run = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--contender", name], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{name} failed: {run.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("model")
    parser.add_argument("mmproj")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(896, 672), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        figures = CONTENDERS[args.contender](args)
        figures["peak_rss_gb"] = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]
        print(json.dumps(figures))
        return
    results = {name: measured(name) for name in CONTENDERS}
    for key in ("first_token_s", "decode_tokens_per_s", "peak_rss_gb"):
        ours, theirs = (statistics.median(results[name][key]) for name in CONTENDERS)
        print(f"{key:20s} lensmith {ours:8.2f}   llama.cpp {theirs:8.2f}   ratio {ours / theirs:.2f}")
    print("prompt tokens", {name: result["prompt_tokens"] for name, result in results.items()})


if __name__ == "__main__":
    main()
