"""Builds the byte-level BPE tokenizer: the structure of Qwen3's, small, with every word of the tasks as one token."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from tests.training.drawing import COLOURS, SHAPES, WORDS
from tests.training.scenes import NUMBERS, PLACES, PLURALS

# fmt: off
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)
ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)
# fmt: on
PROMPT_WORDS = (  # of prompts and short answers
    "user assistant system What word is written Read all the words colour How many shapes are there Where is Is or of "
    "left right above below List Which picture has more Do both pictures show a Copy first second yes no"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_WITH_MARKS = SPLIT.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"\s\p{L}\p{N}", r"\s\p{L}\p{M}\p{N}"
)  # Qwen3.5's
SPACE = "Ġ"  # a space in ByteLevel's alphabet


def task_words() -> list[str]:
    """Every word that a prompt or an answer of the tasks can hold, each once."""
    places = " ".join(" ".join(row) for row in PLACES).split()
    return list(dict.fromkeys([*WORDS, *COLOURS, *SHAPES, *PLURALS.values(), *NUMBERS, *places, *PROMPT_WORDS.split()]))


def build_tokenizer(
    extra_words: Sequence[str] = (), extra_special: Sequence[str] = (), split: str = SPLIT
) -> Tokenizer:
    """Letters merge into words as trained on the words alone; a last merge each puts a space before the word."""
    words = list(dict.fromkeys([*task_words(), *extra_words]))
    trained = _empty_tokenizer()
    trainer = BpeTrainer(  # type: ignore[call-arg, unused-ignore]
        vocab_size=5000, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    trained.train_from_iterator(words, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary, merges = dict(model["vocab"]), [(left, right) for left, right in model["merges"]]
    for word in words:
        if word in vocabulary:  # a one-letter word, too, is in the alphabet
            merges.append((SPACE, word))
            vocabulary.setdefault(SPACE + word, len(vocabulary))
    tokenizer = _empty_tokenizer(BPE(vocab=vocabulary, merges=merges), split)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ADDED])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in extra_special])
    return tokenizer


def _empty_tokenizer(model: BPE | None = None, split: str = SPLIT) -> Tokenizer:
    tokenizer = Tokenizer(model or BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tokenizer_config(tokenizer: Tokenizer, processor: str, extra_special: Sequence[str]) -> dict[str, object]:
    """The contents of `tokenizer_config.json`, with the fields of the real Qwen3-VL."""
    special = (*SPECIAL, *extra_special)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(tokenizer.token_to_id(token)): {"content": token, **flags, "special": token in special}
        for token in (*SPECIAL, *ADDED, *extra_special)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(special[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "processor_class": processor,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def save_tokenizer(
    tokenizer: Tokenizer, folder: Path, processor: str = "Qwen3VLProcessor", extra_special: Sequence[str] = ()
) -> None:
    """Writes the tokenizer's three files."""
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {
        "additional_special_tokens": [*SPECIAL[1:], *extra_special],
        "eos_token": {"content": "<|im_end|>", **flags},
        "pad_token": {"content": "<|endoftext|>", **flags},
    }
    for name, content in (
        ("tokenizer_config", tokenizer_config(tokenizer, processor, extra_special)),
        ("special_tokens_map", special),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
