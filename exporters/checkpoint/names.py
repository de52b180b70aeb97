"""The names of tensors as transformers 5 has them, whatever wrote the checkpoint.

Versions of transformers, classes within a model (`AutoModel`) and wrappers of training put other words in front of the
same tensors. Rules say which, those that families share here; the rest of lensmith knows one name for each tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...targets.errors import InputError

Rules = tuple[tuple[str, str], ...]  # patterns at the start of a name, and what stands there instead; the first counts

# Of wrappers: peft in front of all, torch.compile and data parallelism anywhere.
PEFT = "base_model.model."
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|module)\.")
HEAD = (r"(?:model\.)*(?:language_model\.)?lm_head\.", "lm_head.")
TEXT = r"(?=embed_tokens\.|layers\.|norm\.)"  # what stands at the top of a decoder
MTP = (r"(?:model\.)*mtp\.", "mtp.")
LANGUAGE = (rf"(?:model\.)*language_model\.(?:model\.)?{TEXT}", "model.language_model.")
BARE_TEXT = (rf"(?:model\.)*{TEXT}", "model.language_model.")  # as Qwen2-VL had it
QWEN: Rules = (HEAD, MTP, (r"(?:model\.)*visual\.", "model.visual."), LANGUAGE, BARE_TEXT)


def canonical_names(names: Iterable[str], by: Rules) -> dict[str, str]:
    """The name of transformers 5 of each tensor of a checkpoint, by the rules of its family.

    InputError where two names mean the same tensor.
    """
    rules = [(re.compile(pattern), start) for pattern, start in by]
    found = {name: _canonical(name, rules) for name in names}
    owner: dict[str, str] = {}
    for name, meant in found.items():
        if meant in owner:
            raise InputError(
                f"the weights hold {meant!r} twice, as {owner[meant]!r} and as {name!r}; "
                "two checkpoints are mixed: remove one of them"
            )
        owner[meant] = name
    return found


def _canonical(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    if not rules:
        return name
    inner = WRAPPERS.sub("", name).removeprefix(PEFT)
    for pattern, start in rules:
        if match := pattern.match(inner):
            return start + inner[match.end() :]
    return inner
