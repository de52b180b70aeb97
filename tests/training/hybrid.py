"""The tiny `qwen3_5` model: its shape, its start from the trained `qwen3_vl`, its checkpoint folder."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from tests.paths import TINY
from tests.training.hugging_face import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from tests.training.long_tasks import LONG_WORDS
from tests.training.model import VISION, generation_config, replacing, save_processor, write_json
from tests.training.mtp import MtpHead
from tests.training.tokenizer import SPLIT_WITH_MARKS, build_tokenizer, save_tokenizer
from tests.training.trees import PromptFormat

WIDTH, LAYERS = 128, 8
FORMAT = PromptFormat(
    before_picture="<|vision_start|>",
    picture="<|image_pad|>",
    after_picture="<|vision_end|>",
    turn="\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    grid=True,
    thinking_turn="\n<|im_start|>assistant\n<think>\n",
)
TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_output_gate": True,
    "dtype": "float16",
    "full_attention_interval": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * (LAYERS // 4),
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 4096,
    "mlp_only_layers": [],
    "model_type": "qwen3_5_text",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [3, 3, 2],  # a quarter of a head: 16 features, 8 frequencies
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000.0,
        "rope_type": "default",
    },
    "tie_word_embeddings": True,
    "use_cache": True,
}
WIDE = ("linear_attn.A_log", "linear_attn.norm.weight")  # float32 in Qwen3.5's checkpoints


def new_tokenizer() -> Tokenizer:
    """The tokenizer with the words of the long tasks."""
    return build_tokenizer(LONG_WORDS, split=SPLIT_WITH_MARKS)


def config_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of `config.json`, with the fields of the published Qwen3.5."""
    names = ("endoftext", "im_end", "image_pad", "video_pad", "vision_start", "vision_end")
    ids: dict[str, Any] = {name: tokenizer.token_to_id(f"<|{name}|>") for name in names}
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "dtype": "float16",
        "image_token_id": ids["image_pad"],
        "model_type": "qwen3_5",
        "text_config": {**TEXT, "eos_token_id": ids["im_end"], "vocab_size": tokenizer.get_vocab_size()},
        "tie_word_embeddings": True,
        "video_token_id": ids["video_pad"],
        "vision_config": {**VISION, "deepstack_visual_indexes": [], "model_type": "qwen3_5"},
        "vision_end_token_id": ids["vision_end"],
        "vision_start_token_id": ids["vision_start"],
    }


def new_model(seed: int, tokenizer: Tokenizer) -> tuple[Any, MtpHead]:
    """The model and its MTP head in float32, untrained but for what `take_over` copies."""
    torch.manual_seed(seed)
    config = Qwen3_5Config(**config_fields(tokenizer))
    config._attn_implementation = "eager"
    model: Any = Qwen3_5ForConditionalGeneration(config)
    model = model.float()
    for name, module in model.named_modules():
        if name.endswith("linear_attn"):
            _remember_long(module)
    head = MtpHead(model.config.text_config)
    for parameter in head.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    return model, head


def _remember_long(net: Any) -> None:
    """Decays that keep 1 to 1000 tokens, as Mamba's; transformers' own forget the token before last."""
    heads = net.num_v_heads
    steps = torch.logspace(-3, -1, heads)
    with torch.no_grad():
        net.A_log.copy_(torch.linspace(1, 8, heads)[torch.randperm(heads)].log())
        net.dt_bias.copy_(steps + (-torch.expm1(-steps)).log())


def take_over(model: Any, tokenizer: Tokenizer, source: Path) -> None:
    """Copies what the trained `qwen3_vl` has in common: vision tower without DeepStack, embeddings, last norm."""
    trained = {name: value.float() for name, value in load_file(source / "model.safetensors").items()}
    own = model.state_dict()
    taken = {name: value for name, value in trained.items() if "visual" in name and name in own}
    taken["model.language_model.norm.weight"] = trained["model.language_model.norm.weight"] - 1  # 1 + w here
    table = own["model.language_model.embed_tokens.weight"].clone()
    copy_embeddings(table, tokenizer, trained["model.language_model.embed_tokens.weight"], source)
    taken["model.language_model.embed_tokens.weight"] = table
    model.load_state_dict(taken, strict=False)


def copy_embeddings(table: Tensor, tokenizer: Tokenizer, trained: Tensor, source: Path) -> None:
    """Copies the rows of tokens that the source's tokenizer has, too."""
    old = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab()
    for token, row in tokenizer.get_vocab().items():
        if token in old:
            table[row] = trained[old[token]]


def save_checkpoint(model: Any, head: MtpHead, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the whole folder in float16, but for what Qwen3.5 keeps in float32."""
    tensors = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    tensors |= {f"mtp.{name}": value for name, value in head.state_dict().items()}
    halves = {
        name: (value.float() if name.endswith(WIDE) else value.half()).contiguous() for name, value in tensors.items()
    }
    with replacing(folder) as building:
        save_file(halves, building / "model.safetensors", metadata={"format": "pt"})
        write_json(building / "config.json", config_fields(tokenizer))
        save_tokenizer(tokenizer, building)
        shutil.copyfile(TINY / "qwen3_5" / "chat_template.jinja", building / "chat_template.jinja")
        write_json(building / "generation_config.json", generation_config(tokenizer))
        save_processor(building)
