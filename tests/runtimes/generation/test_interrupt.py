"""Answers that end while their images are encoded: between two, within one, and while they wait for their turn."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lensmith.runtimes import Model, user_message
from lensmith.runtimes.engines.contract import ImageFeatures
from lensmith.runtimes.process.interrupt import Interrupt, Interrupted, ended_by, heeding, in_turn

from tests.helpers.extras import inside, load
from tests.helpers.forking import SECONDS
from tests.helpers.ladder import random_image

PICTURES = [random_image(64, 64 + 32 * index) for index in range(3)]
QUESTION = [user_message("What are these?", PICTURES)]


@pytest.fixture(scope="module", params=[1, 2])
def loaded(tiny_bundle: Path, request: pytest.FixtureRequest) -> Model:
    """With two threads images are read one ahead."""
    return load(tiny_bundle, threads=request.param, context=1024, min_pixels=1024)


@pytest.fixture
def model(loaded: Model) -> Model:
    loaded.forget()
    return loaded


def test_between_two_images(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.generate(QUESTION, max_new_tokens=4).read()
    model.forget()
    vision, seen = model.vision, list[int]()
    answer = model.generate(QUESTION, max_new_tokens=4)
    assert (answer.timings.vision_ms, answer.prompt_ids.size) == (0.0, answer.timings.prompt_tokens)

    def closed_meanwhile(patches: Any, grid: Any) -> ImageFeatures:
        seen.append(len(patches))
        thread = threading.Thread(target=answer.close)
        thread.start()
        thread.join(SECONDS)
        return vision(patches, grid)

    with monkeypatch.context() as patch:
        patch.setattr(model.media, "vision", closed_meanwhile)
        assert (answer.read(), answer.ids, answer.finish_reason) == ("", [], "closed")
    assert len(seen) == 1
    assert not model.conversations._used
    assert model.generate(QUESTION, max_new_tokens=4).read() == expected  # what was made of the first is whole


def test_within_an_image(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime ends at its next operator; nothing of the image is kept."""
    answer, engine = model.generate(QUESTION), inside(model.vision)
    session, calls = engine.session, list[bool]()

    def run(outputs: Any, feed: Any, options: Any) -> Any:
        calls.append(True)
        answer.close()
        assert options.terminate
        made = session.run(outputs, feed, options)
        calls.append(False)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(engine, "session", SimpleNamespace(run=run))
        answer.read()
    assert (calls, answer.finish_reason) == ([True], "closed")
    assert not model.media._features
    assert model.generate(QUESTION, max_new_tokens=2).finish_reason == ""


def test_while_another_answer_has_the_turn(model: Model) -> None:
    answer = model.generate(QUESTION)
    reader = threading.Thread(target=answer.read)
    with model.media._turn:
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        answer.close()
        reader.join(SECONDS)
        assert not reader.is_alive()
    assert answer.finish_reason == "closed"


def test_errors_of_work_that_is_wanted_stay_what_they_are() -> None:
    interrupt, ended = Interrupt(), list[str]()
    with heeding(interrupt), pytest.raises(ZeroDivisionError), ended_by(lambda: ended.append("")):
        raise ZeroDivisionError
    interrupt.stop()
    assert ended == []  # no longer under way
    with heeding(interrupt), pytest.raises(Interrupted), ended_by(lambda: ended.append("at once")):
        raise ZeroDivisionError
    assert ended == ["at once"]
    lock = threading.Lock()
    with heeding(interrupt), pytest.raises(Interrupted), in_turn(lock):
        pass
    assert not lock.locked()
    with in_turn(lock), pytest.raises(ZeroDivisionError), ended_by(ended.clear):  # nobody is heeded
        raise ZeroDivisionError
