"""LLaVA with the tokenizers of Llama 2 and Vicuna: ids, text and llama.cpp's own tokenizer as transformers has them."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lensmith.exporters.checkpoint.tokenizer_files import SourceTokenizer
from lensmith.exporters.formats.gguf.vocabulary import scores
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.runtimes import load
from lensmith.runtimes.engines.llamacpp.library import llama
from lensmith.runtimes.generation.streaming import TextStream
from lensmith.runtimes.prompt.tokenizer_check import make_tokenizer
from lensmith.targets.errors import InputError
from PIL import Image
from tokenizers import Tokenizer

from tests.helpers import hf, pieces

FORMS = [(form, model) for form in pieces.FORMS for model in ("BPE", "Unigram")]
PLAIN = {f"{form} {model}": json.dumps(pieces.tokenizer(form, model)) for form, model in FORMS}
TOKENIZERS = {name: Tokenizer.from_str(text) for name, text in PLAIN.items()}
TEXTS = [
    "What is in this picture?",
    "",
    "  two spaces ",
    "日本 👍\n\n",
    "<s> a</s>b",
    "l'été▁ \t12",
    "a<image>\nb<0x0A>",
]
IMAGE = Image.new("RGB", (70, 56), (200, 30, 30))


@pytest.mark.parametrize("name", PLAIN)
def test_ids_are_those_of_the_library(name: str) -> None:
    """Through what is checked and written anew."""
    ours = make_tokenizer(PLAIN[name].encode(), "tokenizer.json")
    for text in TEXTS:
        assert ours.encode(text).ids == TOKENIZERS[name].encode(text).ids, text


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(PLAIN)), st.randoms(use_true_random=False), st.lists(st.sampled_from(TEXTS), max_size=3))
def test_pieces_join_to_what_the_tokenizer_decodes(name: str, draw: random.Random, texts: list[str]) -> None:
    """Random tokens, bytes that are no UTF-8, spaces in front, special tokens, and ids beyond the vocabulary."""
    tokenizer = TOKENIZERS[name]
    size, space = tokenizer.get_vocab_size(), tokenizer.get_vocab()["▁"]
    ids = [draw.choice((draw.randrange(size + 3), draw.randrange(3, 259), space)) for _ in range(draw.randrange(12))]
    ids = [*tokenizer.encode("".join(texts)).ids, *ids] if draw.random() < 0.5 else ids
    stream = TextStream(tokenizer)
    shown = [stream.push(token) for token in ids]
    assert "".join([*shown, stream.finish()]) == tokenizer.decode(ids, skip_special_tokens=True)


def test_text_comes_as_early_as_it_is_certain() -> None:
    tokenizer = TOKENIZERS["prepend BPE"]
    stream = TextStream(tokenizer, ["\n\n"])
    ids = [tokenizer.get_vocab()[t] for t in ("▁", "W", "▁is", "<0xF0>", "<0x9F>", "<0x91>", "<0x8D>", "a", "<0x0A>")]
    assert [stream.push(token) for token in ids] == ["", "W", " is", "", "", "", "", "👍a", ""]
    assert stream.finish() == "\n"
    values = pieces.tokenizer("first")
    values["decoder"] = {"type": "Sequence", "decoders": pieces.DECODER["decoders"][::-1]}
    with pytest.raises(InputError, match="is not a tokenizer that lensmith supports: its decoders are not Replace"):
        make_tokenizer(json.dumps(values).encode(), "it")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pieces.write_checkpoint(tmp_path_factory.mktemp("pieces") / "llava", "prepend")


CONFIGS: list[dict[str, Any]] = [
    {}, {"add_bos_token": False}, {"add_eos_token": True}, {"add_bos_token": None, "add_eos_token": None},
    {"bos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "LlamaTokenizerFast"},
]  # fmt: skip


@pytest.mark.parametrize(("form", "model"), FORMS)
def test_ids_of_checkpoints_are_those_of_transformers(form: str, model: str, tmp_path: Path) -> None:
    """With what tokenizer_config.json says of the tokens around a text."""
    transformers = hf.import_transformers()
    folder = pieces.write_checkpoint(tmp_path / "llava", form, model)
    before = json.loads((folder / "tokenizer_config.json").read_text())
    for config in CONFIGS:
        (folder / "tokenizer_config.json").write_text(json.dumps(before | config))
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ours = SourceTokenizer(prepare(folder, Options()).checkpoint).library
        for text in TEXTS:
            assert ours.encode(text).ids == theirs(text)["input_ids"], (config, text)


def test_answers_are_those_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    """The prompt with its image, and the text of the answer, from an ONNX and a GGUF bundle."""
    transformers = hf.import_transformers()
    import torch

    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "What is  it?\nA 日本 lion"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=IMAGE, text=text, return_tensors="pt")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    made = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    question = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, content[1]]}]
    builds = {"onnx": "fp32"} | ({"gguf": "f32"} if importlib.util.find_spec("llama_cpp") else {})
    for form, precision in builds.items():
        job = prepare(checkpoint, Options(format=form, precision=precision))
        answer = load(export(job, tmp_path / form, golden="never").path).generate(question, max_new_tokens=12)
        shown = list(answer)
        assert answer.ids == made, form
        assert "".join(shown) == processor.tokenizer.decode(made, skip_special_tokens=True)


def test_stock_llama_cpp_cuts_texts_alike(checkpoint: Path, tmp_path: Path) -> None:
    """By the scores, kinds and flags of the GGUF file."""
    pytest.importorskip("llama_cpp")
    job = prepare(checkpoint, Options(format="gguf", precision="f16"))
    file = export(job, tmp_path / "bundle", golden="never").path / "model.gguf"
    stock = llama().Llama(str(file), vocab_only=True, verbose=False)
    tokenizer = job.tokenizer.library
    draw = random.Random(1)
    words = [draw.choice([*pieces.CORPUS, *TEXTS[:5]])[draw.randrange(9) :] for _ in range(100)]
    for text in [*TEXTS[:5], *words]:
        if text:
            assert stock.tokenize(text.encode(), special=True) == tokenizer.encode(text).ids, text


def test_merges_without_scores_are_refused() -> None:
    model = pieces.tokenizer("first")["model"]
    found = scores(model)
    ranks = [found[model["vocab"][left + right]] for left, right in model["merges"]]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == len({left + right for left, right in model["merges"]})
    twice = next(i for i, (a, b) in enumerate(model["merges"]) if a + b == "".join(model["merges"][i + 1]))
    for merges in (model["merges"][:twice] + model["merges"][twice + 1 :],
                   [model["merges"][twice], *model["merges"][:twice], *model["merges"][twice + 1 :]]):  # fmt: skip
        with pytest.raises(InputError, match="are not those of a SentencePiece model"):
            scores({**model, "merges": merges})
