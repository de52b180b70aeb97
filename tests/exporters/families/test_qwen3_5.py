"""Qwen3.5, whose decoder has recurrent states: bundles equal PyTorch at every step, and no wrong state is reused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from lensmith.exporters.checkpoint.folder import open_checkpoint
from lensmith.exporters.comparing.runners import continued
from lensmith.exporters.families.qwen3_5.draft_reference import DraftReference
from lensmith.exporters.families.qwen_configs import PREFIXES
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.planning.planned_bundle import make_plan
from lensmith.exporters.storage.sizes import components
from lensmith.runtimes.engines.contract import Step
from lensmith.runtimes.evidence.replay import relative_error
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.prompt.positions import text_positions
from lensmith.runtimes.prompt.prompt_parts import Prompt
from lensmith.runtimes.prompt.requests import Request, user_message
from lensmith.targets.errors import InputError
from safetensors.numpy import load_file, save_file

from tests.helpers import ladder
from tests.helpers.extras import inside, latest
from tests.helpers.ladder import (
    CONVERSATIONS,
    IMAGES,
    Ladder,
    Pair,
    compile_pair,
    dequantize_weights,
    step_logits,
    worst,
)
from tests.helpers.mtp_reference import assert_drafts

# Errors are the largest difference relative to the largest magnitude. Both sides compute in float32. Measured are 2e-6
# for features, 1.4e-5 for logits, most of it PyTorch's own: its kernels for one token and for many differ by as much.
FEATURES = 2e-5
LOGITS = 5e-5
# Of one layer's states: sums of as many terms as there are tokens, in another order. Measured are 4e-6. A query or key
# that is not normalized, or a decay without its bias, is off by 0.1 and more.
STATES = 2e-5
# The same positions in other chunks: kernels for one row and for many sum in another order. Measured are 4e-7.
CHUNKED = 1e-5
# Dequantized weights in PyTorch against MatMulNBits, which multiplies by the scale after the sum over a group.
DEQUANTIZED = 5e-5
LENGTHS = (1, 2, 3, 4, 63, 64, 65, 200)  # below, at and above the taps of the convolution and PyTorch's chunks


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More value heads than key heads, as in the model of 4 billion parameters."""
    return ladder.tiny(tmp_path_factory.mktemp("hybrid") / "tiny", "nemotron-4b")


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    ladder.need_torch()
    return compile_pair(base, tmp_path_factory.mktemp("bundle") / "fp32")


def random_text(length: int, seed: int = 0) -> Request:
    """Any tokens that stand for text; a longer one begins with a shorter one."""
    ids = np.random.default_rng(seed).integers(0, 2000, length)
    nothing = np.zeros((0, 2), np.int64), np.zeros((0, 3), np.int64), np.zeros(0, np.bool_)
    return Request(Prompt(ids, *nothing), text_positions(length, 0), length, ())


class TestLadder(Ladder):
    FEATURES, LOGITS, CHUNKED = FEATURES, LOGITS, CHUNKED


@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_lengths(pair: Pair, length: int) -> None:
    request = random_text(length)
    logits = pair.model.prefill(request, num_logits=length, reuse=False)
    assert relative_error(logits, pair.reference.start(request, 0)) < LOGITS
    assert worst(latest(pair.model).states.copies(), pair.reference.recurrent_states()) < STATES


def test_500_steps(pair: Pair) -> None:
    """One token at a time behind a prompt with an image: the same tokens, and no error that grows."""
    messages, steps = CONVERSATIONS["one image"], 500
    logits = pair.reference.start(pair.theirs(messages))
    request = pair.model.prepare(messages)
    ours = pair.model.prefill(request, reuse=False)
    errors = []
    for step in range(steps):
        errors.append(relative_error(ours[-1], logits[-1]))
        token = int(logits[-1].argmax())
        assert int(ours[-1].argmax()) == token
        logits = pair.reference.step(token)
        ours = latest(pair.model).run(Step(np.array([token]), text_positions(1, request.next_position + step)))
    assert max(errors) < LOGITS
    assert worst(latest(pair.model).states.copies(), pair.reference.recurrent_states()) < STATES
    pair.model.forget()


def test_a_second_turn_reuses_states(pair: Pair) -> None:
    """From the copy behind the first turn, since the template renders the answer otherwise than it was generated."""
    model, turns = pair.model, CONVERSATIONS["two turns"]
    model.generate(turns[:1], GenerationOptions(max_new_tokens=4, ignore_eos=True)).read()
    request = model.prepare(turns)
    start = latest(model).start(request)
    assert start >= int(request.prompt.image_spans[0][1])  # the first image is not computed again
    answer = model.generate(turns, GenerationOptions(max_new_tokens=4, ignore_eos=True))
    answer.read()
    assert answer.timings.reused_tokens == start
    reused, states = model.prefill(request).copy(), latest(model).states.copies()
    whole = model.prefill(request, reuse=False)
    assert relative_error(reused, whole) < CHUNKED
    assert worst(states, latest(model).states.copies()) < CHUNKED


def test_another_question_about_the_same_image(pair: Pair) -> None:
    model = pair.model
    first, second, other = (
        [user_message(text, [image])]
        for text, image in (("What?", IMAGES[0]), ("Where?", IMAGES[0]), ("What?", IMAGES[4]))
    )
    model.prefill(model.prepare(first), reuse=False)
    request = model.prepare(second)
    assert latest(model).start(request) == int(request.prompt.image_spans[0][1])
    reused = model.prefill(request).copy()
    assert relative_error(reused, model.prefill(request, reuse=False)) < CHUNKED
    assert latest(model).start(model.prepare(other)) == 0


def test_states_without_a_copy_are_not_reused(pair: Pair) -> None:
    """Going back to where nothing was saved means starting from nothing, with the same result."""
    model, request, other = pair.model, random_text(40), random_text(63, seed=1)
    expected = model.prefill(request, reuse=False).copy()
    model.prefill(random_text(63), reuse=False)
    assert latest(model).reusable(request) == 40
    assert latest(model).start(request) == 0
    assert np.array_equal(model.prefill(request), expected)
    model.prefill(other, reuse=False)
    assert latest(model).rewind(30) == 0
    assert not any(state.any() for state in latest(model).states.copies().values())
    assert np.array_equal(model.prefill(request), expected)


def test_a_failed_step_leaves_nothing_to_reuse(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """States are a step ahead when the interrupt comes behind it."""
    model, request = pair.model, random_text(40)
    expected = model.prefill(request, reuse=False).copy()
    real = inside(model.decoder)._few  # what steps of a few tokens run in

    def interrupted(binding: Any) -> None:
        real.run_with_iobinding(binding)
        raise KeyboardInterrupt

    session = SimpleNamespace(run_with_iobinding=interrupted, io_binding=real.io_binding)
    monkeypatch.setattr(model.decoder, "_few", session)
    with pytest.raises(KeyboardInterrupt):
        latest(model).run(Step(np.array([3]), text_positions(1, 40)))
    monkeypatch.undo()
    assert latest(model).length == 0
    assert np.array_equal(model.prefill(request), expected)


VARIANTS: dict[str, dict[str, Any]] = {
    "untied head": {"tie_word_embeddings": False},
    "as many key heads as value heads": {"text_config": {"linear_num_key_heads": 4}},
    "other head sizes": {"text_config": {"linear_key_head_dim": 64, "linear_value_head_dim": 32,
                         "linear_num_value_heads": 6, "num_key_value_heads": 1}},
    "no multi-token prediction": {"text_config": {"mtp_num_hidden_layers": 0}},
    "every second layer": {"text_config": {"full_attention_interval": 2, "num_hidden_layers": 6, "layer_types":
                           ["linear_attention", "full_attention"] * 3}},
    "a linear layer last": {"text_config": {"layer_types": ["full_attention"] + ["linear_attention"] * 3}},
    "full attention alone": {"text_config": {"layer_types": ["full_attention"] * 4}},
    "two taps": {"text_config": {"linear_conv_kernel_dim": 2}},
    "half of a head turns": {"text_config": {"rope_parameters": {"mrope_interleaved": True, "rope_type": "default",
                             "mrope_section": [24, 20, 20], "rope_theta": 100000, "partial_rotary_factor": 0.5}}},
    "single patches": {"vision_config": {"spatial_merge_size": 1}},
    "attention bias": {"text_config": {"attention_bias": True}},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, base: Path, tmp_path: Path) -> None:
    ladder.need_torch()
    pair = compile_pair(ladder.variant(base, tmp_path / "source", VARIANTS[name]), tmp_path / "bundle")
    errors = pair.worst_error(IMAGES[:1], CONVERSATIONS["two turns"])
    assert errors.pop("logits") < LOGITS
    assert max(errors.values()) < FEATURES
    ours = np.stack(list(step_logits(pair.model, CONVERSATIONS["one image"], [5, 6, 7])))
    pair.reference.start(pair.theirs(CONVERSATIONS["one image"]))
    theirs = [pair.reference.step(token)[-1] for token in (5, 6)]
    assert relative_error(ours[1:], np.stack(theirs)) < LOGITS


@pytest.mark.parametrize(
    ("precision", "changes", "options"),
    [
        ("int8", {}, {}),
        ("int4", {}, {"group_size": 32}),
        ("int4", {"tie_word_embeddings": False}, {"symmetric": False}),
    ],
)
def test_packed_weights_are_what_they_stand_for(
    precision: str, changes: Any, options: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ladder.need_torch()
    ladder.exact_kernels(monkeypatch)
    source = ladder.variant(base, tmp_path / "source", {"text_config": {"mtp_num_hidden_layers": 0}, **changes})
    pair = compile_pair(source, tmp_path / "bundle", precision=precision, kv_cache="float", **options)
    dequantize_weights(pair)
    assert pair.worst_error(IMAGES[:1], CONVERSATIONS["one image"])["logits"] < DEQUANTIZED


def test_gates_and_norms_are_never_quantized(base: Path) -> None:
    job = prepare(base, Options(precision="int4"))
    bits = {s.name: 32 if s.matrix is None else s.matrix.scheme.bits for graph in job.graphs for s in graph.sources}
    sensitive = ("in_proj_a.weight", "in_proj_b.weight", "conv1d.weight", "A_log", "dt_bias", "norm.weight")
    assert {bits[name] for name in bits if name.endswith(sensitive) and ".merger." not in name} == {32}
    assert bits["model.language_model.layers.0.linear_attn.in_proj_qkv.weight"] == 4


def test_the_head_predicts_as_in_pytorch(pair: Pair) -> None:
    """Logits and hidden states of multi-token prediction over a prompt with images, in chunks."""
    assert_drafts(pair.model, DraftReference(pair.reference), pair.theirs(CONVERSATIONS["two turns"]), LOGITS)


def test_drafts(pair: Pair) -> None:
    """From the decoder's own hidden states: what PyTorch's head says of the prompt with the guesses behind it."""
    messages, reference = CONVERSATIONS["one image"], DraftReference(pair.reference)
    head, request, theirs = pair.model.open_draft_head(), pair.model.prepare(messages), pair.theirs(messages)
    hidden = reference.hidden_states(theirs)
    logits = pair.model.prefill(request, chunk=50, reuse=False, head=head)  # the head reads all of it
    known = latest(pair.model).hidden_states[-1:]
    assert relative_error(logits, pair.reference.logits(theirs, 1)) < LOGITS
    assert relative_error(known, hidden[0, -1:].numpy()) < LOGITS
    guesses = [int(logits[-1].argmax())]
    drafts = head.draft(np.array(guesses), request.next_position, known, 3)
    assert head.states.length == len(request.prompt)
    for _ in drafts:
        theirs = continued(theirs, np.array(guesses[-1:]))
        made, states = reference.logits(theirs, hidden)
        guesses.append(int(made[-1].argmax()))
        hidden = pair.reference.torch.cat([hidden, pair.reference.torch.from_numpy(states[None, -1:])], dim=1)
    assert drafts == guesses[1:]


def test_embedding_and_head_stand_once(base: Path, tmp_path: Path) -> None:
    """Two graphs point at the same bytes of one file."""
    for tied in (True, False):
        source = ladder.variant(base, tmp_path / f"source{tied}", {"tie_word_embeddings": tied})
        bundle = compile_pair(source, tmp_path / f"bundle{tied}", precision="int4").model.bundle
        places = {name: external_places(bundle.graph(name)) for name in ("decoder", "mtp")}
        shared = {name: place for name, place in places["mtp"].items() if place[0] == "decoder.data"}
        assert any(name.startswith("embed_tokens") for name in shared)
        assert any(name.startswith("lm_head") for name in shared) != tied
        assert all(places["decoder"][name] == place for name, place in shared.items())
        assert bundle.file("mtp.data").stat().st_size < bundle.file("decoder.data").stat().st_size / 2


def external_places(path: Path) -> dict[str, tuple[str, int | None]]:
    """File and offset of each initializer outside the graph."""
    values = ((name, value.const_value) for name, value in ir.load(path).graph.initializers.items())
    return {name: (str(t.location), t.offset) for name, t in values if isinstance(t, ir.ExternalTensor)}


def test_weights_without_the_head_they_announce(base: Path, tmp_path: Path) -> None:
    """What fine-tuning with transformers leaves."""
    source = ladder.variant(base, tmp_path / "source", {})
    tensors = load_file(source / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith("mtp.")}
    save_file(kept, source / "model.safetensors")
    job = prepare(source, Options())
    assert [graph.name for graph in job.graphs] == ["vision_encoder", "decoder"]
    assert not job.family.dropped(job.checkpoint, job.spec)
    assert "num_hidden_states" not in [value.name for value in job.graphs[1].model.graph.inputs]
    some = {name: value for name, value in tensors.items() if name != "mtp.fc.weight"}
    save_file(some, source / "model.safetensors")
    with pytest.raises(InputError, match=r"mtp\.fc\.weight"):
        prepare(source, Options())


def test_the_plan_counts_states(base: Path) -> None:
    plan = make_plan(prepare(base, Options()))
    assert plan.cache_bytes_per_token == 1 * 2 * 2 * 256 * 2  # full layers, key and value, heads, head size, float16
    convolution, memory = (2 * 2 * 128 + 4 * 128) * 3, 4 * 128 * 128
    assert plan.state_bytes == 3 * (convolution + memory) * 4


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "attn_output_gate", False),
        ("text_config", "mlp_only_layers", [1]),
        ("text_config", "mtp_num_hidden_layers", 2),
        ("text_config", "mtp_use_dedicated_embeddings", True),
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "layer_types", ["linear_attention"] * 3),
        ("text_config", "layer_types", ["sliding_attention"] * 4),
        ("text_config", "linear_num_value_heads", 3),
        ("text_config", "linear_conv_kernel_dim", 1),
        ("text_config", "rope_parameters", {"rope_type": "yarn"}),
        ("text_config", "rope_parameters", {"mrope_interleaved": False}),
        ("text_config", "rope_parameters", {"mrope_section": [1, 1, 1]}),
        ("vision_config", "deepstack_visual_indexes", [1]),
    ],
)
def test_unsupported_values_are_named(base: Path, tmp_path: Path, part: str, key: str, value: Any) -> None:
    config = json.loads((base / "config.json").read_text())
    merged = {**config[part][key], **value} if isinstance(value, dict) else value
    config[part][key] = merged
    for file in base.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    named = next(iter(value)) if isinstance(value, dict) else key
    with pytest.raises(InputError, match=named):
        prepare(tmp_path, Options())


def test_a_renamed_tensor_is_named_with_the_closest(base: Path, tmp_path: Path) -> None:
    source = ladder.variant(base, tmp_path / "source", {})
    tensors = load_file(source / "model.safetensors")
    tensors["model.language_model.layers.0.linear_attn.A_log2"] = tensors.pop(
        "model.language_model.layers.0.linear_attn.A_log"
    )
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=r"A_log'.*A_log2"):
        prepare(source, Options())


def test_the_head_reads_on_behind_a_reused_beginning(pair: Pair) -> None:
    """What it has of the beginning stays, but for the entry between the two parts, so it guesses nearly the same."""
    model, turns = pair.model, CONVERSATIONS["two turns"]
    head, request = model.open_draft_head(), model.prepare(turns)
    model.forget()
    model.prefill(model.prepare(turns[:1]), head=head)
    assert latest(model).start(request) > 0
    model.prefill(request, head=head)
    assert head.states.length == len(request.prompt) - 2


def test_sizes_count_tables_that_the_draft_head_borrows_once(base: Path, tmp_path: Path) -> None:
    bundle = export(prepare(base, Options(group_size=32)), tmp_path / "bundle", golden="never")
    parts = {part.name: part for part in components(bundle, open_checkpoint(base), PREFIXES)}
    assert all(part.bundle_bytes >= 0 for part in parts.values())
    table = parts["Embedding and output table"]
    assert table.bundle_bytes < 0.3 * table.source_bytes  # 4.5 bits instead of 16
    assert sum(part.bundle_bytes for part in parts.values()) == sum(p.stat().st_size for p in bundle.path.rglob("*.*"))
