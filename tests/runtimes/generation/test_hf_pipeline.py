"""Bundles called as transformers' pipeline, next to it on the same trained model in float32."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import lensmith
import pytest
from lensmith.runtimes import InputError
from PIL import Image

from tests.paths import TINY

transformers = pytest.importorskip("transformers", reason="needs lensmith[torch]")
torch = pytest.importorskip("torch", reason="needs lensmith[torch]")
PICTURE = Image.open(TINY / "heldout" / "images" / "0001.png").convert("RGB")
IMAGE = TINY / "heldout" / "images" / "0001.png"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Ours and theirs."""
    from lensmith.exporters.evidence.torch_loading import _import_torchvision
    from lensmith.exporters.pipeline import Options, export, prepare

    checkpoint = TINY / "qwen3_vl"
    job = prepare(checkpoint, Options(precision="fp32"))
    bundle = export(job, tmp_path_factory.mktemp("pipeline") / "bundle", golden="never").path
    _import_torchvision(torch)
    theirs = transformers.pipeline("image-text-to-text", model=str(checkpoint), dtype=torch.float32)
    return lensmith.pipeline("image-text-to-text", model=bundle), theirs


def chat(*more: Any) -> list[Any]:
    parts = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What word is written?"}]
    return [{"role": "user", "content": parts}, *more]


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "chat": (chat(), {}),
    "new text": (chat(), {"return_full_text": False}),
    "several chats": ([chat(), [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]], {}),
    "prefill": (chat({"role": "assistant", "content": [{"type": "text", "text": "It says"}]}), {}),
    "prefill, new text": (chat({"role": "assistant", "content": "It"}), {"return_full_text": False}),
    "length": (chat(), {"max_new_tokens": 1}),
    "options": (chat(), {"generate_kwargs": {"max_new_tokens": 3, "do_sample": False}}),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_theirs(pair: tuple[Any, Any], case: str) -> None:
    ours, theirs = pair
    text, options = CASES[case]
    assert ours(text=text, **options) == theirs(text=text, **options)
    assert ours(text, **options) == theirs(text, **options)


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_streamers_print_the_same(pair: tuple[Any, Any], skip_prompt: bool) -> None:
    printed = []
    for pipe in pair:
        streamer = transformers.TextStreamer(pipe.tokenizer, skip_prompt=skip_prompt)
        with redirect_stdout(io.StringIO()) as out:
            pipe(text=chat(), max_new_tokens=20, generate_kwargs={"streamer": streamer})
        printed.append(out.getvalue())
    assert printed[0] == printed[1]
    assert printed[0].strip()


def test_pixels(pair: tuple[Any, Any]) -> None:
    ours, _ = pair
    few = ours(text=chat(), max_new_tokens=4, max_pixels=64 * 64, return_full_text=False)
    assert few == [{"input_text": chat(), "generated_text": few[0]["generated_text"]}]
    answer = ours.model.generate(chat(), max_new_tokens=4, max_pixels=64 * 64)
    assert answer.read() == few[0]["generated_text"]


def test_links_are_fetched(pair: tuple[Any, Any]) -> None:
    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(IMAGE.read_bytes())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, ours = f"http://127.0.0.1:{server.server_port}", pair[0]
    parts = [{"type": "image", "url": f"{base}/a.png"}, {"type": "text", "text": "What word is written?"}]
    made = ours(text=[{"role": "user", "content": parts}], return_full_text=False)
    assert made[0]["generated_text"] == ours(text=chat(), return_full_text=False)[0]["generated_text"]
    assert made[0]["input_text"][0]["content"] == parts
    for link in (f"{base}/none.png", "http://127.0.0.1:9/a.png"):
        with pytest.raises(InputError, match="cannot be fetched"):
            ours(text=[{"role": "user", "content": [{"type": "image", "url": link}]}])
    server.shutdown()


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "task": (lambda ours: lensmith.pipeline("text-generation", model=ours.model), "image-text-to-text"),
    "no model": (lambda _: lensmith.pipeline("image-text-to-text"), "needs the path"),
    "option": (lambda ours: lensmith.pipeline(model=ours.model, divice_map=1), "device_map"),
    "images beside a chat": (lambda ours: ours(images=[IMAGE], text=chat()), "belong into its messages"),
    "nothing": (lambda ours: ours(), "give text"),
    "twice": (lambda ours: ours(text=chat(), max_new_tokens=2, generate_kwargs={"max_new_tokens": 3}), "given twice"),
    "unknown": (lambda ours: ours(text=chat(), generate_kwargs={"num_beems": 3}), "num_beems"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_obeyed_is_a_sentence(pair: tuple[Any, Any], case: str) -> None:
    call, words = WRONG[case]
    with pytest.raises(InputError, match=words):
        call(pair[0])


def test_what_pytorch_would_read_is_named(pair: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="torch_dtype has no effect"):
        lensmith.pipeline("image-text-to-text", model=pair[0].model, torch_dtype=torch.float16)
