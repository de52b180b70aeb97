"""The server, asked by OpenAI's own client over a real socket."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import InputError, Model
from lensmith.runtimes.generation.sampling import Sampler
from lensmith.runtimes.media import links as links_module

pytest.importorskip("fastapi", reason="needs lensmith[serve]")
openai = pytest.importorskip("openai", reason="needs openai, the client")
import httpx  # noqa: E402
from lensmith.serving.picture_links import PictureLinks  # noqa: E402
from lensmith.serving.routes import PAGE  # noqa: E402

from tests.helpers.served import about, png, served  # noqa: E402

QUESTION = [{"role": "user", "content": "What is this?"}]
SHORT: Any = {"model": "tiny", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("messages", [QUESTION, about(png()), about(png(), png(110))], ids=["text", "image", "images"])
def test_tokens_are_those_of_the_model(client: Any, model: Model, messages: list[Any]) -> None:
    wanted = model.generate(messages, max_new_tokens=12, temperature=0)
    text = wanted.read()
    whole = client.chat.completions.create(messages=messages, **SHORT)
    assert whole.choices[0].message.content == text
    assert whole.usage.completion_tokens == len(wanted.ids)
    reason = "length" if len(wanted.ids) == 12 else "stop"  # random weights end where this processor's sums say so
    assert whole.choices[0].finish_reason == reason
    assert whole.usage.prompt_tokens == wanted.timings.prompt_tokens
    assert whole.usage.prompt_tokens_details.cached_tokens == wanted.timings.prompt_tokens - 1
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(messages=messages, stream=True, stream_options=options, **SHORT))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == reason
    assert chunks[-1].usage.completion_tokens == len(wanted.ids)
    assert not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_sampling_with_a_seed(client: Any, model: Model) -> None:
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 8, "temperature": 0.9, "seed": 5}
    made = client.chat.completions.create(n=3, **asked)
    wanted = [model.generate(QUESTION, max_new_tokens=8, temperature=0.9, seed=5 + i).read() for i in range(3)]
    assert [choice.message.content for choice in made.choices] == wanted
    chunks = client.chat.completions.create(n=3, stream=True, **asked)
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == wanted
    greedy = {**asked, "temperature": 0, "top_p": 0.5}  # where neither a seed nor a filter says anything
    assert (
        client.chat.completions.create(**greedy).choices[0].message.content
        == model.generate(QUESTION, max_new_tokens=8, temperature=0).read()
    )


def test_stop(client: Any, model: Model) -> None:
    text = model.generate(QUESTION, max_new_tokens=12, temperature=0).read()
    stop = text[4:7]
    made = client.chat.completions.create(messages=QUESTION, stop=stop, **SHORT).choices[0]
    assert (made.message.content, made.finish_reason) == (text[: text.index(stop)], "stop")


def test_logprobs_are_those_of_the_logits(client: Any, model: Model) -> None:
    made = client.chat.completions.create(messages=QUESTION, logprobs=True, top_logprobs=3, **SHORT)
    found = made.choices[0].logprobs.content
    answer = model.generate(QUESTION, max_new_tokens=12, temperature=0)
    answer.read()
    request = model.prepare(QUESTION)
    logits = model.prefill(request)[-1].astype(np.float64)
    logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    assert found[0].logprob == pytest.approx(logprobs[answer.ids[0]], abs=1e-6)
    assert [top.logprob for top in found[0].top_logprobs] == pytest.approx(np.sort(logprobs)[::-1][:3], abs=1e-6)
    assert found[0].top_logprobs[0].bytes == found[0].bytes  # greedy
    assert b"".join(bytes(token.bytes) for token in found).decode("utf-8", "replace") == made.choices[0].message.content
    chunks = client.chat.completions.create(messages=QUESTION, logprobs=True, stream=True, **SHORT)
    streamed = [token for chunk in chunks for token in (chunk.choices[0].logprobs or Nothing).content]
    assert [token.logprob for token in streamed] == [token.logprob for token in found]


class Nothing:
    content: tuple[Any, ...] = ()


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}, "kind": {"enum": ["a", "b"]}},
        "required": ["count", "kind"]}}}
    for name in ("count_things", "name_things")
]  # fmt: skip


def test_json_of_a_schema(client: Any) -> None:
    pytest.importorskip("llguidance", reason="needs lensmith[constrain]")
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "color", "schema": schema, "strict": True}}
    asked = {**SHORT, "max_tokens": 60, "messages": QUESTION, "response_format": form}
    made = client.chat.completions.create(**asked).choices[0]
    assert json.loads(made.message.content)["color"] in ("red", "blue")
    assert made.finish_reason == "stop"
    text = "".join(
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(stream=True, **asked)
    )
    assert text == made.message.content
    empty = {"type": "json_schema", "json_schema": {"name": "none"}}
    with pytest.raises(openai.BadRequestError, match="has no schema"):
        client.chat.completions.create(**{**asked, "response_format": empty})


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "name_things"}}])
def test_calls_of_tools(client: Any, choice: Any) -> None:
    pytest.importorskip("llguidance", reason="needs lensmith[constrain]")
    asked = {**SHORT, "max_tokens": 120, "messages": QUESTION, "tools": TOOLS, "tool_choice": choice,
             "parallel_tool_calls": False}  # fmt: skip
    made = client.chat.completions.create(**asked).choices[0]
    (call,) = made.message.tool_calls
    assert call.function.name in ("count_things", "name_things")[choice != "required" :]
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"count", "kind"}  # those of the schema, which forbids no others
    assert isinstance(arguments["count"], int)
    assert (made.finish_reason, made.message.content) == ("tool_calls", None)
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **asked)]
    (streamed,) = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (streamed.index, streamed.function.arguments) == (0, call.function.arguments)
    answered = [*QUESTION, made.message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "3 of kind a"}]  # fmt: skip
    again = client.chat.completions.create(**{**SHORT, "messages": answered, "tools": TOOLS})
    assert again.usage.prompt_tokens > 100


def test_one_call_where_no_more_are_wanted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a grammar the model may go on; the answer is ended behind its first call."""
    call = '<tool_call>\n{"name": "count_things", "arguments": {"count": 1, "kind": "a"}}\n</tool_call>\n'
    ids = iter(model.prompts.tokenizer.encode(call * 2, add_special_tokens=False).ids * 2)
    monkeypatch.setattr(Sampler, "__call__", lambda *_: next(ids))
    with served({"tiny": model}) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        asked = {**SHORT, "max_tokens": 150, "messages": QUESTION, "tools": TOOLS}
        one = client.chat.completions.create(parallel_tool_calls=False, **asked).choices[0]
        assert ([call.function.name for call in one.message.tool_calls], one.finish_reason) == (
            ["count_things"], "tool_calls")  # fmt: skip


def test_a_call_that_the_model_begins_follows_its_schema(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights, which would never write a call of their own: from its opening on, there is no other way."""
    pytest.importorskip("llguidance", reason="needs lensmith[constrain]")
    begun = model.prompts.tokenizer.encode("Well.\n<tool_call>", add_special_tokens=False).ids

    class Begins(Sampler):
        def __call__(self, logits: Any, history: Any = ()) -> int:
            self.count = getattr(self, "count", 0) + 1
            return begun[self.count - 1] if self.count <= len(begun) else super().__call__(logits, history)

    monkeypatch.setattr("lensmith.runtimes.generation.token_loop.Sampler", Begins)
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    with served({"tiny": model}) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        asked = {**SHORT, "max_tokens": 120, "messages": QUESTION}
        for tools in (TOOLS, strict):
            made = client.chat.completions.create(tools=tools, tool_choice="auto", **asked).choices[0].message
            arguments = json.loads(made.tool_calls[0].function.arguments)
            assert made.content.startswith("Well.")
            assert arguments.keys() == {"count", "kind"}
            assert 0 <= arguments["count"] <= 9
        schema = {"type": "array", "uniqueItems": True}
        impossible = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {"x": schema}}}
        with pytest.raises(openai.BadRequestError, match="uniqueItems"):
            client.chat.completions.create(tools=[{"type": "function", "function": impossible}], **asked)


def test_thoughts_of_earlier_turns_go_in_where_the_template_reads_them(client: Any, model: Model) -> None:
    """That of Qwen3-VL reads none; a client sends back what it got all the same."""
    assert not model.prompts.reads_thoughts
    said = [*QUESTION, {"role": "assistant", "content": "A lens."}, *about(text="Why?")]
    thought = [*QUESTION, {"role": "assistant", "content": "A lens.", "reasoning_content": "Hm."}, *about(text="Why?")]
    made = [client.chat.completions.create(messages=messages, **SHORT) for messages in (said, thought)]
    assert made[0].usage.prompt_tokens == made[1].usage.prompt_tokens
    assert made[0].choices[0].message.content == made[1].choices[0].message.content


WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "model": ({"model": "other"}, 404, "known: tiny"),
    "no messages": ({"messages": []}, 400, "messages"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
    "path": ({"messages": about("/etc/passwd")}, 400, "data URL|data:image"),
    "file": ({"messages": about("file:///etc/passwd")}, 400, "no URL that this server opens"),
    "link": ({"messages": about("http://169.254.169.254/latest")}, 400, "does not fetch from"),
    "user in link": ({"messages": about("https://example.com@10.0.0.1/a.png")}, 400, "10.0.0.1"),
    "no picture": ({"messages": about("data:image/png;base64,AAAA")}, 400, "image"),
    "no base64": ({"messages": about("data:image/png;base64,%%%")}, 400, "base64"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]}, 400, "type"),
    "context": ({"messages": [{"role": "user", "content": "x " * 2000}]}, 400, "the context holds 1024"),
    "tokens": ({"max_tokens": 601}, 400, "more than the 600"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "temperature": ({"temperature": -1}, 400, "temperature"),
    "penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    "unknown": ({"extra_body": {"guided_banana": 1}}, 400, "guided_banana"),
    "variable": ({"extra_body": {"chat_template_kwargs": {"nonsense": 1}}}, 400, "nonsense"),
    "top_logprobs": ({"top_logprobs": 2}, 400, "logprobs: true"),
    "stop": ({"stop": ""}, 400, "stop"),
    "tool_choice": ({"tool_choice": "required"}, 400, "no tools are given"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_obeyed_is_a_sentence(client: Any, case: str, stream: bool) -> None:
    changes, status, words = WRONG[case]
    with pytest.raises(openai.APIStatusError, match=words) as caught:
        client.chat.completions.create(**{**SHORT, "messages": QUESTION, **changes}, stream=stream)
    assert caught.value.status_code == status
    assert caught.value.body["type"] in ("invalid_request_error", "not_found_error")
    if case == "context":
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": 1}', b"[" * 10000])
def test_bodies_that_are_no_request(address: str, body: bytes) -> None:
    url = f"{address}/v1/chat/completions"
    response = httpx.post(url, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_damage_within_a_picture_has_a_status(client: Any, *, stream: bool) -> None:
    """It is found when the picture is read, behind one that is right and is encoded by then."""
    whole = png()
    header, _, data = whole.partition(",")
    damaged = bytearray(base64.b64decode(data))
    start = damaged.find(b"IDAT") + 8
    damaged[start : start + 20] = bytes(20)
    broken = f"{header},{base64.b64encode(damaged).decode()}"
    with pytest.raises(openai.BadRequestError, match="not a readable image"):
        client.chat.completions.create(messages=about(whole, broken), stream=stream, **SHORT)


def test_what_a_first_call_by_hand_may_lack(address: str) -> None:
    """curl says application/x-www-form-urlencoded of itself, quotes and paths are mistyped, and GET is its default."""
    path = "/v1/chat/completions"
    body = json.dumps({**SHORT, "messages": QUESTION})

    def said(method: str, where: str, kind: str = "application/json", content: str = body) -> tuple[int, str]:
        found = httpx.request(method, address + where, content=content, headers={"content-type": kind})
        return found.status_code, found.json()["error"]["message"]

    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        status, message = said("POST", path, kind)
        assert (status, "Content-Type: application/json" in message) == (400, True), message
    assert said("POST", path, content=body[:-1]) == (
        400, f"the body is not JSON: Expecting ',' delimiter at character {len(body) - 1}")  # fmt: skip
    status, message = said("POST", "/v1/chat/completion")
    assert status == 404
    assert message.startswith("POST /v1/chat/completion: Not Found; known: /, /health,")
    assert path in message
    assert said("GET", path) == (405, f"GET {path}: Method Not Allowed")


def test_large_and_slow_bodies(address: str) -> None:
    large = httpx.post(f"{address}/v1/chat/completions", content=b"x" * ((1 << 20) + 1))
    assert large.status_code == 413
    assert "limit of 1048576 bytes" in large.json()["error"]["message"]
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        slow.settimeout(10)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    with socket.create_connection((host, int(port))) as large_head:
        large_head.sendall(b"GET /health HTTP/1.1\r\nX: " + b"y" * (1 << 18))
        large_head.settimeout(10)
        assert large_head.recv(100)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")


def test_lists_and_figures(client: Any, address: str) -> None:
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "lensmith"
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    httpx.get(f"{address}/a/path/of/a/stranger")
    figures = httpx.get(f"{address}/metrics").text
    assert 'lensmith_requests_total{path="other",status="404"}' in figures
    assert 'lensmith_new_tokens_total{model="tiny"}' in figures
    assert "lensmith_running_requests 0.0" in figures
    assert "stranger" not in figures


def test_page_asks_nobody_else(address: str) -> None:
    page = httpx.get(f"{address}/")
    assert page.text == PAGE.read_text(encoding="utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_keys(model: Model) -> None:
    with served({"tiny": model}, api_keys=("secret", "other")) as address:
        right = openai.OpenAI(base_url=f"{address}/v1", api_key="other", max_retries=0)
        assert right.chat.completions.create(messages=QUESTION, **SHORT).choices
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.chat.completions.create(messages=QUESTION, **SHORT)
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200  # of probes, which have no key


def test_requests_that_do_not_say_how_many_tokens(model: Model) -> None:
    with served({"tiny": model}, most_new_tokens=4) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        made = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0)
        assert (made.usage.completion_tokens, made.choices[0].finish_reason) == (4, "length")


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


LONG: Any = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 600, "stream": True}


def running(address: str) -> int:
    text = httpx.get(f"{address}/metrics").text
    return int(float(next(line for line in text.splitlines() if line.startswith("lensmith_running")).split()[1]))


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_full_queue_and_clients_that_vanish(client: Any, address: str, slow_model: Model) -> None:
    open_answers = [client.chat.completions.create(**LONG) for _ in range(2)]
    assert wait_for(lambda: running(address) == 2)
    waiting = [threading.Thread(target=lambda: client.chat.completions.create(**LONG).close()) for _ in range(2)]
    for thread in waiting:
        thread.start()
    assert wait_for(lambda: "lensmith_waiting_requests 2.0" in httpx.get(f"{address}/metrics").text)
    with pytest.raises(openai.RateLimitError, match="2 requests wait") as caught:
        client.chat.completions.create(**LONG)
    assert caught.value.response.headers["retry-after"] == "1"
    for answer in open_answers:
        answer.close()
    for thread in waiting:
        thread.join(20)
    assert wait_for(lambda: running(address) == 0)


@pytest.fixture
def slow_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Its steps take half a second at least: an answer takes longer than `wait_for` waits for it to be given up."""
    run = model.decoder.run

    def slow(*given: Any) -> Any:
        time.sleep(0.5)
        return run(*given)

    monkeypatch.setattr(model.decoder, "run", slow)
    return model


LONG_OF: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": LONG, "/v1/completions": {**without(LONG, "messages"), "prompt": "What is this?"},
    "/v1/responses": {**without(LONG, "messages", "max_tokens"), "input": "What is this?", "max_output_tokens": 600},
    "/v1/messages": LONG,
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", LONG_OF)
def test_whoever_leaves_without_reading_frees_the_place(
    address: str, slow_model: Model, path: str, stream: bool
) -> None:
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({**LONG_OF[path], "stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json"
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(head.encode() + b"\r\n\r\n" + body)
        assert wait_for(lambda: running(address) == 1)
    assert wait_for(lambda: running(address) == 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_deadline_in_front_of_the_first_token(slow_model: Model, *, stream: bool) -> None:
    with served({"tiny": slow_model}, deadline=0.3) as address:
        for path, body in LONG_OF.items():
            late = httpx.post(f"{address}{path}", json={**body, "stream": stream}, timeout=20)
            assert late.status_code == 504
            error = late.json()["error"]
            assert "not done at its deadline" in error["message"]
            assert error["type" if path == "/v1/messages" else "code"] in ("timeout_error", "deadline_exceeded")
            assert wait_for(lambda: running(address) == 0)


def test_deadline_of_what_is_streamed(slow_model: Model) -> None:
    with served({"tiny": slow_model}, deadline=4) as address:
        for path, body in LONG_OF.items():
            late = httpx.post(f"{address}{path}", json=body, timeout=20)
            assert late.status_code == 200
            events = late.text.split("\n\n")
            assert "not done at its deadline" in events[-3 if "[DONE]" in events[-2] else -2]
            assert wait_for(lambda: running(address) == 0)


def test_answers_that_share_the_server_are_those_of_each_alone(client: Any, model: Model) -> None:
    questions = [f"Question {i}: " + "word " * i for i in range(8)]
    wanted = [model.ask(question, max_new_tokens=12, temperature=0).read() for question in questions]
    found: dict[int, str] = {}

    def ask(index: int) -> None:
        messages = [{"role": "user", "content": questions[index]}]
        while True:
            try:
                made = client.chat.completions.create(messages=messages, **SHORT)
            except openai.RateLimitError:
                time.sleep(0.05)
                continue
            found[index] = made.choices[0].message.content
            return

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(questions))] == wanted


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = 302 if self.path == "/moved" else 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/picture")
        self.end_headers()
        self.wfile.write(b"x" * (5000 if self.path == "/large" else 10))

    def log_message(self, *_: Any) -> None:
        pass


def test_links_to_allowed_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    links, base = PictureLinks(("127.0.0.1", "localhost"), 1000), f"http://127.0.0.1:{server.server_port}"
    for own in (f"{base}/picture", f"http://localhost:{server.server_port}/picture"):
        with pytest.raises(InputError, match="not a public one"):  # even where it is allowed by name
            links.open(own)
    monkeypatch.setattr(links_module, "check_public", lambda _: None)
    assert links.open(f"{base}/picture") == b"x" * 10
    for path, words in (("moved", "cannot be fetched"), ("large", "more than 1000 bytes")):
        with pytest.raises(InputError, match=words):
            links.open(f"{base}/{path}")
    server.shutdown()
