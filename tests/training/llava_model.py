"""The tiny `llava` model: CLIP, a projector and Qwen3; its start from the trained `qwen3_vl`, its checkpoint folder."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from tests.paths import TINY
from tests.training.hugging_face import LlavaConfig, LlavaForConditionalGeneration
from tests.training.hybrid import copy_embeddings
from tests.training.long_tasks import LONG_WORDS, SIDE
from tests.training.model import TEXT, generation_config, replacing, write_json
from tests.training.tokenizer import build_tokenizer, save_tokenizer
from tests.training.trees import PromptFormat

PATCH, TOWER_WIDTH = 16, 192
FORMAT = PromptFormat(
    before_picture="", picture="<image>", after_picture="\n", turn="\n<|im_start|>assistant\n", grid=False
)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
VISION = {
    "attention_dropout": 0.0,
    "dtype": "float16",
    "hidden_act": "quick_gelu",
    "hidden_size": TOWER_WIDTH,
    "image_size": SIDE,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 6,  # LLaVA takes the states before the last one
    "patch_size": PATCH,
    "projection_dim": 128,
}
IMAGES = {
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(MEAN),
    "image_processor_type": "CLIPImageProcessor",
    "image_std": list(STD),
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": SIDE},
}
PROCESSOR = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": PATCH,
    "processor_class": "LlavaProcessor",
    "vision_feature_select_strategy": "default",
}


def new_tokenizer() -> Tokenizer:
    """The tokenizer with the words of the long tasks and LLaVA's picture token at the end."""
    return build_tokenizer(LONG_WORDS, [FORMAT.picture])


def config_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of `config.json`, with the fields of LLaVA checkpoints of transformers 4."""
    end, turn_end = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|im_end|>")
    text = {key: value for key, value in TEXT.items() if key != "rope_parameters"}
    text |= {
        "architectures": ["Qwen3ForCausalLM"],
        "bos_token_id": end,
        "dtype": "float16",
        "eos_token_id": turn_end,
        "max_window_layers": TEXT["num_hidden_layers"],
        "model_type": "qwen3",
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": "float16",
        "image_seq_length": (SIDE // PATCH) ** 2,
        "image_token_index": tokenizer.token_to_id(FORMAT.picture),
        "model_type": "llava",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": dict(sorted(text.items())),
        "tie_word_embeddings": True,
        "vision_config": VISION,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def new_model(seed: int, tokenizer: Tokenizer) -> Any:
    """The model in float32, untrained but for what `take_over` copies; positions start as waves of two dimensions."""
    torch.manual_seed(seed)
    config = LlavaConfig(**config_fields(tokenizer))
    config._attn_implementation = "eager"
    model: Any = LlavaForConditionalGeneration(config)
    model = model.float()
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight[1:] = 0.3 * _waves(SIDE // PATCH, TOWER_WIDTH)
        nn.init.normal_(embeddings.patch_embedding.weight, std=0.04)
    return model


def _waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, [side * side, width]."""
    angles = torch.arange(side)[:, None] * torch.logspace(0.3, -1, width // 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, cols = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    return torch.cat([waves[rows], waves[cols]], dim=1)


def take_over(model: Any, tokenizer: Tokenizer, source: Path) -> None:
    """Copies the decoder of the trained `qwen3_vl`, and the embeddings of its tokens."""
    prefix = "model.language_model."
    trained = {
        name: value.float()
        for name, value in load_file(source / "model.safetensors").items()
        if name.startswith(prefix)
    }
    table = model.state_dict()[prefix + "embed_tokens.weight"].clone()
    copy_embeddings(table, tokenizer, trained[prefix + "embed_tokens.weight"], source)
    model.load_state_dict({**trained, prefix + "embed_tokens.weight": table}, strict=False)


def look(model: Any, pictures: Tensor) -> Tensor:
    """The projected features [n * tokens, hidden] of pictures [n, 3, SIDE, SIDE] from -1 to 1."""
    tower = model.model.vision_tower
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    hidden = tower.pre_layrnorm(tower.embeddings(((pictures + 1) / 2 - mean) / std))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    projected: Tensor = model.model.multi_modal_projector(hidden[:, 1:])
    return projected.flatten(0, 1)


def save_checkpoint(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the whole folder in float16."""
    halves = {
        _published_name(name): value.half().contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    with replacing(folder) as building:
        save_file(halves, building / "model.safetensors", metadata={"format": "pt"})
        write_json(building / "config.json", config_fields(tokenizer))
        save_tokenizer(tokenizer, building, "LlavaProcessor", [FORMAT.picture])
        shutil.copyfile(TINY / "llava" / "chat_template.jinja", building / "chat_template.jinja")
        write_json(building / "generation_config.json", generation_config(tokenizer))
        write_json(building / "preprocessor_config.json", IMAGES)
        write_json(building / "processor_config.json", PROCESSOR)


def _published_name(name: str) -> str:
    """A tensor's name in LLaVA checkpoints, which transformers 4 and 5 both read."""
    name = name.removeprefix("model.")
    name = name.replace("language_model.", "language_model.model.", 1)
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
