"""Many clients of one server: errors, memory, and whether each answer is the one that its question gets alone.

python tests/benchmarks/serve_load.py BUNDLE IMAGES --clients 8 --seconds 300
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from lensmith.runtimes import Model, load

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script is not part of its package

from tests.helpers.local_server import LENSMITH, local_server

WORDS = ("What word is written?", "Describe the image.", "How many things are there?", "Which colour is largest?")


def questions(images: Path) -> list[dict[str, Any]]:
    """Requests about pictures and without, each answered greedily."""
    pictures = sorted(images.glob("*.png"))[:12]
    links = ["data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in pictures]
    parts = [[{"type": "image_url", "image_url": {"url": link}}] for link in links]
    made = [[{"role": "user", "content": [*part, {"type": "text", "text": word}]}] for part in parts for word in WORDS]
    made += [[{"role": "user", "content": f"{word} {index}"}] for index, word in enumerate(WORDS)]
    return [{"messages": messages, "temperature": 0, "max_tokens": 24} for messages in made]


class Load:
    """Clients that ask again and again."""

    def __init__(self, address: str, name: str, asked: list[dict[str, Any]], wanted: list[str]) -> None:
        self.url, self.name, self.asked, self.wanted = f"{address}/v1/chat/completions", name, asked, wanted
        self.found: Counter[str] = Counter()
        self.stopped = threading.Event()

    def ask(self, seed: int) -> None:
        """One client: whole answers, streams, and now and then a connection that is dropped."""
        choose = random.Random(seed)
        with httpx.Client(timeout=120) as client:
            while not self.stopped.is_set():
                index = choose.randrange(len(self.asked))
                body = {**self.asked[index], "model": self.name}
                kind = choose.choice(("whole", "streamed", "dropped"))
                self.found[self._one(client, kind, body, self.wanted[index])] += 1

    def _one(self, client: httpx.Client, kind: str, body: dict[str, Any], wanted: str) -> str:
        if kind == "whole":
            response = client.post(self.url, json=body)
            if response.status_code != 200:
                return f"status {response.status_code}"
            return _judged(response.json()["choices"][0]["message"]["content"], wanted)
        with client.stream("POST", self.url, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                return f"status {response.status_code}"
            text = ""
            for line in response.iter_lines():
                if kind == "dropped":
                    return "dropped"
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        return f"error in a stream: {chunk['error']['message']}"
                    text += chunk["choices"][0]["delta"].get("content") or ""
            return _judged(text, wanted)


def _judged(text: str, wanted: str) -> str:
    return "right" if text == wanted else "other than alone"


def memory_mb(process: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300)
    given = parser.parse_args()
    model = load(given.bundle)
    assert isinstance(model, Model)
    asked = questions(given.images)
    wanted = [model.generate(a["messages"], max_new_tokens=24, temperature=0).read() for a in asked]
    with local_server([*LENSMITH, "serve", given.bundle, "--queue", 4]) as (address, process):
        load_ = Load(address, given.bundle.resolve().name, asked, wanted)
        clients = [threading.Thread(target=load_.ask, args=(seed,)) for seed in range(given.clients)]
        for client in clients:
            client.start()
        sizes, end = [], time.monotonic() + given.seconds
        while time.monotonic() < end:
            time.sleep(given.seconds / 10)
            sizes.append(round(memory_mb(process), 1))
        load_.stopped.set()
        for client in clients:
            client.join()
        time.sleep(1)
        figures = httpx.get(f"{address}/metrics").text
        left = next(line for line in figures.splitlines() if line.startswith("lensmith_running_requests "))
        print(dict(load_.found), "memory in MB:", sizes, left, "a second after the last client")


if __name__ == "__main__":
    main()
