"""/v1/completions, asked by OpenAI's own client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import InputError, Model

openai = pytest.importorskip("openai", reason="needs openai, the client")
PROMPT = "The sun rises in the"
SHORT: Any = {"model": "tiny", "temperature": 0, "max_tokens": 10}


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_a_text_is_gone_on_with_as_it_is(client: Any, model: Model) -> None:
    """The reference: the decoder's own logits, token by token, without anything that makes prompts."""
    ids = model.prompts.tokenizer.encode(PROMPT).ids
    wanted = model.complete(ids, max_new_tokens=10, temperature=0)
    wanted.read()
    with model.conversation() as conversation:
        conversation.forget()
        logits, made = conversation.prefill(_request(model, ids))[-1], []
        for _ in range(10):
            made.append(int(np.argmax(logits)))
            logits = conversation.prefill(_request(model, [*ids, *made]))[-1]
    assert wanted.ids == made
    whole = client.completions.create(prompt=PROMPT, **SHORT)
    text = model.prompts.tokenizer.decode(made)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (text, "length")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(ids), 10)
    assert client.completions.create(prompt=ids, **SHORT).choices[0].text == text
    chunks = list(
        client.completions.create(prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **SHORT)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == 10


def _request(model: Model, ids: list[int]) -> Any:
    from lensmith.runtimes.generation.raw_prompt import raw_prompt
    from lensmith.runtimes.prompt.requests import assemble

    return assemble(raw_prompt(model.prompts, ids, model.manifest.vocab), model.positions, [], [])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_several_texts_with_echo_n_and_seeds(client: Any, model: Model, stream: bool) -> None:
    prompts = [PROMPT, "One, two,"]
    asked = {"model": "tiny", "max_tokens": 6, "temperature": 0.9, "seed": 3, "n": 2, "echo": True}
    wanted = [prompt + model.complete(prompt, max_new_tokens=6, temperature=0.9, seed=3 + index).read()
              for prompt in prompts for index in range(2)]  # fmt: skip
    tokens = [model.prompts.tokenizer.encode(prompt).ids for prompt in prompts]
    made = client.completions.create(prompt=prompts, stream=stream, **asked)
    if stream:
        texts = [""] * 4
        for chunk in made:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == wanted
    else:
        assert [choice.text for choice in made.choices] == wanted
        assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
        assert made.usage.prompt_tokens == sum(map(len, tokens))  # each prompt counts once
        of_tokens = client.completions.create(prompt=tokens, **asked)
        assert [choice.text for choice in of_tokens.choices] == wanted


def test_logprobs_in_the_old_form(client: Any, model: Model) -> None:
    answer = model.complete(PROMPT, max_new_tokens=10, temperature=0, logprobs=2)
    text = answer.read()
    made = client.completions.create(prompt=PROMPT, logprobs=2, **SHORT).choices[0]
    found = made.logprobs
    assert answer.logprobs is not None
    assert found.token_logprobs[0] == pytest.approx(answer.logprobs[0].logprob, abs=1e-6)
    assert found.token_logprobs == pytest.approx([token.logprob for token in answer.logprobs], abs=0.1)  # cached int4
    assert [max(top.values()) for top in found.top_logprobs] == pytest.approx(found.token_logprobs)  # greedy
    assert all(len(top) == 2 for top in found.top_logprobs)
    for token, begin in zip(found.tokens, found.text_offset, strict=True):
        assert token.startswith(("bytes:", "<|")) or text[begin:].startswith(token)  # the latter have no text
    chunks = list(client.completions.create(prompt=PROMPT, logprobs=2, stream=True, **SHORT))
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for each in told for token in each.tokens] == found.tokens
    assert [offset for each in told for offset in each.text_offset] == found.text_offset


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_logprobs_of_an_echoed_prompt(client: Any, model: Model, stream: bool) -> None:
    """As tools that score texts ask for them; the reference are the logits of the whole prompt at once."""
    prompt = "<|im_start|>user\nThe colour of the sky is blüe." + " And so on." * 30  # more than one piece
    request = _request(model, model.prompts.tokenizer.encode(prompt).ids)
    logits = model.prefill(request, num_logits=len(request.prompt), reuse=False).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = logits[np.arange(len(request.prompt) - 1), request.prompt.ids[1:]]
    asked = {"model": "tiny", "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    made = [client.completions.create(**asked)] if not stream else [*client.completions.create(stream=True, **asked)]
    text = "".join(each.choices[0].text for each in made)
    told = [each.choices[0].logprobs for each in made if each.choices[0].logprobs]
    logprobs = [logprob for each in told for logprob in each.token_logprobs]
    assert text.startswith(prompt)
    assert logprobs[0] is None
    assert logprobs[1 : len(request.prompt)] == pytest.approx(wanted, abs=0.05)  # in pieces, with 8-bit activations
    assert len(logprobs) == len(request.prompt) + 1
    offsets = [offset for each in told for offset in each.text_offset]
    for token, begin in zip((token for each in told for token in each.tokens), offsets, strict=True):
        assert token.startswith("bytes:") or text.startswith(token, begin) or begin >= len(prompt)


def test_stop(client: Any, model: Model) -> None:
    answer = model.complete(PROMPT, max_new_tokens=10, temperature=0)
    stop = answer.read()[3:6]
    made = client.completions.create(prompt=PROMPT, stop=[stop, "never said"], **SHORT).choices[0]
    assert (made.text, made.finish_reason) == (answer.text[: answer.text.index(stop)], "stop")


@pytest.mark.parametrize(("changes", "words"), [
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 3}, "leave best_of out"),
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, -1]}, "prompt"),
    ({"prompt": [1 << 30]}, "expected ids from 0"),
    ({"prompt": "x " * 2000}, "the context holds 1024"),
    ({"prompt": "<|image_pad|>"}, "image"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 601}, "more than the 600"),
    ({"logprobs": 21}, "logprobs"),
    ({"presence_penalty": 1}, "presence_penalty"),
])  # fmt: skip
def test_what_cannot_be_obeyed_is_a_sentence(client: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.completions.create(**{**SHORT, "prompt": PROMPT, **changes})


def test_placeholders_of_images_are_no_tokens_of_a_prompt(model: Model) -> None:
    with pytest.raises(InputError, match="stands for a picture"):
        model.complete([5, model.prompts.image_token_id])
