"""Mutates one module and runs its tests on every mutant: python -m tests.mutation MODULE [TEST ...]

cosmic-ray (pip install cosmic-ray) makes the mutants, in a copy of the checkout, so that nothing here is touched.
Without TEST, the row of TESTS is taken. Prints the mutants that no test noticed, and their number.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = (".git", ".venv", "build", "dist", ".mypy_cache", ".pytest_cache", ".ruff_cache", "__pycache__")
# The tests that concern a module, the quick ones.
TESTS: dict[str, str] = {
    "calibration/solvers/budget.py": "tests/test_calibration_budget.py",
    "calibration/solvers/cholesky.py": "tests/test_calibration_methods.py -k 'cholesky or factor'",
    "calibration/solvers/descent.py": "tests/test_calibration_methods.py -k descent",
    "calibration/solvers/gptq.py": "tests/test_calibration_methods.py -k 'gptq or feedback'",
    "calibration/solvers/levels.py": "tests/test_calibration_methods.py tests/test_quantize.py",
    "calibration/solvers/inputs.py": "tests/test_moments.py tests/test_calibration_methods.py -k 'tics or seen or energy'",  # noqa: E501
    "calibration/solvers/kv_scales.py": "tests/test_kv_cache.py -k 'scales or calibration or position or quantiles'",
    "calibration/solvers/output_error.py": "tests/test_calibration_methods.py",
    "calibration/solvers/methods.py": "tests/test_calibration_methods.py",
    "calibration/solvers/moments.py": "tests/test_moments.py",
    "exporters/storage/packing.py": "tests/test_packing.py",
    "calibration/solvers/retarget.py": "tests/test_calibration_methods.py",
    "exporters/storage/rounding.py": "tests/test_quantize.py",
    "calibration/solvers/search.py": "tests/test_calibration_methods.py",
    "calibration/solvers/smoothing.py": "tests/test_calibration_smoothing.py",
    "calibration/activation_roles.py": "tests/test_int8_activations.py",
    "exporters/families/arlow/tower.py": "tests/test_arlow.py",
    "exporters/families/arlow/grid.py": "tests/test_arlow.py",
    "exporters/families/arlow/arlow_spec.py": "tests/test_arlow_inputs.py tests/test_idle_options.py",
    "exporters/graphs/blocks.py": "tests/test_packing.py tests/test_parity.py",
    "calibration/samples/calibration_samples.py": "tests/test_calibration_samples.py",
    "exporters/comparing/cases.py": "tests/test_contenders.py tests/test_compare.py",
    "exporters/checkpoint/folder.py": "tests/test_checkpoint.py tests/test_strange_configs.py",
    "cli/answering.py": "tests/test_cli_passes.py tests/test_cli_options.py tests/test_cli.py",
    "cli/app.py": "tests/test_cli_streams.py tests/test_cli_errors.py",
    "cli/export.py": "tests/test_cli_passes.py tests/test_cli_tables.py tests/test_cli.py",
    "cli/plan.py": "tests/test_cli_passes.py tests/test_cli_tables.py tests/test_cli.py",
    "cli/inspect.py": "tests/test_cli_passes.py tests/test_cli_tables.py tests/test_cli.py",
    "cli/encode.py": "tests/test_arlow_bundle.py",
    "cli/build.py": "tests/test_cli_passes.py",
    "cli/compare.py": "tests/test_cli_passes.py tests/test_cli.py -k 'arrives or compare'",
    "cli/option_types.py": "tests/test_cli_screen.py",
    "cli/standard_streams.py": "tests/test_cli_streams.py",
    "cli/talk.py": "tests/test_cli_options.py tests/test_cli.py",
    "cli/template_options.py": "tests/test_cli_options.py",
    "exporters/comparing/comparison.py": "tests/test_contenders.py tests/test_compare.py tests/test_outcomes.py",
    "exporters/comparing/contender.py": "tests/test_contenders.py tests/test_outcomes.py tests/test_compare.py",
    "exporters/graphs/decoder.py": "tests/test_parity.py tests/test_llava.py",
    "exporters/evidence/constants.py": "tests/test_constants.py",
    "exporters/graphs/delta_net.py": "tests/test_qwen3_5.py",
    "exporters/checkpoint/depths.py": "tests/test_strange_configs.py tests/test_arlow_inputs.py",
    "exporters/formats/onnx/cuda_dialect.py": "tests/test_cuda_dialect.py",
    "exporters/formats/gguf/gguf_files.py": "tests/test_gguf.py tests/test_gguf_quantizer.py",
    "exporters/formats/indexed_dialect.py": "tests/test_cuda_dialect.py",
    "exporters/formats/onnx/ort.py": "tests/test_parity.py tests/test_packing.py",
    "exporters/formats/tensorrt/tensorrt_dialect.py": "tests/test_tensorrt_dialect.py",
    "exporters/formats/tensorrt/tensorrt_attention.py": "tests/test_tensorrt_dialect.py",
    "exporters/formats/tensorrt/tensorrt_delta.py": "tests/test_tensorrt_dialect.py",
    "exporters/formats/tensorrt/tensorrt_weights.py": "tests/test_tensorrt_weights.py tests/test_tensorrt_dialect.py",
    "exporters/comparing/distributions.py": "tests/test_compare.py",
    "exporters/families/qwen3_5/draft_reference.py": "tests/test_qwen3_5.py -k draft",
    "exporters/checkpoint/end_tokens.py": "tests/test_end_tokens.py",
    "exporters/pipeline.py": "tests/test_export.py tests/test_idle_options.py",
    "exporters/evidence/float_twin.py": "tests/test_proof.py",
    "exporters/formats/gguf/gguf_decoder.py": "tests/test_gguf_types.py tests/test_gguf.py",
    "exporters/families/qwen2_5_vl/qwen2_5_vl.py": "tests/test_qwen2_5_vl.py",
    "exporters/families/qwen2_5_vl/qwen2_5_vl_gguf.py": "tests/test_qwen2_5_vl.py tests/test_gguf.py",
    "exporters/families/qwen2_5_vl/windowed_spec.py": "tests/test_qwen2_5_vl.py",
    "exporters/families/qwen2_5_vl/windowed_tower.py": "tests/test_qwen2_5_vl.py",
    "exporters/families/qwen3_vl/qwen3_vl_gguf.py": "tests/test_gguf_types.py tests/test_gguf.py",
    "exporters/families/qwen3_5/qwen3_5_gguf.py": "tests/test_gguf_types.py tests/test_gguf.py",
    "exporters/families/llava/llava_gguf.py": "tests/test_gguf_types.py tests/test_gguf.py tests/test_gguf_llava.py",
    "exporters/families/qwen3_5/delta_net_order.py": "tests/test_gguf_types.py tests/test_gguf.py",
    "exporters/formats/gguf/file_types.py": "tests/test_gguf_types.py",
    "exporters/formats/gguf/imatrix.py": "tests/test_gguf_quantizer.py tests/test_gguf_types.py",
    "calibration/importance.py": "tests/test_gguf_quantizer.py",
    "exporters/formats/gguf/llama_quantizer.py": "tests/test_gguf_quantizer.py tests/test_gguf_types.py",
    "exporters/formats/gguf/tensors.py": "tests/test_gguf_types.py tests/test_gguf.py",
    "exporters/formats/gguf/gguf_vision.py": "tests/test_gguf_types.py tests/test_gguf.py tests/test_gguf_llava.py",
    "exporters/formats/gguf/vocabulary.py": "tests/test_gguf_types.py tests/test_gguf_llava.py tests/test_gguf.py",
    "exporters/formats/gguf/writer.py": "tests/test_gguf.py tests/test_gguf_llava.py",
    "exporters/formats/gguf/written_tensors.py": "tests/test_written_tensors.py",
    "exporters/evidence/golden.py": "tests/test_verify.py tests/test_manifest.py",
    "exporters/planning/golden_sizes.py": "tests/test_plan_sizes.py",
    "exporters/graphs/graph_ports.py": "tests/test_kv_cache.py tests/test_parity.py",
    "exporters/checkpoint/heads.py": "tests/test_heads.py",
    "exporters/checkpoint/hub.py": "tests/test_hub.py",
    "exporters/graphs/kv_cache.py": "tests/test_spec.py tests/test_kv_cache.py -k 'spec or scales or refused'",
    "calibration/layerwise/activations.py": "tests/test_int8_activations.py",
    "calibration/layerwise/head.py": "tests/test_layerwise_head.py",
    "calibration/layerwise/judge.py": "tests/test_judgement.py tests/test_layerwise.py",
    "calibration/layerwise/matrix_outcomes.py": "tests/test_layerwise_store.py",
    "calibration/layerwise/prepared_samples.py": "tests/test_judgement.py tests/test_own_answers.py",
    "calibration/layerwise/sensitivity.py": "tests/test_sensitivity.py tests/test_mixed_precision.py",
    "calibration/layerwise/shares.py": "tests/test_judgement.py tests/test_layerwise.py -k shares",
    "calibration/layerwise/shelf.py": "tests/test_shelf.py",
    "calibration/layerwise/smoothed_pairs.py": "tests/test_layerwise_smoothing.py",
    "calibration/layerwise/store.py": "tests/test_layerwise_store.py tests/test_shelf.py",
    "calibration/layerwise/streams.py": "tests/test_layerwise.py tests/test_layerwise_head.py",
    "exporters/checkpoint/layout.py": "tests/test_checkpoint.py tests/test_arlow_inputs.py tests/test_lora.py",
    "exporters/checkpoint/lazy_tensors.py": "tests/test_checkpoint.py",
    "exporters/families/llava/llava_sections.py": "tests/test_prompt_sections.py tests/test_llava.py",
    "exporters/checkpoint/lora/adapter.py": "tests/test_lora.py",
    "exporters/checkpoint/lora/merge.py": "tests/test_lora.py",
    "exporters/checkpoint/lora/settings.py": "tests/test_lora.py",
    "calibration/mixed_precision.py": "tests/test_mixed_precision.py",
    "exporters/families/arlow/description.py": "tests/test_arlow_inputs.py tests/test_arlow.py",
    "exporters/families/configs.py": "tests/test_config_defaults.py tests/test_strange_configs.py",
    "exporters/families/llava/llava.py": "tests/test_config_defaults.py tests/test_strange_configs.py tests/test_llava.py",  # noqa: E501
    "exporters/families/qwen3_5/qwen3_5.py": "tests/test_config_defaults.py tests/test_strange_configs.py tests/test_qwen3_5.py",  # noqa: E501
    "exporters/families/qwen3_vl/qwen3_vl.py": "tests/test_config_defaults.py tests/test_strange_configs.py tests/test_parity.py",  # noqa: E501
    "exporters/families/qwen_configs.py": "tests/test_config_defaults.py tests/test_strange_configs.py",
    "exporters/families/text_decoders.py": "tests/test_config_defaults.py tests/test_llava.py",
    "exporters/graphs/draft_head.py": "tests/test_qwen3_5.py",
    "exporters/checkpoint/names.py": "tests/test_names.py tests/test_text_only.py",
    "exporters/notes.py": "tests/test_notes.py",
    "exporters/evidence/nudging.py": "tests/test_self_replay.py",
    "exporters/comparing/tensor_outcomes.py": "tests/test_outcomes.py",
    "calibration/samples/own_answers.py": "tests/test_own_answers.py",
    "exporters/evidence/own_traces.py": "tests/test_own_traces.py",
    "exporters/parts.py": "tests/test_parts.py",
    "exporters/planning/planned_bundle.py": "tests/test_plan.py tests/test_plan_sizes.py",
    "exporters/storage/positioned.py": "tests/test_positioned.py",
    "exporters/checkpoint/prequantized/awq_layout.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/bitsandbytes.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/compressed_tensors.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/declared.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/formats.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/gptq_layout.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/integers.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/kept.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/modules.py": "tests/test_prequantized.py",
    "exporters/checkpoint/prequantized/scaled_floats.py": "tests/test_prequantized.py",
    "exporters/checkpoint/processor_files.py": "tests/test_places.py tests/test_text_only.py",
    "exporters/families/prompts.py": "tests/test_prompt_sections.py tests/test_llava.py",
    "exporters/evidence/proof.py": "tests/test_proof.py",
    "exporters/evidence/reference.py": "tests/test_reference.py",
    "exporters/graphs/rope.py": "tests/test_rope.py",
    "exporters/comparing/runners.py": "tests/test_contenders.py tests/test_compare.py",
    "exporters/checkpoint/safetensors_files.py": "tests/test_checkpoint.py",
    "exporters/storage/scheme.py": "tests/test_scheme.py",
    "exporters/evidence/self_replay.py": "tests/test_self_replay.py tests/test_verify_on_device.py",
    "exporters/storage/sizes.py": "tests/test_plan_sizes.py",
    "exporters/checkpoint/source_weights.py": "tests/test_checkpoint.py tests/test_export.py",
    "exporters/spec.py": "tests/test_spec.py tests/test_config_defaults.py",
    "exporters/checkpoint/special_tokens.py": "tests/test_places.py",
    "exporters/graphs/state_names.py": "tests/test_spec.py",
    "exporters/synth/making.py": "tests/test_synth.py",
    "exporters/synth/synth_layouts.py": "tests/test_synth.py",
    "exporters/synth/synth_tokenizer.py": "tests/test_synth.py",
    "exporters/synth/synth_weights.py": "tests/test_synth.py",
    "exporters/evidence/their_inputs.py": "tests/test_their_inputs.py",
    "exporters/checkpoint/tokenizer_files.py": "tests/test_places.py tests/test_text_only.py",
    "exporters/formats/tensorrt/finish.py": "tests/test_tensorrt_profiles.py",
    "exporters/formats/tensorrt/kernels.py": "tests/test_tensorrt_kernels.py",
    "exporters/formats/tensorrt/limits.py": "tests/test_tensorrt_limits.py",
    "exporters/formats/tensorrt/profiles.py": "tests/test_tensorrt_profiles.py",
    "exporters/formats/tensorrt/spelled_out.py": "tests/test_tensorrt_profiles.py",
    "exporters/graphs/vit.py": "tests/test_parity.py",
    "exporters/graphs/vit_clip.py": "tests/test_llava.py tests/test_clip_plans.py",
    "exporters/storage/weights.py": "tests/test_export.py tests/test_interrupted.py",
    "exporters/evidence/written_weights.py": "tests/test_proof.py",
    "runtimes/bundle/agreement.py": "tests/test_agreement.py tests/test_manifest.py",
    "runtimes/evidence/built.py": "tests/test_verify_on_device.py -k 'spread or limit or hashes or verdict'",
    "runtimes/bundle/opening.py": "tests/test_bundle.py tests/test_hub_cache.py tests/test_signature.py",
    "runtimes/bundle/bundle_writer.py": "tests/test_bundle.py",
    "exporters/reports/calibration_sections.py": "tests/test_calibration_report.py",
    "runtimes/media/clips.py": "tests/test_arlow_inputs.py tests/test_clip_plans.py",
    "runtimes/prompt/continuation.py": "tests/test_messages.py -k contin",
    "runtimes/generation/conversation.py": "tests/test_conversations.py -k 'not gguf and not llava'",
    "runtimes/process/cores.py": "tests/test_cores.py",
    "runtimes/process/cpu.py": "tests/test_targets.py",
    "runtimes/media/crops.py": "tests/test_crops.py",
    "runtimes/engines/cuda/cuda.py": "tests/test_tensorrt_runtime.py -k 'cuda or buffers'",
    "runtimes/engines/cuda/cuda_executor.py": "tests/test_cuda_executor.py",
    "runtimes/engines/decoding.py": "tests/test_steps.py",
    "runtimes/generation/encoder.py": "tests/test_load.py tests/test_arlow_bundle.py",
    "runtimes/engines/contract.py": "tests/test_engine.py",
    "runtimes/storage/files.py": "tests/test_bundle.py tests/test_hub_cache.py",
    "runtimes/process/forks.py": "tests/test_forks.py",
    "runtimes/media/frames.py": "tests/test_frames.py",
    "runtimes/graph_limits/graph_bounds.py": "tests/test_graph_bounds.py tests/test_graph_check.py",
    "runtimes/graph_limits/graph_calls.py": "tests/test_graph_rules.py tests/test_graph_limits.py",
    "runtimes/graph_limits/graph_check.py": "tests/test_graph_bounds.py tests/test_graph_check.py",
    "runtimes/graph_limits/graph_numbers.py": "tests/test_graph_rules.py tests/test_graph_limits.py",
    "runtimes/graph_limits/graph_products.py": "tests/test_graph_rules.py tests/test_graph_bounds.py",
    "runtimes/graph_limits/graph_shapes.py": "tests/test_graph_rules.py tests/test_graph_limits.py",
    "runtimes/graph_limits/graph_values.py": "tests/test_graph_rules.py tests/test_graph_limits.py",
    "runtimes/graph_limits/graph_work.py": "tests/test_graph_rules.py tests/test_graph_check.py",
    "runtimes/media/images.py": "tests/test_images.py",
    "runtimes/engines/indexed.py": "tests/test_indexed.py",
    "exporters/reports/intervals.py": "tests/test_report.py",
    "runtimes/bundle/journal.py": "tests/test_journal.py",
    "runtimes/engines/llamacpp/gguf_check.py": "tests/test_gguf_check.py",
    "runtimes/engines/llamacpp/encoder_tensors.py": "tests/test_gguf_check.py",
    "runtimes/engines/llamacpp/header.py": "tests/test_gguf_header.py -k 'part_by_part or values or version or blocks'",
    "runtimes/engines/llamacpp/token_list.py": "tests/test_token_list.py",
    "runtimes/generation/loading.py": "tests/test_load.py tests/test_signature.py",
    "runtimes/bundle/manifest.py": "tests/test_ranges.py tests/test_manifest.py",
    "runtimes/media/media_encoder.py": "tests/test_media.py tests/test_seen.py",
    "runtimes/prompt/messages.py": "tests/test_messages.py -k 'not equal_hf'",
    "runtimes/graph_limits/monomials.py": "tests/test_graph_rules.py tests/test_graph_limits.py tests/test_graph_bounds.py",  # noqa: E501
    "runtimes/generation/drafting.py": "tests/test_mtp.py",
    "runtimes/storage/new_file.py": "tests/test_new_file.py",
    "runtimes/storage/new_folder.py": "tests/test_bundle.py",
    "runtimes/engines/onnx/onnx_decoder.py": "tests/test_qwen3_5.py -k 'head or drafts or turn'",
    "runtimes/generation/options.py": "tests/test_values.py tests/test_options.py",
    "runtimes/media/places.py": "tests/test_patch_places.py",
    "runtimes/prompt/positions.py": "tests/test_positions.py",
    "runtimes/generation/prefill.py": "tests/test_prefill.py",
    "runtimes/prompt/prompt_builder.py": "tests/test_prompt.py",
    "runtimes/bundle/ranges.py": "tests/test_ranges.py",
    "runtimes/prompt/reach.py": "tests/test_reach.py tests/test_messages.py -k 'not equal_hf'",
    "exporters/reports/records.py": "tests/test_report.py",
    "runtimes/evidence/replay.py": "tests/test_replay.py",
    "runtimes/media/resize.py": "tests/test_images.py",
    "runtimes/generation/sampling.py": "tests/test_sampling.py",
    "runtimes/media/seen.py": "tests/test_seen.py",
    "runtimes/bundle/signature.py": "tests/test_signature.py",
    "runtimes/media/sources.py": "tests/test_sources.py",
    "runtimes/engines/states.py": "tests/test_conversations.py -k 'fail or branch'",
    "runtimes/generation/streaming.py": "tests/test_streaming.py",
    "runtimes/prompt/template_costs.py": "tests/test_template_costs.py",
    "runtimes/prompt/template_limits.py": "tests/test_template_bounds.py tests/test_prompt.py",
    "runtimes/prompt/template_words.py": "tests/test_messages.py -k 'words or keys or variables'",
    "runtimes/engines/tensorrt/tensorrt_executor.py": "tests/test_tensorrt_runtime.py",
    "runtimes/engines/tensorrt/tensorrt_plugin.py": "tests/test_tensorrt_plugin.py",
    "runtimes/generation/timings.py": "tests/test_units.py",
    "runtimes/prompt/tokenizer_check.py": "tests/test_tokenizer_check.py",
    "exporters/reports/units.py": "tests/test_units.py",
    "runtimes/values.py": "tests/test_values.py tests/test_steps.py",
    "runtimes/prompt/variables.py": "tests/test_variables.py",
    "runtimes/media/video.py": "tests/test_video.py",
    "runtimes/media/video_files.py": "tests/test_frames.py",
    "runtimes/media/wishes.py": "tests/test_wishes.py",
    "targets/errors.py": "tests/test_cli_screen.py",
    "targets/profile.py": "tests/test_targets.py",
    "targets/telemetry.py": "tests/test_network.py -k 'told_nothing or reports or early'",
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
    tests = shlex.join(options.tests) or TESTS.get(options.module, "")
    if not tests:
        parser.error(f"name the tests of {options.module}")
    if shutil.which("cosmic-ray") is None:
        parser.error("cosmic-ray is missing; run: pip install cosmic-ray")
    survivors, count = mutate(options.module, tests, options.timeout)
    print(*survivors, f"{count - len(survivors)} of {count} mutants were noticed", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
