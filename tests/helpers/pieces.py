"""Small tokenizers as SentencePiece's models become in tokenizer.json, and a LLaVA of Llama 2 with one, by code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.helpers import llava
from tests.paths import TINY

SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
CORPUS = ["USER: What is in this picture? ASSISTANT: A lion and a crow.", "the quick brown fox jumps over two dogs",
          "Hello world, how are you today?", "Describe the  picture.\tWhat   word is it?", "l'été 12 345"]  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {  # as transformers 4 wrote them, and as version 5 and a converter in between do
    "prepend": {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}},
    **{scheme: {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}}
       for scheme in ("first", "always", "never")},
}  # fmt: skip
DECODER: dict[str, Any] = {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}  # fmt: skip
# The template of llava-hf/llava-1.5-7b-hf.
TEMPLATE = """{% for message in messages %}{% if message['role'] != 'system' %}\
{{ message['role'].upper() + ': '}}{% endif %}\
{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}\
{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}\
{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def tokenizer(form: str, model: str = "BPE") -> dict[str, Any]:
    """The content of a tokenizer.json with a model that is trained on CORPUS."""
    made = {"BPE": _bpe, "Unigram": _unigram}[model]()
    tokens = [*enumerate(SPECIAL), *enumerate(("<image>", "<pad>"), len(made["vocab"]))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text, bos = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
    around = {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text],
              "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}  # fmt: skip
    added = [{"id": number, "content": content, **flags} for number, content in tokens]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": None, "post_processor": around, "decoder": DECODER, "model": made,
            **FORMS[form]}  # fmt: skip


def _bpe() -> dict[str, Any]:
    """As a converter makes them of a SentencePiece model: all ways to make a token, in the order of its score."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=420, special_tokens=[*SPECIAL, *BYTES]))
    model = json.loads(trained.to_str())["model"]
    learned, vocab = [left + right for left, right in model["merges"]], model["vocab"]
    ways = [(t[:cut], t[cut:]) for t in dict.fromkeys(learned) for cut in range(1, len(t))]
    merges = [[left, right] for left, right in ways if left in vocab and right in vocab]
    return {**model, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "merges": merges}


def _unigram() -> dict[str, Any]:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=list(SPECIAL), unk_token="<unk>")
    trained.train_from_iterator(CORPUS * 3, trainer)
    vocab = json.loads(trained.to_str())["model"]["vocab"]
    return {"type": "Unigram", "unk_id": 0, "vocab": [*vocab[:3], *([b, 0.0] for b in BYTES), *vocab[3:]],
            "byte_fallback": True}  # fmt: skip


def write_checkpoint(folder: Path, form: str, model: str = "BPE", **config: Any) -> Path:
    """A small LLaVA with random weights, a Llama decoder and such a tokenizer; `config` is of tokenizer_config.json."""
    content = tokenizer(form, model)
    first = len(content["model"]["vocab"])
    text = {"model_type": "llama", "vocab_size": first + 64, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": first + 1}  # fmt: skip
    base = TINY / "llava"
    changes = {"text_config": text, "image_token_index": first, "tie_word_embeddings": False}
    llava.write_checkpoint(base, folder, changes)
    llava.edit(folder / "config.json", eos_token_id=2, bos_token_id=1, pad_token_id=first + 1)
    llava.write_json(folder / "tokenizer.json", content)
    llava.write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    (folder / "special_tokens_map.json").unlink()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    llava.write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False,
        "processor_class": "LlavaProcessor", "image_token": "<image>", **named, **config})  # fmt: skip
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
