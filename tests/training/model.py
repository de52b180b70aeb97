"""The tiny model's shape (architecture qwen3_vl, with every part of the real one) and its checkpoint folder."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from tests.training.hugging_face import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from tests.training.tokenizer import build_tokenizer, save_tokenizer

TEXT_WIDTH, TAPS = 128, 2
TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": TEXT_WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [6, 5, 5],
        "rope_theta": 10000.0,
        "rope_type": "default",
    },
    "tie_word_embeddings": True,
    "use_cache": True,
}
VISION = {
    "deepstack_visual_indexes": [1, 3],
    "depth": 5,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 128,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "num_heads": 4,
    "num_position_embeddings": 256,
    "out_hidden_size": TEXT_WIDTH,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
PROCESSOR = {
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}
IMAGE_PIXELS = {"longest_edge": 65536, "shortest_edge": 1024}  # pictures of 32 to 256 pixels a side keep their size
VIDEO_PIXELS = {"longest_edge": 262144, "shortest_edge": 1024}


def tiny_config(tokenizer: Tokenizer) -> Qwen3VLConfig:
    """The configuration, with the token ids of the tokenizer."""
    names = ("endoftext", "im_end", "image_pad", "video_pad", "vision_start", "vision_end")
    ids: dict[str, Any] = {name: tokenizer.token_to_id(f"<|{name}|>") for name in names}
    end, turn_end = ids["endoftext"], ids["im_end"]
    return Qwen3VLConfig(
        text_config={**TEXT, "bos_token_id": end, "eos_token_id": turn_end, "vocab_size": tokenizer.get_vocab_size()},
        vision_config=dict(VISION),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )


def new_model(seed: int) -> tuple[Qwen3VLForConditionalGeneration, Tokenizer]:
    """An untrained model in float32 and its tokenizer.

    Its attention is written out ("eager"): fused attention on the CPU is slow backward in bfloat16.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = tiny_config(tokenizer)
    config._attn_implementation = "eager"
    model = Qwen3VLForConditionalGeneration(config)
    for module in model.modules():  # torch's own default for a convolution is a third of what trains fast here
        if isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, std=0.04)
    return model, tokenizer


def save_checkpoint(model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, template: str, folder: Path) -> None:
    """Writes the whole folder in float16."""
    half: Any = Qwen3VLForConditionalGeneration(model.config)
    half = half.half()
    half.load_state_dict(model.state_dict())
    half.config.dtype = torch.float16
    with replacing(folder) as building:
        half.save_pretrained(building)
        write_json(building / "config.json", _published_config(half.config))
        save_tokenizer(tokenizer, building)
        (building / "chat_template.jinja").write_text(template, encoding="utf-8")
        write_json(building / "generation_config.json", generation_config(tokenizer))
        save_processor(building)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside the named one that takes its place at the end, so that nobody reads half a checkpoint."""
    building = folder.with_name(folder.name + ".new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    yield building
    (building / "model.safetensors").chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def save_processor(folder: Path) -> None:
    """Writes the settings of Qwen3-VL's picture and video processors."""
    image = {"size": IMAGE_PIXELS, **PROCESSOR, "image_processor_type": "Qwen2VLImageProcessorFast"}
    video = {"size": VIDEO_PIXELS, **PROCESSOR, "video_processor_type": "Qwen3VLVideoProcessor"}
    write_json(folder / "preprocessor_config.json", image)
    write_json(folder / "video_preprocessor_config.json", video)


def _published_config(config: Qwen3VLConfig) -> dict[str, object]:
    """`config.json` with the fields of the published Qwen3-VL, which transformers 4 and 5 both read."""
    content: dict[str, Any] = config.to_diff_dict()
    text, vision = content["text_config"], content["vision_config"]
    rope = dict(text.pop("rope_parameters"))
    text |= {"dtype": "float16", "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    text.pop("pad_token_id", None)
    vision.pop("rope_parameters", None)
    content["text_config"], content["vision_config"] = dict(sorted(text.items())), dict(sorted(vision.items()))
    return {"architectures": ["Qwen3VLForConditionalGeneration"], **dict(sorted(content.items()))}


def generation_config(tokenizer: Tokenizer) -> dict[str, object]:
    """The contents of `generation_config.json`: both tokens that end a turn."""
    end, turn_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    return {"bos_token_id": end, "do_sample": False, "eos_token_id": [turn_end, end], "pad_token_id": end}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a configuration file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
