"""A model that was trained to call tools does its errands through the server, in int4."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from lensmith.runtimes import Model, load

pytest.importorskip("fastapi", reason="needs lensmith[serve]")
openai = pytest.importorskip("openai", reason="needs openai, the client")
pytest.importorskip("matplotlib", reason="the pictures need lensmith[report]")
pytest.importorskip("transformers", reason="the tools' section needs lensmith[torch]")

from lensmith.exporters.pipeline import Options, export, prepare  # noqa: E402

from tests.helpers.errand_talks import Asker, question  # noqa: E402
from tests.helpers.served import served  # noqa: E402
from tests.paths import TINY  # noqa: E402
from tests.training.drawing import random_size  # noqa: E402
from tests.training.errands import ERRANDS, TOOLS, heldout_errand  # noqa: E402


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    bundle = export(
        prepare(TINY / "caller", Options()), tmp_path_factory.mktemp("caller") / "int4", golden="never"
    ).path
    model = load(bundle, context=1024)
    assert isinstance(model, Model)
    with served({"caller": model}) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("number", range(8))
def test_errand_is_done(client: Any, number: int) -> None:
    """The client gets the right calls, answers them, and the final text is right: whole, streamed, with thoughts."""
    rng = random.Random(f"served-{number}")
    scene, errand, names = heldout_errand(rng, ERRANDS[number % len(ERRANDS)], random_size)
    for stream, thinking in ((False, False), (True, number % 2 == 0)):
        first, last = Asker(client, "caller", stream=stream, thinking=thinking).do(errand, scene.image, names)
        assert first.called == [(call.name, call.arguments) for call in errand.calls]
        assert (first.text, first.finish_reason, bool(first.thoughts)) == ("", "tool_calls", thinking)
        assert last is not None
        assert (last.text, last.calls, last.finish_reason) == (errand.final, [], "stop")
        assert bool(last.thoughts) is thinking


def test_no_call_without_the_tool(client: Any) -> None:
    for number, task in enumerate(ERRANDS):
        scene, errand, _ = heldout_errand(random.Random(f"refused-{number}"), task, random_size)
        for names in ([], [name for name in TOOLS if name != errand.tool]):
            reply = Asker(client, "caller").ask([question(errand.prompt, [scene.image])], names)
            assert (reply.calls, reply.finish_reason) == ([], "stop")


def test_questions_that_need_no_tool_get_none(client: Any) -> None:
    scene, _, _ = heldout_errand(random.Random("plain"), "word", random_size)
    for names in ([], list(TOOLS)):
        reply = Asker(client, "caller").ask([question("What word is written?", [scene.image])], names)
        assert (reply.text, reply.calls) == (scene.items[0].name, [])
