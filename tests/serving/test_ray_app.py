"""The server under Ray Serve: two replicas, of which one is killed."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lensmith.runtimes import Model, load

from tests.helpers.served import about, png

SLOW = "LENSMITH_RAY_TESTS"
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs lensmith[ray]"),
    pytest.mark.skipif(SLOW not in os.environ, reason=f"takes a minute or two; run with {SLOW}=1"),
]
openai = pytest.importorskip("openai", reason="needs openai, the client")
PATIENCE = {f"RAY_SERVE_PROXY_{name}_TIMEOUT_S": "120" for name in ("READY_CHECK", "HEALTH_CHECK")}
GREEDY: Any = {"model": "bundle", "temperature": 0}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    found = load(tiny_bundle, context=1024)
    assert isinstance(found, Model)
    return found


@pytest.fixture(scope="module")
def address(tiny_bundle: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        import ray
        from lensmith.serving.ray_app import RayArguments, build_app
        from ray import serve

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            arguments = RayArguments(bundles=str(tiny_bundle), num_cpus=0.1, conversations=2, context=1024, queue=4)
            serve.run(build_app(arguments))
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)


def asked(client: Any, messages: list[Any], **more: Any) -> tuple[str, Any]:
    """The replica that answered, and its answer."""
    raw = client.chat.completions.with_raw_response.create(messages=messages, **{**GREEDY, "max_tokens": 12, **more})
    return raw.headers["x-lensmith-replica"], raw.parse()


def test_each_conversation_stays_with_its_replica(client: Any, model: Model) -> None:
    replicas = set()
    for index in range(8):
        first = about(*[png(20 * index)][: index % 2], text=f"Question {index}?")
        replica, answer = asked(client, first)
        said = answer.choices[0].message.content
        assert said == model.generate(first, max_new_tokens=12, temperature=0).read()
        turn = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": "Why?"}]
        again, second = asked(client, turn)
        assert again == replica
        assert second.choices[0].message.content == model.generate(turn, max_new_tokens=12, temperature=0).read()
        assert second.usage.prompt_tokens_details.cached_tokens >= answer.usage.prompt_tokens
        replicas.add(replica)
    assert len(replicas) == 2
    assert [each.id for each in client.models.list()] == ["bundle"]
    with pytest.raises(openai.BadRequestError, match="this server keeps no responses"):
        client.responses.create(model="bundle", input="x", previous_response_id="y")
    streamed = client.chat.completions.create(messages=about(text="Question 1?"), stream=True, max_tokens=12, **GREEDY)
    wanted = model.generate(about(text="Question 1?"), max_new_tokens=12, temperature=0).read()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == wanted


def test_a_full_replica_spills_over(client: Any) -> None:
    """One conversation, four times at once: its replica has two places."""
    found: list[str] = []

    def ask() -> None:
        found.append(asked(client, about(text="All at once?"), max_tokens=500)[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 4
    assert len(set(found)) == 2


def test_a_killed_replica_loses_no_other_request(client: Any, model: Model) -> None:
    """Nor its own ones, as long as nothing of them was said: these are asked again elsewhere."""
    import ray

    questions = [about(text=f"A long answer to question {index}?") for index in range(4)]
    wanted = [model.generate(each, max_new_tokens=500, temperature=0).read() for each in questions]
    killed, _ = asked(client, questions[0])
    found: dict[int, str] = {}

    def ask(index: int) -> None:
        found[index] = asked(client, questions[index], max_tokens=500)[1].choices[0].message.content

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.3)  # all are being answered
    assert not found
    ray.kill(ray.get_actor(f"SERVE_REPLICA::default#Replica#{killed}", namespace="serve"))
    for thread in threads:
        thread.join(120)
    assert [found.get(index) for index in range(4)] == wanted
    assert asked(client, questions[0])[0] != killed
