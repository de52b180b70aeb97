"""Mutates one module and runs its tests on every mutant: python -m tests.mutation MODULE [TEST ...]

cosmic-ray (pip install cosmic-ray) makes the mutants, in a copy of the checkout, so that nothing here is touched.
Without TEST, the row of TESTS is taken. Prints the mutants that no test noticed, and their number.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.paths import ROOT

LEFT_OUT = (".git", ".venv", "build", "dist", ".mypy_cache", ".pytest_cache", ".ruff_cache", "__pycache__")
# The tests that concern a module, the quick ones: names of files, wherever they lie in tests/.
TESTS: dict[str, str] = {
    "calibration/solvers/budget.py": "test_calibration_budget",
    "calibration/solvers/cholesky.py": "test_calibration_methods -k 'cholesky or factor'",
    "calibration/solvers/descent.py": "test_calibration_methods -k descent",
    "calibration/solvers/gptq.py": "test_calibration_methods -k 'gptq or feedback'",
    "calibration/solvers/levels.py": "test_calibration_methods test_quantize",
    "calibration/solvers/inputs.py": "test_moments test_calibration_methods -k 'tics or seen or energy'",
    "calibration/solvers/kv_scales.py": "test_kv_cache -k 'scales or calibration or position or quantiles'",
    "calibration/solvers/output_error.py": "test_calibration_methods",
    "calibration/solvers/methods.py": "test_calibration_methods",
    "calibration/solvers/moments.py": "test_moments",
    "exporters/storage/packing.py": "test_packing",
    "calibration/solvers/retarget.py": "test_calibration_methods",
    "exporters/storage/rounding.py": "test_quantize",
    "calibration/solvers/search.py": "test_calibration_methods",
    "calibration/solvers/smoothing.py": "test_calibration_smoothing",
    "calibration/activation_roles.py": "test_int8_activations",
    "exporters/families/arlow/tower.py": "test_arlow",
    "exporters/families/arlow/grid.py": "test_arlow",
    "exporters/families/arlow/arlow_spec.py": "test_arlow_inputs test_idle_options",
    "exporters/graphs/blocks.py": "test_parity",
    "exporters/graphs/matrices.py": "test_packing test_parity",
    "exporters/graphs/patch_blocks.py": "test_parity",
    "calibration/samples/calibration_samples.py": "test_calibration_samples",
    "exporters/comparing/cases.py": "test_contenders test_compare",
    "exporters/checkpoint/folder.py": "test_checkpoint test_strange_configs",
    "cli/answering.py": "test_cli_passes test_cli_options test_cli",
    "cli/app.py": "test_cli_streams test_cli_errors",
    "cli/export.py": "test_cli_passes test_cli_tables test_cli",
    "cli/plan.py": "test_cli_passes test_cli_tables test_cli",
    "cli/inspect.py": "test_cli_passes test_cli_tables test_cli",
    "cli/encode.py": "test_arlow_bundle",
    "cli/build.py": "test_cli_passes",
    "cli/compare.py": "test_cli_passes test_cli -k 'arrives or compare'",
    "cli/option_types.py": "test_cli_screen",
    "cli/standard_streams.py": "test_cli_streams",
    "cli/talk.py": "test_cli_options test_cli",
    "cli/template_options.py": "test_cli_options",
    "exporters/comparing/comparison.py": "test_contenders test_compare test_outcomes",
    "exporters/comparing/contender.py": "test_contenders test_outcomes test_compare",
    "exporters/graphs/decoder.py": "test_parity test_llava",
    "exporters/graphs/decoder_layer.py": "test_parity test_llava",
    "exporters/evidence/constants.py": "test_constants",
    "exporters/graphs/delta_net.py": "test_qwen3_5",
    "exporters/checkpoint/depths.py": "test_strange_configs test_arlow_inputs",
    "exporters/formats/onnx/cuda_dialect.py": "test_cuda_dialect",
    "exporters/formats/gguf/gguf_files.py": "test_gguf test_gguf_quantizer",
    "exporters/formats/gguf/gguf_writing.py": "test_gguf test_gguf_quantizer",
    "exporters/formats/indexed_dialect.py": "test_cuda_dialect",
    "exporters/formats/onnx/ort.py": "test_parity test_packing",
    "exporters/formats/tensorrt/tensorrt_dialect.py": "test_tensorrt_dialect",
    "exporters/formats/tensorrt/tensorrt_attention.py": "test_tensorrt_dialect",
    "exporters/formats/tensorrt/tensorrt_delta.py": "test_tensorrt_dialect",
    "exporters/formats/tensorrt/tensorrt_weights.py": "test_tensorrt_weights test_tensorrt_dialect",
    "exporters/comparing/distributions.py": "test_compare",
    "exporters/families/qwen3_5/draft_reference.py": "test_qwen3_5 -k draft",
    "exporters/checkpoint/end_tokens.py": "test_end_tokens",
    "exporters/pipeline.py": "test_export test_idle_options",
    "exporters/evidence/float_twin.py": "test_proof",
    "exporters/formats/gguf/gguf_decoder.py": "test_gguf_types test_gguf",
    "exporters/families/qwen2_5_vl/qwen2_5_vl.py": "test_qwen2_5_vl",
    "exporters/families/qwen2_5_vl/qwen2_5_vl_gguf.py": "test_qwen2_5_vl test_gguf",
    "exporters/families/qwen2_5_vl/windowed_spec.py": "test_qwen2_5_vl",
    "exporters/families/qwen2_5_vl/windowed_tower.py": "test_qwen2_5_vl",
    "exporters/families/qwen2_vl/qwen2_vl.py": "test_qwen2_vl",
    "exporters/families/qwen2_vl/axial_spec.py": "test_qwen2_vl",
    "exporters/families/qwen2_vl/axial_tower.py": "test_qwen2_vl",
    "exporters/families/qwen3_vl/qwen3_vl_gguf.py": "test_gguf_types test_gguf",
    "exporters/families/qwen3_5/qwen3_5_gguf.py": "test_gguf_types test_gguf",
    "exporters/families/llava/llava_gguf.py": "test_gguf_types test_gguf test_gguf_llava",
    "exporters/families/qwen3_5/delta_net_order.py": "test_gguf_types test_gguf",
    "exporters/formats/gguf/file_types.py": "test_gguf_types",
    "exporters/formats/gguf/imatrix.py": "test_gguf_quantizer test_gguf_types",
    "calibration/importance.py": "test_gguf_quantizer",
    "exporters/formats/gguf/llama_quantizer.py": "test_gguf_quantizer test_gguf_types",
    "exporters/formats/gguf/tensors.py": "test_gguf_types test_gguf",
    "exporters/formats/gguf/gguf_vision.py": "test_gguf_types test_gguf test_gguf_llava",
    "exporters/formats/gguf/vocabulary.py": "test_gguf_types test_gguf_llava test_gguf",
    "exporters/formats/gguf/writer.py": "test_gguf test_gguf_llava",
    "exporters/formats/gguf/written_tensors.py": "test_written_tensors",
    "exporters/evidence/golden.py": "test_verify test_manifest",
    "exporters/evidence/recording.py": "test_verify test_manifest",
    "exporters/planning/golden_sizes.py": "test_plan_sizes",
    "exporters/graphs/graph_ports.py": "test_kv_cache test_parity",
    "exporters/checkpoint/heads.py": "test_heads",
    "exporters/checkpoint/hub.py": "test_hub",
    "exporters/graphs/kv_cache.py": "test_spec test_kv_cache -k 'spec or scales or refused'",
    "calibration/layerwise/activations.py": "test_int8_activations",
    "calibration/layerwise/head.py": "test_layerwise_head",
    "calibration/layerwise/judge.py": "test_judgement test_layerwise",
    "calibration/layerwise/matrix_outcomes.py": "test_layerwise_store",
    "calibration/layerwise/prepared_samples.py": "test_judgement test_own_answers",
    "calibration/layerwise/sensitivity.py": "test_sensitivity test_mixed_precision",
    "calibration/layerwise/shares.py": "test_judgement test_layerwise -k shares",
    "calibration/layerwise/shelf.py": "test_shelf",
    "calibration/layerwise/smoothed_pairs.py": "test_layerwise_smoothing",
    "calibration/layerwise/store.py": "test_layerwise_store test_shelf",
    "calibration/layerwise/streams.py": "test_layerwise test_layerwise_head",
    "exporters/checkpoint/layout.py": "test_checkpoint test_arlow_inputs test_lora",
    "exporters/checkpoint/lazy_tensors.py": "test_checkpoint",
    "exporters/families/llava/llava_sections.py": "test_prompt_sections test_llava",
    "exporters/checkpoint/lora/adapter.py": "test_lora",
    "exporters/checkpoint/lora/merge.py": "test_lora",
    "exporters/checkpoint/lora/settings.py": "test_lora",
    "calibration/mixed_precision.py": "test_mixed_precision",
    "exporters/families/arlow/description.py": "test_arlow_inputs test_arlow",
    "exporters/families/configs.py": "test_config_defaults test_strange_configs",
    "exporters/families/llava/llava.py": "test_config_defaults test_strange_configs test_llava",
    "exporters/families/qwen3_5/qwen3_5.py": "test_config_defaults test_strange_configs test_qwen3_5",
    "exporters/families/qwen3_vl/qwen3_vl.py": "test_config_defaults test_strange_configs test_parity",
    "exporters/families/qwen_configs.py": "test_config_defaults test_strange_configs",
    "exporters/families/text_decoders.py": "test_config_defaults test_llava",
    "exporters/graphs/draft_head.py": "test_qwen3_5",
    "exporters/checkpoint/names.py": "test_names test_text_only",
    "exporters/notes.py": "test_notes",
    "exporters/evidence/nudging.py": "test_self_replay",
    "exporters/comparing/tensor_outcomes.py": "test_outcomes",
    "calibration/samples/own_answers.py": "test_own_answers",
    "exporters/evidence/own_traces.py": "test_own_traces",
    "exporters/parts.py": "test_parts",
    "exporters/planning/planned_bundle.py": "test_plan test_plan_sizes",
    "exporters/storage/positioned.py": "test_positioned",
    "exporters/checkpoint/prequantized/awq_layout.py": "test_prequantized",
    "exporters/checkpoint/prequantized/bitsandbytes.py": "test_prequantized",
    "exporters/checkpoint/prequantized/compressed_tensors.py": "test_prequantized",
    "exporters/checkpoint/prequantized/declared.py": "test_prequantized",
    "exporters/checkpoint/prequantized/formats.py": "test_prequantized",
    "exporters/checkpoint/prequantized/gptq_layout.py": "test_prequantized",
    "exporters/checkpoint/prequantized/integers.py": "test_prequantized",
    "exporters/checkpoint/prequantized/kept.py": "test_prequantized",
    "exporters/checkpoint/prequantized/modules.py": "test_prequantized",
    "exporters/checkpoint/prequantized/scaled_floats.py": "test_prequantized",
    "exporters/checkpoint/processor_files.py": "test_places test_text_only",
    "exporters/families/prompts.py": "test_prompt_sections test_llava",
    "exporters/evidence/proof.py": "test_proof",
    "exporters/evidence/reference.py": "test_reference",
    "exporters/graphs/rope.py": "test_rope",
    "exporters/comparing/runners.py": "test_contenders test_compare",
    "exporters/checkpoint/safetensors_files.py": "test_checkpoint",
    "exporters/storage/scheme.py": "test_scheme",
    "exporters/evidence/self_replay.py": "test_self_replay test_verify_on_device",
    "exporters/storage/sizes.py": "test_plan_sizes",
    "exporters/checkpoint/source_weights.py": "test_checkpoint test_export",
    "exporters/spec.py": "test_spec test_config_defaults",
    "exporters/checkpoint/special_tokens.py": "test_places",
    "exporters/graphs/state_names.py": "test_spec",
    "exporters/synth/making.py": "test_synth",
    "exporters/synth/synth_layouts.py": "test_synth",
    "exporters/synth/synth_tokenizer.py": "test_synth",
    "exporters/synth/synth_weights.py": "test_synth",
    "exporters/evidence/their_inputs.py": "test_their_inputs",
    "exporters/checkpoint/tokenizer_files.py": "test_places test_text_only",
    "exporters/formats/tensorrt/finish.py": "test_tensorrt_profiles",
    "exporters/formats/tensorrt/kernels.py": "test_tensorrt_kernels",
    "exporters/formats/tensorrt/limits.py": "test_tensorrt_limits",
    "exporters/formats/tensorrt/profiles.py": "test_tensorrt_profiles",
    "exporters/formats/tensorrt/spelled_out.py": "test_tensorrt_profiles",
    "exporters/graphs/vit.py": "test_parity",
    "exporters/graphs/vit_clip.py": "test_llava test_clip_plans",
    "exporters/storage/weights.py": "test_export test_interrupted",
    "exporters/evidence/written_weights.py": "test_proof",
    "runtimes/bundle/agreement.py": "test_agreement test_manifest",
    "runtimes/evidence/built.py": "test_verify_on_device -k 'spread or limit or hashes or verdict'",
    "runtimes/bundle/opening.py": "test_bundle test_hub_cache test_signature",
    "runtimes/bundle/bundle_writer.py": "test_bundle",
    "exporters/reports/calibration_sections.py": "test_calibration_report",
    "exporters/reports/judgement_rows.py": "test_calibration_report",
    "runtimes/media/clips.py": "test_arlow_inputs test_clip_plans",
    "runtimes/dialogue/call_forms.py": "test_dialogue_parser",
    "runtimes/dialogue/dialogue_parser.py": "test_dialogue_parser",
    "runtimes/dialogue/typed_values.py": "test_typed_values",
    "runtimes/generation/guide.py": "test_guide",
    "runtimes/generation/tool_grammar.py": "test_guide",
    "runtimes/prompt/call_history.py": "test_call_history",
    "runtimes/prompt/speech.py": "test_speech",
    "runtimes/prompt/continuation.py": "test_messages -k contin",
    "runtimes/generation/conversation.py": "test_conversations -k 'not gguf and not llava'",
    "runtimes/process/cores.py": "test_cores",
    "runtimes/process/cpu.py": "test_targets",
    "runtimes/media/crops.py": "test_crops",
    "runtimes/engines/cuda/cuda.py": "test_tensorrt_runtime -k 'cuda or buffers'",
    "runtimes/engines/cuda/cuda_executor.py": "test_cuda_executor",
    "runtimes/engines/decoding.py": "test_steps",
    "runtimes/generation/encoder.py": "test_load test_arlow_bundle",
    "runtimes/engines/contract.py": "test_engine",
    "runtimes/storage/files.py": "test_bundle test_hub_cache",
    "runtimes/process/forks.py": "test_forks",
    "runtimes/process/look_ahead.py": "test_look_ahead test_media_encoder",
    "runtimes/media/frames.py": "test_frames",
    "runtimes/graph_limits/graph_bounds.py": "test_graph_bounds test_graph_check",
    "runtimes/graph_limits/graph_calls.py": "test_graph_rules test_graph_limits",
    "runtimes/graph_limits/graph_check.py": "test_graph_bounds test_graph_check",
    "runtimes/graph_limits/graph_numbers.py": "test_graph_rules test_graph_limits",
    "runtimes/graph_limits/graph_products.py": "test_graph_rules test_graph_bounds",
    "runtimes/graph_limits/graph_shapes.py": "test_graph_rules test_graph_limits",
    "runtimes/graph_limits/graph_values.py": "test_graph_rules test_graph_limits",
    "runtimes/graph_limits/graph_work.py": "test_graph_rules test_graph_check",
    "runtimes/media/images.py": "test_images",
    "runtimes/engines/indexed.py": "test_indexed",
    "exporters/reports/intervals.py": "test_report",
    "runtimes/bundle/journal.py": "test_journal",
    "runtimes/engines/llamacpp/gguf_check.py": "test_gguf_check",
    "runtimes/engines/llamacpp/encoder_tensors.py": "test_gguf_check",
    "runtimes/engines/llamacpp/header.py": "test_gguf_header -k 'part_by_part or values or version or blocks'",
    "runtimes/engines/llamacpp/token_list.py": "test_token_list",
    "runtimes/generation/loading.py": "test_load test_signature",
    "runtimes/bundle/manifest.py": "test_ranges test_manifest",
    "runtimes/media/media_encoder.py": "test_media test_media_encoder test_seen",
    "runtimes/media/medium.py": "test_media_encoder",
    "runtimes/media/picture_headers.py": "test_picture_headers",
    "runtimes/prompt/messages.py": "test_messages -k 'not equal_hf'",
    "runtimes/graph_limits/monomials.py": "test_graph_rules test_graph_limits test_graph_bounds",
    "runtimes/generation/drafting.py": "test_mtp",
    "runtimes/generation/following_head.py": "test_following_head",
    "runtimes/generation/depth_pace.py": "test_depth_pace",
    "runtimes/engines/onnx/narrow_head.py": "test_narrow_head",
    "runtimes/engines/onnx/state_rows.py": "test_state_rows",
    "runtimes/storage/new_file.py": "test_new_file",
    "runtimes/storage/new_folder.py": "test_bundle",
    "runtimes/engines/onnx/onnx_decoder.py": "test_qwen3_5 -k 'head or drafts or turn'",
    "runtimes/generation/options.py": "test_values test_options",
    "runtimes/media/places.py": "test_patch_places",
    "runtimes/prompt/positions.py": "test_positions",
    "runtimes/generation/prefill.py": "test_prefill",
    "runtimes/prompt/prompt_builder.py": "test_prompt",
    "runtimes/prompt/prompt_parts.py": "test_prompt",
    "runtimes/bundle/ranges.py": "test_ranges",
    "runtimes/prompt/reach.py": "test_reach test_messages -k 'not equal_hf'",
    "exporters/reports/records.py": "test_report",
    "runtimes/evidence/replay.py": "test_replay",
    "runtimes/media/resize.py": "test_images",
    "runtimes/generation/sampling.py": "test_sampling",
    "runtimes/media/seen.py": "test_seen",
    "runtimes/bundle/signature.py": "test_signature",
    "runtimes/media/sources.py": "test_sources",
    "runtimes/engines/states.py": "test_conversations -k 'fail or branch'",
    "runtimes/generation/streaming.py": "test_streaming",
    "runtimes/prompt/template_costs.py": "test_template_costs",
    "runtimes/prompt/template_limits.py": "test_template_bounds test_prompt",
    "runtimes/prompt/template_words.py": "test_messages -k 'words or keys or variables'",
    "runtimes/engines/tensorrt/tensorrt_executor.py": "test_tensorrt_runtime",
    "runtimes/engines/tensorrt/tensorrt_plugin.py": "test_tensorrt_plugin",
    "runtimes/generation/timings.py": "test_units",
    "runtimes/prompt/tokenizer_check.py": "test_tokenizer_check",
    "runtimes/prompt/tokenizer_parts.py": "test_tokenizer_check",
    "exporters/reports/units.py": "test_units",
    "runtimes/values.py": "test_values test_steps",
    "runtimes/prompt/variables.py": "test_variables",
    "runtimes/media/video.py": "test_video",
    "runtimes/media/spaced_video.py": "test_qwen2_5_vl_video",
    "runtimes/media/video_files.py": "test_frames",
    "runtimes/media/wishes.py": "test_wishes",
    "targets/errors.py": "test_cli_screen",
    "targets/profile.py": "test_targets",
    "targets/telemetry.py": "test_network -k 'told_nothing or reports or early'",
}
CONFIG = """
[cosmic-ray]
module-path = {module!r}
timeout = {timeout}
excluded-modules = []
test-command = {command!r}
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/ReplaceBinaryOperator_BitOr_.*"]  # most stand in annotations
"""


def tests_of(module: str) -> str:
    """The row of a module, as arguments of pytest."""
    found = {path.stem: path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    return re.sub(r"\btest_\w+", lambda name: found[name[0]], TESTS.get(module, ""))


def mutate(module: str, tests: str, timeout: float) -> tuple[list[str], int]:
    """The mutants that survived, as places and operators, and how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        command = (
            f"{shlex.quote(sys.executable)} -m pytest -x -q -p no:cacheprovider --hypothesis-profile=mutation {tests}"
        )
        (copy / "mutation.toml").write_text(CONFIG.format(module=module, timeout=timeout, command=command))
        for tool, *names in (("cosmic-ray", "baseline", "mutation.toml"),
                             ("cosmic-ray", "init", "mutation.toml", "mutants.sqlite"),
                             ("cr-filter-operators", "mutants.sqlite", "mutation.toml"),
                             ("cosmic-ray", "exec", "mutation.toml", "mutants.sqlite")):  # fmt: skip
            subprocess.run([tool, *names], cwd=copy, check=True)
        dumped = subprocess.run(["cosmic-ray", "dump", "mutants.sqlite"], cwd=copy, check=True, capture_output=True)
    outcomes = list(_outcomes(dumped.stdout.decode()))
    return [place for place, outcome in outcomes if outcome == "survived"], len(outcomes)


def _outcomes(dumped: str) -> Iterator[tuple[str, str]]:
    for line in dumped.splitlines():
        work, result = json.loads(line)
        if result and result["worker_outcome"] != "skipped":
            mutation = work["mutations"][0]
            row, column = mutation["start_pos"]
            yield f"{mutation['module_path']}:{row}:{column} {mutation['operator_name']}", result["test_outcome"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="such as calibration/solvers/descent.py")
    parser.add_argument("tests", nargs="*", help="arguments of pytest")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the tests of one mutant")
    options = parser.parse_args(arguments)
    tests = shlex.join(options.tests) or tests_of(options.module)
    if not tests:
        parser.error(f"name the tests of {options.module}")
    if shutil.which("cosmic-ray") is None:
        parser.error("cosmic-ray is missing; run: pip install cosmic-ray")
    survivors, count = mutate(options.module, tests, options.timeout)
    print(*survivors, f"{count - len(survivors)} of {count} mutants were noticed", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
