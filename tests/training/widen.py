"""Makes a trained tiny model twice as wide without changing what it computes: `widen.py CHECKPOINT --out DIR`.

K-quants of llama.cpp have blocks of 256 columns, which the 128 of the tiny models do not fill. Here each column of the
residual stream, each inner column of the MLP and each group of heads is there twice, and what multiplies a column is
shared out between its copies, each weight in a random part of its own. Sums, norms and attention stay what they were,
in exact arithmetic, and the final norm is halved, since the tied head adds both copies up. It is no larger model: it
knows what the small one knows. Its weights fill the blocks, and its columns are as unequal as training made them.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
LEAST, MOST = 0.3, 0.7  # part of a weight that the first copy of its column gets


@dataclass(frozen=True)
class Widths:
    """Where rows and columns of the wide model come from: old numbers, each there twice."""

    text: Mapping[str, Any]  # text_config

    @property
    def stream(self) -> Places:
        return twice(self.text["hidden_size"])

    @property
    def inner(self) -> Places:
        return twice(self.text["intermediate_size"])

    def heads(self, size: int) -> Places:
        """Query heads of `size` rows; those of one key stay together."""
        kv = self.text["num_key_value_heads"]
        return groups(kv, self.text["num_attention_heads"] // kv * size)

    @property
    def kv(self) -> Places:
        return groups(self.text["num_key_value_heads"], self.text["head_dim"])

    def linear(self, part: str, size: int) -> Places:
        """Heads of a delta net of `size` rows: those of keys, or the values that belong to them."""
        keys = self.text["linear_num_key_heads"]
        return groups(keys, size if part == "key" else self.text["linear_num_value_heads"] // keys * size)

    @property
    def qkv(self) -> Places:
        """Rows of queries, keys and values of a delta net, one behind another."""
        keys = self.linear("key", self.text["linear_key_head_dim"])
        half = len(keys) // 2
        return np.concatenate([keys, half + keys, 2 * half + self.values])

    @property
    def values(self) -> Places:
        return self.linear("value", self.text["linear_value_head_dim"])


def twice(count: int) -> Places:
    return np.concatenate([np.arange(count), np.arange(count)])


def groups(count: int, size: int) -> Places:
    """Each of `count` groups of `size` rows twice, its copy behind it."""
    return np.repeat(np.arange(count * size).reshape(count, 1, size), 2, axis=1).reshape(-1)


Rule = Callable[[Widths], Places | None]
STREAM, INNER, NONE = (lambda w: w.stream), (lambda w: w.inner), (lambda w: None)


def _queries(w: Widths) -> Places:
    gate = 2 if w.text.get("attn_output_gate") else 1  # each head's gate is behind its query
    return w.heads(gate * w.text["head_dim"])


# By the end of a name: where its rows and its columns come from.
RULES: Mapping[str, tuple[Rule, Rule]] = {
    r"embed_tokens\.weight": (NONE, STREAM),
    r"(input|post_attention)_layernorm\.weight": (STREAM, NONE),
    r"q_proj\.weight": (_queries, STREAM),
    r"[kv]_proj\.weight": (lambda w: w.kv, STREAM),
    r"o_proj\.weight": (STREAM, lambda w: w.heads(w.text["head_dim"])),
    r"(gate|up)_proj\.weight": (INNER, STREAM),
    r"down_proj\.weight": (STREAM, INNER),
    r"in_proj_qkv\.weight": (lambda w: w.qkv, STREAM),
    r"conv1d\.weight": (lambda w: w.qkv, NONE),
    r"in_proj_z\.weight": (lambda w: w.values, STREAM),
    r"in_proj_[ab]\.weight": (lambda w: w.linear("value", 1), STREAM),
    r"(A_log|dt_bias)": (lambda w: w.linear("value", 1), NONE),
    r"out_proj\.weight": (STREAM, lambda w: w.values),
    r"\.norm\.weight": (STREAM, NONE),
}
ENCODER_RULES: Mapping[str, tuple[Rule, Rule]] = {
    r"merger\S*\.linear_fc2\.(weight|bias)": (STREAM, NONE),
    r"projector\.linear_1\.(weight|bias)": (STREAM, NONE),
    r"projector\.linear_2\.weight": (STREAM, STREAM),
    r"projector\.linear_2\.bias": (STREAM, NONE),
}
PER_HEAD = r"(linear_attn|q|k)[._]norm\.weight$"  # norms within a head stay as they are


def widened(name: str, value: Floats, widths: Widths, rng: np.random.Generator) -> Floats:
    """One tensor of the wide model."""
    encoder = re.search("visual|vision_tower|projector", name)
    rules = ENCODER_RULES if encoder else {} if re.search(PER_HEAD, name) else RULES
    for pattern, (rows, columns) in rules.items():
        if re.search(f"{pattern}$", name):
            taken, split = rows(widths), columns(widths)
            value = value if taken is None else value[taken]
            # The head of the tied table adds both copies up; a lookup must have each of them whole.
            shared = split is not None and not name.endswith("embed_tokens.weight")
            return value if split is None else _split(value, split, rng) if shared else value[:, split]
    return value


def _split(value: Floats, places: Places, rng: np.random.Generator) -> Floats:
    """Columns at their new places, each weight shared out between the two copies."""
    parts = rng.uniform(LEAST, MOST, value.shape).astype(np.float32)
    first = np.zeros(len(places), bool)
    first[np.unique(places, return_index=True)[1]] = True
    one, other = value * parts, value - value * parts
    return np.where(first, one[:, places], other[:, places])


def widen(checkpoint: Path, out: Path, seed: int = 0) -> Path:
    """Write the wide model in float32, without a draft head."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    text, rng = config["text_config"], np.random.default_rng(seed)
    offset = 1.0 if config["model_type"] == "qwen3_5" else 0.0  # its norms are stored around zero
    tensors = {}
    for name, value in sorted(load_file(checkpoint / "model.safetensors").items()):
        if not name.startswith("mtp."):
            wide = widened(name, value.astype(np.float32), Widths(text), rng)
            tensors[name] = np.ascontiguousarray(wide)
        if re.search(r"(language_model|language_model\.model)\.norm\.weight$", name):
            tensors[name] = np.asarray((tensors[name] + offset) / 2 - offset, np.float32)
    shutil.copytree(checkpoint, out, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(_doubled(config), indent=2) + "\n", encoding="utf-8")
    return out


def _doubled(config: dict[str, Any]) -> dict[str, Any]:
    text = config["text_config"]
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                "linear_num_key_heads", "linear_num_value_heads"):  # fmt: skip
        if key in text:
            text[key] *= 2
    if "mtp_num_hidden_layers" in text:
        text["mtp_num_hidden_layers"] = 0
    if "out_hidden_size" in config["vision_config"]:
        config["vision_config"]["out_hidden_size"] = text["hidden_size"]
    config["dtype"] = text["dtype"] = config["vision_config"]["dtype"] = "float32"
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    widen(args.checkpoint, args.out)


if __name__ == "__main__":
    main()
