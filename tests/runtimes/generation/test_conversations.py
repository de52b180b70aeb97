"""Answers that are open at once, in threads, behind failures and forks: each is the one that its question has alone."""

from __future__ import annotations

import copy
import gc
import itertools
import multiprocessing
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes import (
    GenerationOptions,
    Model,
    load,
    user_message,
)
from lensmith.runtimes.engines import engine_table
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.engines.onnx.bound_states import _lazy_zeros
from lensmith.runtimes.engines.onnx.onnx_executor import OnnxExecutor
from lensmith.runtimes.generation.answer import Progress
from lensmith.runtimes.generation.conversation_pool import ConversationPool
from lensmith.runtimes.generation.sampling import Sampler
from lensmith.runtimes.generation.timings import Timings
from lensmith.runtimes.generation.token_loop import TokenLoop
from lensmith.runtimes.prompt.manifest_specs import prompt_spec
from lensmith.runtimes.prompt.positions import text_positions
from lensmith.runtimes.prompt.prompt_parts import Prompt
from lensmith.runtimes.prompt.requests import Request
from lensmith.targets.errors import InputError

from tests.helpers import ladder
from tests.helpers.contents import inputs
from tests.helpers.extras import inside, latest
from tests.helpers.forking import SECONDS, fork, in_threads
from tests.helpers.ladder import ANSWER, random_image
from tests.helpers.llava import write_checkpoint

# By name: a family, and how it is compiled. What runs graphs for GPUs here is their executor on the CPU.
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "onnx": ("qwen3-vl-2b", {}),
    "onnx, hybrid": ("nemotron-4b", {}),
    "onnx, llava": ("vqwen3-4b", {}),
    "cuda": ("qwen3-vl-2b", {"target": "cuda"}),
    "cuda, hybrid": ("nemotron-4b", {"target": "cuda"}),
    "tensorrt": ("nemotron-4b", {"format": "tensorrt", "target": "rtx-40", "precision": "fp32", "context": 1024}),
    "gguf": ("qwen3-vl-2b", {"format": "gguf", "precision": "f32"}),
    "gguf, hybrid": ("nemotron-4b", {"format": "gguf", "precision": "f32"}),
    "gguf, llava": ("vqwen3-4b", {"format": "gguf", "precision": "f32"}),
}
HYBRIDS = [name for name, (family, _) in ENGINES.items() if family == "nemotron-4b"]
OPTIONS = GenerationOptions(max_new_tokens=6, ignore_eos=True)
PICTURE = random_image(97, 61)
QUESTIONS = [
    [user_message("What is it? " * 30, [PICTURE])],
    [user_message("How many are there?", [random_image(64, 100)])],
    [user_message("Name three colours.")],
    [user_message("What is it? " * 30, [PICTURE.rotate(180)])],  # the same tokens as those of the first
]
NEXT_TURN = [*QUESTIONS[0], ANSWER, user_message("And then? " * 8)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("engines")

    @cache
    def source(family: str) -> Path:
        made = ladder.tiny(folder / family, family)
        return write_checkpoint(made, folder / "llava", layout="transformers 5") if family == "vqwen3-4b" else made

    @cache
    def build(name: str) -> Path:
        family, options = ENGINES[name]
        if options.get("format") == "gguf":
            pytest.importorskip("llama_cpp", reason="needs lensmith[gguf]")
        return export(prepare(source(family), Options(**options)), folder / name, golden="never").path

    return build


@pytest.fixture(scope="module")
def models(bundles: Callable[[str], Path]) -> Callable[[str], Model]:
    return cache(lambda name: open_model(bundles(name)))


@pytest.fixture(params=ENGINES)
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Iterator[Model]:
    model = models(request.param)
    model.forget()
    yield model
    assert not model.conversations._used  # nothing is left behind


@pytest.fixture
def plain(models: Callable[[str], Model]) -> Model:
    models("onnx").forget()
    return models("onnx")


def open_model(path: Path, **options: Any) -> Model:
    found = load(path, **{"threads": 1, "context": 1024, "device": "cpu", **options})
    assert isinstance(found, Model)
    return found


def ids(model: Model, question: list[dict[str, Any]], options: GenerationOptions = OPTIONS) -> list[int]:
    answer = model.generate(question, options)
    answer.read()
    return answer.ids


@cache
def alone(model: Model) -> list[list[int]]:
    """The answers to all questions and to the next turn, each of a model that knows nothing of the others."""
    found = []
    for question in (*QUESTIONS, NEXT_TURN):
        model.forget()
        found.append(ids(model, question))
    model.forget()
    assert len({tuple(answer) for answer in found}) >= 4  # mixing them would be seen
    return found


def tokens_one_by_one(model: Model, question: list[dict[str, Any]]) -> Iterator[int]:
    """The tokens of an answer, also of those that make no text yet."""
    request = model.prepare(question)
    with model.conversation(request) as conversation:
        progress = Progress(Timings())
        yield from TokenLoop(conversation, request, OPTIONS, progress, None, model.eos_token_ids).tokens()


def side_by_side(model: Model, questions: list[list[dict[str, Any]]]) -> list[list[int]]:
    steps = itertools.zip_longest(*(tokens_one_by_one(model, question) for question in questions))
    return [list(answer) for answer in zip(*steps, strict=True)]


def test_answers_side_by_side(model: Model) -> None:
    """Two, three and four at once, the same question twice, then alone, and the next turn behind all that."""
    expected = alone(model)
    for chosen in ([0, 1], [3, 0, 2, 1], [1, 1]):
        found = side_by_side(model, [QUESTIONS[index] for index in chosen])
        assert found == [expected[index] for index in chosen]
    assert ids(model, QUESTIONS[1]) == expected[1]
    answer = model.generate(NEXT_TURN, OPTIONS)
    answer.read()
    assert answer.ids == expected[4]
    assert answer.timings.reused_tokens > 0


def test_answers_in_threads(model: Model) -> None:
    """More threads than conversations: they wait for each other."""
    expected, found = alone(model), list[tuple[int, list[int]]]()

    def work(first: int) -> None:
        for index in (first % 4, (first + 1) % 4):
            found.append((index, ids(model, QUESTIONS[index])))

    in_threads(*(partial(work, first) for first in range(6)))
    assert len(found) == 12
    assert [answer for _, answer in found] == [expected[index] for index, _ in found]
    assert len(model.conversations._idle) <= model.conversations.limit


def test_answers_that_are_left_in_the_middle(model: Model) -> None:
    """Dropped, closed, broken off by their reader: their conversation is there for the next, with what it holds."""
    expected = alone(model)
    for leave in (lambda steps: steps.close(), lambda steps: None):
        steps = tokens_one_by_one(model, QUESTIONS[0])
        assert [next(steps) for _ in range(3)] == expected[0][:3]
        leave(steps)
        del steps
        assert not model.conversations._used
        assert ids(model, QUESTIONS[3]) == expected[3]
        assert ids(model, QUESTIONS[0]) == expected[0]
    with model.generate(QUESTIONS[0], OPTIONS) as answer:
        next(iter(answer))
    assert ids(model, QUESTIONS[0]) == expected[0]


@pytest.mark.parametrize(("step", "behind"), [(0, True), (2, True), (4, False)])
def test_steps_that_fail(model: Model, step: int, behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a prefill of several chunks and after it, before and behind the computation: what is left is right."""
    expected = alone(model)
    model.forget()
    calls, compute = itertools.count(), inside(model.decoder)._compute

    def failing(*given: Any) -> Any:
        fails = next(calls) == step
        made = None if fails and not behind else compute(*given)
        if fails:
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch:
        patch.setattr(model.decoder, "_compute", failing)
        with pytest.raises(KeyboardInterrupt):
            prefill_and_run(model)
    assert next(calls) == step + 1
    assert ids(model, NEXT_TURN) == expected[4]
    assert ids(model, QUESTIONS[3]) == expected[3]


def prefill_and_run(model: Model) -> None:
    with model.conversation() as conversation:
        request = model.prepare(QUESTIONS[0])
        conversation.prefill(request, chunk=40)
        for token in range(4):
            conversation.run(Step(np.array([token]), text_positions(1, request.next_position + token)))


@pytest.mark.parametrize("name", ["onnx", "onnx, hybrid", "cuda, hybrid", "gguf", "gguf, hybrid"])
def test_forked_processes(name: str, bundles: Callable[[str], Path]) -> None:
    """Two at once, with two threads each. Threads of llama.cpp spin: there one has the machine to itself."""
    model = open_model(bundles(name), threads=2)
    expected = alone(model)
    for group in ((1,), (3,)) if "gguf" in name else ((1, 3),):
        children = [fork(partial(ids, model, QUESTIONS[index])) for index in group]
        assert [child() for child in children] == [repr(expected[index]) for index in group]
    assert ids(model, NEXT_TURN) == expected[4]


def test_an_answer_that_was_begun_before_the_fork(plain: Model) -> None:
    expected = alone(plain)
    begun, later = tokens_one_by_one(plain, QUESTIONS[0]), plain.generate(QUESTIONS[1], OPTIONS)
    first = next(begun)
    assert fork(lambda: list(begun))().startswith("InputError: this answer was begun before the process was forked")
    assert fork(lambda: (later.read(), later.ids)[1])() == repr(expected[1])
    assert [first, *begun] == expected[0]


def test_four_workers_of_a_pool(plain: Model) -> None:
    """They inherit what cannot be sent; results are sent."""
    expected = alone(plain)
    asked = [0, 1, 2, 3] * 3
    global inherited
    inherited = plain
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map_async(ask_inherited, asked, chunksize=1).get(SECONDS)
    assert found == [expected[index] for index in asked]


inherited: Model


def ask_inherited(index: int) -> list[int]:
    return ids(inherited, QUESTIONS[index])


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_loaded_models_are_not_sent(plain: Model, send: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match=r"a loaded Model cannot be pickled.*; send the path of its bundle"):
        send(plain)
    with pytest.raises(InputError, match=r"an answer cannot be pickled.*; read it, and send its text and ids"):
        send(plain.ask("?"))


def test_processes_that_are_spawned_get_no_model(plain: Model) -> None:
    process = multiprocessing.get_context("spawn").Process(target=alone, args=(plain,))
    with pytest.raises(InputError, match="load that once in each worker"):
        process.start()


def test_a_fork_waits_for_threads_that_compute(plain: Model) -> None:
    """Libraries for arithmetic hold locks then, which nobody would open in the child."""
    expected, ended = alone(plain), threading.Event()

    def work() -> None:
        while not ended.is_set():
            plain.media.forget()
            assert ids(plain, QUESTIONS[0]) == expected[0]

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        children = [fork(lambda: ids(plain, QUESTIONS[1])) for _ in range(4)]
        assert [child() for child in children] == [repr(expected[1])] * 4
    finally:
        ended.set()
        for thread in threads:
            thread.join(SECONDS)


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_caches_are_private_memory(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(sys, "platform", system)
        array = _lazy_zeros((2, 3), np.dtype(np.float32))
    assert not array.any()

    def write() -> float:
        array[:] = 7
        return float(array.sum())

    assert fork(write)() == "42.0"
    assert not array.any()


def test_a_bundle_that_was_replaced_is_not_opened_again(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.symlink_to(bundles("onnx"))
    model = open_model(path)
    path.unlink()
    path.symlink_to(bundles("onnx, hybrid"))
    assert "was replaced since it was loaded" in fork(lambda: ids(model, QUESTIONS[2]))()


def test_a_model_on_a_gpu_says_that_it_cannot_be_forked(
    bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def executor(path: Path, *, capacity: int, profile: bool) -> OnnxExecutor:
        return OnnxExecutor(path, capacity=capacity)

    monkeypatch.setattr(engine_table, "CudaExecutor", executor)
    model = open_model(bundles("cuda"), device=None)
    assert "load it in each process" in fork(lambda: ids(model, QUESTIONS[2]))()
    assert ids(model, QUESTIONS[2])


def test_more_answers_than_conversations(bundles: Callable[[str], Path]) -> None:
    """The thread that holds them is told, another one waits, and a cycle of references holds nothing."""
    model = open_model(bundles("onnx"), conversations=2)
    expected = alone(model)
    first, second = (tokens_one_by_one(model, question) for question in QUESTIONS[:2])
    begun = [next(first), next(second)]
    with pytest.raises(InputError, match=r"2 answers are open, 2 of them in this thread, .* close\(\) them"):
        ids(model, QUESTIONS[2])
    waiting = threading.Thread(target=lambda: begun.extend(ids(model, QUESTIONS[2])))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert [begun[1], *second] == expected[1]
    waiting.join(SECONDS)
    assert begun[2:] == expected[2]
    assert [begun[0], *first] == expected[0]

    held = [[tokens_one_by_one(model, QUESTIONS[0])] for _ in range(2)]
    for cycle in held:
        next(cycle[0])
        cycle.append(cycle)  # type: ignore[arg-type]
    gc.disable()
    try:
        del held, cycle
        assert ids(model, QUESTIONS[2]) == expected[2]
    finally:
        gc.enable()


def test_a_thread_waits_for_another_that_took_no_step_yet() -> None:
    """Whoever takes a conversation is its user, not whoever ran it before."""
    conversation: Any = SimpleNamespace(user=threading.current_thread())
    pool, taken = ConversationPool(lambda: conversation, 1), threading.Event()

    def hold() -> None:
        with pool.take():
            taken.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(SECONDS)
    with pool.take(), pytest.raises(InputError, match="1 answers are open, 1 of them in this thread"):
        pool._take(None)
    thread.join()


@pytest.mark.parametrize("number", [0, -1])
def test_no_conversations(bundles: Callable[[str], Path], number: int) -> None:
    with pytest.raises(InputError, match=f"conversations is {number}"):
        open_model(bundles("onnx"), conversations=number)


def test_the_end_of_an_answer(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, closed before and in the middle, closed by another thread, failed: it says which and gives no more."""
    answer = plain.generate(QUESTIONS[0], OPTIONS)
    answer.read()
    answer.close()
    assert answer.finish_reason == "length"
    early = plain.generate(QUESTIONS[0], OPTIONS)
    early.close()
    assert (early.read(), early.ids, early.finish_reason) == ("", [], "closed")
    whole = plain.generate(QUESTIONS[0], OPTIONS).read()
    broken = plain.generate(QUESTIONS[0], OPTIONS)
    first = next(iter(broken))
    with broken:
        pass
    assert (broken.text, broken.finish_reason) == (first, "closed")
    assert whole.startswith(first)

    run, other = plain.decoder.run, plain.generate(QUESTIONS[0], OPTIONS)

    def closed_meanwhile(*given: Any, **wanted: Any) -> Any:
        in_threads(other.close)
        return run(*given, **wanted)

    monkeypatch.setattr(plain.decoder, "run", closed_meanwhile)
    other.read()
    assert (len(other.ids), other.finish_reason) == (1, "closed")
    failing = plain.generate(QUESTIONS[1], OPTIONS)
    monkeypatch.setattr(plain.decoder, "run", None)
    with pytest.raises(TypeError):
        failing.read()
    assert failing.finish_reason == "failed"
    assert not plain.conversations._used


def test_where_an_answer_ends(bundles: Callable[[str], Path], plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """At an end token, which is text only where it is ignored, else at the limit or where the context is full."""
    end, half = min(plain.eos_token_ids), plain.prompts.tokenizer.token_to_id("â")  # one byte of three
    said = [half, end, half, half]
    question = QUESTIONS[2]
    prompt = len(plain.prepare(question).prompt)
    monkeypatch.setattr(
        "lensmith.runtimes.generation.token_loop.Sampler", lambda _: lambda _, history: said[len(history) - prompt]
    )
    full = open_model(bundles("onnx"), context=prompt + 2)
    cases: list[tuple[Model, dict[str, Any], Any]] = [
        (plain, {}, ([half, end], "\ufffd", "eos")),
        (plain, {"ignore_eos": True}, (said, "\ufffd\ufffd\ufffd", "length")),
        (full, {"ignore_eos": True}, (said[:3], "\ufffd\ufffd", "context")),
        (plain, {"max_new_tokens": 1}, ([half], "\ufffd", "length")),
    ]
    for model, options, found in cases:
        answer = model.generate(question, GenerationOptions(**{"max_new_tokens": 4, **options}))
        answer.read()
        assert (answer.ids, answer.text, answer.finish_reason) == found
        assert answer.timings.new_tokens == len(found[0])


def test_what_a_manifest_says_of_prompts(plain: Model) -> None:
    """Each in its own place; what is left out is nothing."""
    prompt = plain.bundle.content["prompt"]
    section = {**prompt, "eos_token_ids": [3, 4], "bos_token": "<s>", "template_kwargs": {"a": "b"}}
    spec = prompt_spec(inputs(prompt=section))
    assert (spec.eos_token_ids, spec.bos_token, spec.template_kwargs) == ((3, 4), "<s>", {"a": "b"})
    assert (spec.token_ids, spec.merge_size) == (section["token_ids"], section["merge_size"])
    left = {name: section[name] for name in section if name not in ("bos_token", "template_kwargs")}
    bare = prompt_spec(inputs(prompt=left))
    assert (bare.bos_token, bare.template_kwargs) == (None, {})


def test_tokens_of_images_and_of_videos_are_counted_apart(plain: Model) -> None:
    frames, timings = [random_image(64, 64) for _ in range(4)], Timings()
    request = plain.prepare([user_message("What?", [PICTURE], [frames])], timings)
    (first, *others), counts = [int(end - begin) for begin, end in request.prompt.image_spans], timings
    assert (counts.image_tokens, counts.video_tokens, counts.prompt_tokens) == (first, sum(others), len(request.prompt))
    assert first != sum(others)


def test_a_conversation_goes_to_whom_it_helps(plain: Model) -> None:
    """Each next turn finds its own; what is new takes the one that was not used for longest."""
    alone(plain)
    side_by_side(plain, [QUESTIONS[0], QUESTIONS[3]])
    for question in (QUESTIONS[0], QUESTIONS[3], QUESTIONS[0]):
        answer = plain.generate([*question, ANSWER, user_message("And?")], OPTIONS)
        answer.read()
        assert answer.timings.reused_tokens >= len(plain.prepare(question).prompt) - 8
    assert len(plain.conversations._idle) == 2
    ids(plain, [user_message("Zebra")])
    assert plain.conversations.start(plain.prepare(QUESTIONS[0])) > 60  # the latest stayed
    plain.forget()
    assert len(plain.conversations._idle) == 1
    assert plain.conversations.start(plain.prepare(QUESTIONS[0])) == 0


def text_request(tokens: list[int], turn_end: int = 0) -> Request:
    """A prompt of these tokens, without images."""
    nothing = np.zeros((0, 2), np.int64), np.zeros((0, 3), np.int64), np.zeros(0, bool)
    return Request(Prompt(np.array(tokens), *nothing), text_positions(len(tokens), 0), len(tokens), (), turn_end)


@pytest.mark.parametrize("name", HYBRIDS)
def test_states_of_another_branch_are_not_gone_back_to(name: str, models: Callable[[str], Model]) -> None:
    """A prompt parts from an earlier one in front of where states were saved: that copy is of other tokens."""
    model, draw = models(name), np.random.default_rng(0)
    begin, one, other = (draw.integers(5, 200, 100).tolist() for _ in range(3))
    model.prefill(text_request([*begin, *one, 7, 8, 9], turn_end=200), reuse=False)
    assert latest(model).start(text_request([*begin, *one, 1, 2])) == 200  # it was saved
    model.prefill(text_request([*begin[:90], *other, *one], turn_end=0))
    asked = text_request([*begin[:90], *other, *one[:40]])
    found = model.prefill(asked)
    np.testing.assert_array_equal(found, model.prefill(asked, reuse=False))


@pytest.mark.parametrize("name", ["onnx", "gguf", "gguf, hybrid"])
def test_chunks_are_as_long_as_the_logits_that_are_wanted(name: str, models: Callable[[str], Model]) -> None:
    model, request = models(name), text_request(list(range(20, 70)))
    whole = model.prefill(request, num_logits=12, reuse=False)
    assert whole.shape == (12, model.decoder.vocab)
    for chunk in (1, 5, 11, 13, 45):
        found = model.prefill(request, num_logits=12, chunk=chunk, reuse=False)
        np.testing.assert_allclose(found, whole, rtol=1e-3, atol=1e-3)


def test_what_is_computed_anew(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token at least, as many as logits are wanted of, or all of them where that is asked."""
    request, run, read = text_request(list(range(20, 70))), plain.decoder.run, []

    def counted(states: Any, step: Step) -> Any:
        read.append(len(step.ids))
        return run(states, step)

    monkeypatch.setattr(plain.decoder, "run", counted)
    for chosen in ({}, {}, {"num_logits": 3}, {"reuse": False}):
        plain.prefill(request, **chosen)
    assert read == [50, 1, 3, 50]


def test_without_a_request_it_is_the_latest(plain: Model) -> None:
    with plain.conversation() as one, plain.conversation() as other:
        assert one is not other
    assert latest(plain) is one
    with plain.conversation():
        assert latest(plain) is other


def test_recurrent_states_are_saved_behind_the_images_and_behind_the_turn(models: Callable[[str], Model]) -> None:
    """So that another question about the same image, and the next turn, both go on from what is there."""
    model, picture = models("onnx, hybrid"), random_image(640, 480)
    model.forget()
    question = [user_message("What is it? " * 30, [picture])]
    request = model.prepare(question)
    image_end = int(request.prompt.image_spans[0][1])
    other = model.prepare([user_message("How many?", [picture])])
    following = model.prepare([*question, ANSWER, user_message("And then?")])
    for asked, length in ((following, request.turn_end), (other, image_end)):
        expected = model.prefill(asked, reuse=False)
        model.prefill(request, reuse=False)
        assert latest(model).start(asked) == length
        np.testing.assert_allclose(model.prefill(asked), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "look", "parameters": {}}}]])
def test_another_conversation_goes_on_behind_the_messages_of_the_system(
    models: Callable[[str], Model], tools: list[Any] | None
) -> None:
    """With another picture, as users of one product ask; the states are those of a model that never saw the first."""
    model = models("onnx, hybrid")
    model.forget()
    system = {"role": "system", "content": "Answer in short words, and only about what is seen. " * 12}
    variables: dict[str, Any] = {} if tools is None else {"tools": tools}
    first, second = (
        model.prepare([system, user_message("What is it?", [random_image(*size)])], **variables)
        for size in ((640, 480), (320, 512))
    )
    assert first.system_end == second.system_end > 64
    assert (first.prompt.ids[: second.system_end] == second.prompt.ids[: second.system_end]).all()
    expected = model.prefill(second, reuse=False)
    model.forget()
    model.prefill(first)
    assert latest(model).start(second) == second.system_end
    np.testing.assert_allclose(model.prefill(second), expected, rtol=1e-4, atol=1e-4)
    assert latest(model).start(first) == first.system_end  # the copy is still there


def test_images_that_came_by_hand_are_not_used_again(plain: Model) -> None:
    """Their tokens are those of any image of the size."""
    request, other = plain.prepare(QUESTIONS[0]), plain.prepare(QUESTIONS[3])
    assert list(request.prompt.ids) == list(other.prompt.ids)
    begin = int(request.prompt.image_spans[0][0])
    expected = plain.prefill(request, reuse=False)
    with plain.conversation() as conversation:
        conversation.prefill(request, reuse=False)
        conversation.rewind(begin)
        rest = slice(begin, None)
        conversation.run(Step(other.prompt.ids[rest], other.positions[:, rest], other.images[0].features))
        assert conversation.reusable(request) == begin
    np.testing.assert_allclose(plain.prefill(request), expected, rtol=1e-4, atol=1e-4)


def test_images_come_token_by_token(plain: Model) -> None:
    """With their features at each, whether or not its logits are asked for."""
    request = plain.prepare(QUESTIONS[0])
    (begin, end), last = request.prompt.image_spans[0], len(request.prompt)
    steps, found = [(0, begin), *((place, place + 1) for place in range(begin, end)), (end, last)], []
    with plain.conversation() as conversation:
        for number in (0, 1):
            conversation.forget()
            for first, stop in steps:
                tokens, positions = request.prompt.ids[first:stop], request.positions[:, first:stop]
                features, wanted = request.features_between(first, stop), 1 if stop == last else number
                logits = conversation.run(Step(tokens, positions, features, num_logits=wanted))
            found.append(logits.copy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_videos_are_used_again(plain: Model) -> None:
    """Their tokens are others than those that the decoder is given for them."""
    frames = [random_image(64, 64) for _ in range(4)]
    request = plain.prepare([user_message("What happens?", videos=[frames])])
    plain.prefill(request)
    with plain.conversation(request) as conversation:
        np.testing.assert_array_equal(conversation.ids, request.prompt.ids)
        assert conversation.reusable(request) == len(request.prompt)


def test_penalties_count_the_tokens_of_the_answer(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a token is chosen by: the prompt, and all that was said so far."""
    seen: list[list[int]] = []

    class Watched(Sampler):
        def __call__(self, logits: Any, history: Any = ()) -> int:
            seen.append(list(history))
            return super().__call__(logits, history)

    monkeypatch.setattr("lensmith.runtimes.generation.token_loop.Sampler", Watched)
    said, prompt = ids(plain, QUESTIONS[2]), list(plain.prepare(QUESTIONS[2]).prompt.ids)
    assert seen == [[*prompt, *said[:step]] for step in range(len(said))]


@pytest.mark.parametrize("context", [0, -1, 10**9])
def test_contexts_outside_the_bundle(bundles: Callable[[str], Path], context: int) -> None:
    with pytest.raises(InputError, match=rf"context.* {context}\b"):
        load(bundles("onnx"), context=context)
