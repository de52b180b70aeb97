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
    "calibration/budget.py": "tests/test_calibration_budget.py",
    "calibration/cholesky.py": "tests/test_calibration_methods.py -k 'cholesky or factor'",
    "calibration/descent.py": "tests/test_calibration_methods.py -k descent",
    "calibration/gptq.py": "tests/test_calibration_methods.py -k 'gptq or feedback'",
    "calibration/grid.py": "tests/test_calibration_methods.py tests/test_quantize.py",
    "calibration/inputs.py": "tests/test_moments.py tests/test_calibration_methods.py -k 'tics or seen or energy'",
    "calibration/kv_scales.py": "tests/test_kv_cache.py -k 'scales or calibration or position or quantiles'",
    "calibration/layouts/ggml.py": "tests/test_packing.py tests/test_gguf_types.py",
    "calibration/layouts/onnx_blocks.py": "tests/test_packing.py",
    "calibration/measure.py": "tests/test_calibration_methods.py",
    "calibration/methods.py": "tests/test_calibration_methods.py",
    "calibration/moments.py": "tests/test_moments.py",
    "calibration/packing.py": "tests/test_packing.py",
    "calibration/retarget.py": "tests/test_calibration_methods.py",
    "calibration/rounding.py": "tests/test_quantize.py",
    "calibration/search.py": "tests/test_calibration_methods.py",
    "calibration/smoothing.py": "tests/test_calibration_smoothing.py",
    "exporters/activation_roles.py": "tests/test_int8_activations.py",
    "exporters/arlow/encoder.py": "tests/test_arlow.py",
    "exporters/arlow/grid.py": "tests/test_arlow.py",
    "exporters/arlow/spec.py": "tests/test_arlow_inputs.py tests/test_idle_options.py",
    "exporters/blocks.py": "tests/test_packing.py tests/test_parity.py",
    "exporters/calibration_samples.py": "tests/test_calibration_samples.py",
    "exporters/cases.py": "tests/test_contenders.py tests/test_compare.py",
    "exporters/checkpoint.py": "tests/test_checkpoint.py tests/test_strange_configs.py",
    "exporters/cli/answer.py": "tests/test_cli_passes.py tests/test_cli_options.py tests/test_cli.py",
    "exporters/cli/app.py": "tests/test_cli_streams.py tests/test_cli_errors.py",
    "exporters/cli/build.py": "tests/test_cli_passes.py tests/test_cli_tables.py tests/test_cli.py",
    "exporters/cli/check.py": "tests/test_cli_passes.py tests/test_cli_tables.py tests/test_cli.py",
    "exporters/cli/encode.py": "tests/test_arlow_bundle.py",
    "exporters/cli/engines.py": "tests/test_cli_passes.py",
    "exporters/cli/measure.py": "tests/test_cli_passes.py tests/test_cli.py -k 'arrives or compare'",
    "exporters/cli/shared.py": "tests/test_cli_shared.py",
    "exporters/cli/streams.py": "tests/test_cli_streams.py",
    "exporters/cli/talk.py": "tests/test_cli_options.py tests/test_cli.py",
    "exporters/cli/template_options.py": "tests/test_cli_options.py",
    "exporters/compare.py": "tests/test_contenders.py tests/test_compare.py tests/test_outcomes.py",
    "exporters/contender.py": "tests/test_contenders.py tests/test_outcomes.py tests/test_compare.py",
    "exporters/decoder.py": "tests/test_parity.py tests/test_llava.py",
    "exporters/constants.py": "tests/test_constants.py",
    "exporters/delta_net.py": "tests/test_qwen3_5.py",
    "exporters/depths.py": "tests/test_strange_configs.py tests/test_arlow_inputs.py",
    "exporters/dialects/cuda.py": "tests/test_cuda_dialect.py",
    "exporters/dialects/gguf.py": "tests/test_gguf.py tests/test_gguf_quantizer.py",
    "exporters/dialects/indexed.py": "tests/test_cuda_dialect.py",
    "exporters/dialects/ort.py": "tests/test_parity.py tests/test_packing.py",
    "exporters/dialects/tensorrt.py": "tests/test_tensorrt_dialect.py",
    "exporters/dialects/tensorrt_attention.py": "tests/test_tensorrt_dialect.py",
    "exporters/dialects/tensorrt_delta.py": "tests/test_tensorrt_dialect.py",
    "exporters/dialects/tensorrt_weights.py": "tests/test_tensorrt_weights.py tests/test_tensorrt_dialect.py",
    "exporters/distributions.py": "tests/test_compare.py",
    "exporters/draft_reference.py": "tests/test_qwen3_5.py -k draft",
    "exporters/end_tokens.py": "tests/test_end_tokens.py",
    "exporters/export.py": "tests/test_export.py tests/test_idle_options.py",
    "exporters/float_twin.py": "tests/test_proof.py",
    "exporters/gguf/decoder.py": "tests/test_gguf_types.py tests/test_gguf.py",
    "exporters/gguf/delta_net.py": "tests/test_gguf_types.py tests/test_gguf.py",
    "exporters/gguf/file_types.py": "tests/test_gguf_types.py",
    "exporters/gguf/imatrix.py": "tests/test_gguf_quantizer.py tests/test_gguf_types.py",
    "exporters/gguf/importance.py": "tests/test_gguf_quantizer.py",
    "exporters/gguf/quantizer.py": "tests/test_gguf_quantizer.py tests/test_gguf_types.py",
    "exporters/gguf/tensors.py": "tests/test_gguf_types.py tests/test_gguf.py",
    "exporters/gguf/vision.py": "tests/test_gguf_types.py tests/test_gguf.py tests/test_gguf_llava.py",
    "exporters/gguf/vocabulary.py": "tests/test_gguf_types.py tests/test_gguf_llava.py tests/test_gguf.py",
    "exporters/gguf/writer.py": "tests/test_gguf.py tests/test_gguf_llava.py",
    "exporters/gguf/written_tensors.py": "tests/test_written_tensors.py",
    "exporters/golden.py": "tests/test_verify.py tests/test_manifest.py",
    "exporters/golden_sizes.py": "tests/test_plan_sizes.py",
    "exporters/graph_ports.py": "tests/test_kv_cache.py tests/test_parity.py",
    "exporters/heads.py": "tests/test_heads.py",
    "exporters/hub.py": "tests/test_hub.py",
    "exporters/kv_cache.py": "tests/test_spec.py tests/test_kv_cache.py -k 'spec or scales or refused'",
    "exporters/layerwise/activations.py": "tests/test_int8_activations.py",
    "exporters/layerwise/head.py": "tests/test_layerwise_head.py",
    "exporters/layerwise/judge.py": "tests/test_judgement.py tests/test_layerwise.py",
    "exporters/layerwise/outcomes.py": "tests/test_layerwise_store.py",
    "exporters/layerwise/samples.py": "tests/test_judgement.py tests/test_own_answers.py",
    "exporters/layerwise/sensitivity.py": "tests/test_sensitivity.py tests/test_mixed_precision.py",
    "exporters/layerwise/shares.py": "tests/test_judgement.py tests/test_layerwise.py -k shares",
    "exporters/layerwise/shelf.py": "tests/test_shelf.py",
    "exporters/layerwise/smoothing.py": "tests/test_layerwise_smoothing.py",
    "exporters/layerwise/store.py": "tests/test_layerwise_store.py tests/test_shelf.py",
    "exporters/layerwise/streams.py": "tests/test_layerwise.py tests/test_layerwise_head.py",
    "exporters/layout.py": "tests/test_checkpoint.py tests/test_arlow_inputs.py tests/test_lora.py",
    "exporters/lazy_tensors.py": "tests/test_checkpoint.py",
    "exporters/llava_sections.py": "tests/test_prompt_sections.py tests/test_llava.py",
    "exporters/lora/adapter.py": "tests/test_lora.py",
    "exporters/lora/merge.py": "tests/test_lora.py",
    "exporters/lora/settings.py": "tests/test_lora.py",
    "exporters/mixed_precision.py": "tests/test_mixed_precision.py",
    "exporters/models/arlow.py": "tests/test_arlow_inputs.py tests/test_arlow.py",
    "exporters/models/configs.py": "tests/test_config_defaults.py tests/test_strange_configs.py",
    "exporters/models/llava.py": "tests/test_config_defaults.py tests/test_strange_configs.py tests/test_llava.py",
    "exporters/models/qwen3_5.py": "tests/test_config_defaults.py tests/test_strange_configs.py tests/test_qwen3_5.py",
    "exporters/models/qwen3_vl.py": "tests/test_config_defaults.py tests/test_strange_configs.py tests/test_parity.py",
    "exporters/models/qwen_configs.py": "tests/test_config_defaults.py tests/test_strange_configs.py",
    "exporters/models/text_decoders.py": "tests/test_config_defaults.py tests/test_llava.py",
    "exporters/mtp.py": "tests/test_qwen3_5.py",
    "exporters/names.py": "tests/test_names.py tests/test_text_only.py",
    "exporters/notes.py": "tests/test_notes.py",
    "exporters/nudging.py": "tests/test_self_replay.py",
    "exporters/outcomes.py": "tests/test_outcomes.py",
    "exporters/own_answers.py": "tests/test_own_answers.py",
    "exporters/own_traces.py": "tests/test_own_traces.py",
    "exporters/parts.py": "tests/test_parts.py",
    "exporters/plan.py": "tests/test_plan.py tests/test_plan_sizes.py",
    "exporters/positioned.py": "tests/test_positioned.py",
    "exporters/prequantized/awq.py": "tests/test_prequantized.py",
    "exporters/prequantized/bitsandbytes.py": "tests/test_prequantized.py",
    "exporters/prequantized/compressed_tensors.py": "tests/test_prequantized.py",
    "exporters/prequantized/declared.py": "tests/test_prequantized.py",
    "exporters/prequantized/formats.py": "tests/test_prequantized.py",
    "exporters/prequantized/gptq.py": "tests/test_prequantized.py",
    "exporters/prequantized/integers.py": "tests/test_prequantized.py",
    "exporters/prequantized/kept.py": "tests/test_prequantized.py",
    "exporters/prequantized/modules.py": "tests/test_prequantized.py",
    "exporters/prequantized/scaled_floats.py": "tests/test_prequantized.py",
    "exporters/processor_files.py": "tests/test_places.py tests/test_text_only.py",
    "exporters/prompts.py": "tests/test_prompt_sections.py tests/test_llava.py",
    "exporters/proof.py": "tests/test_proof.py",
    "exporters/reference.py": "tests/test_reference.py",
    "exporters/rope.py": "tests/test_rope.py",
    "exporters/runners.py": "tests/test_contenders.py tests/test_compare.py",
    "exporters/safetensors_files.py": "tests/test_checkpoint.py",
    "exporters/scheme.py": "tests/test_scheme.py",
    "exporters/self_replay.py": "tests/test_self_replay.py tests/test_verify_on_device.py",
    "exporters/sizes.py": "tests/test_plan_sizes.py",
    "exporters/source_weights.py": "tests/test_checkpoint.py tests/test_export.py",
    "exporters/spec.py": "tests/test_spec.py tests/test_config_defaults.py",
    "exporters/special_tokens.py": "tests/test_places.py",
    "exporters/states.py": "tests/test_spec.py",
    "exporters/synth.py": "tests/test_synth.py",
    "exporters/synth_layouts.py": "tests/test_synth.py",
    "exporters/synth_tokenizer.py": "tests/test_synth.py",
    "exporters/synth_weights.py": "tests/test_synth.py",
    "exporters/their_inputs.py": "tests/test_their_inputs.py",
    "exporters/tokenizer_files.py": "tests/test_places.py tests/test_text_only.py",
    "exporters/trt/finish.py": "tests/test_tensorrt_profiles.py",
    "exporters/trt/kernels.py": "tests/test_tensorrt_kernels.py",
    "exporters/trt/limits.py": "tests/test_tensorrt_limits.py",
    "exporters/trt/profiles.py": "tests/test_tensorrt_profiles.py",
    "exporters/trt/spelled_out.py": "tests/test_tensorrt_profiles.py",
    "exporters/vit.py": "tests/test_parity.py",
    "exporters/vit_clip.py": "tests/test_llava.py tests/test_clip_plans.py",
    "exporters/weights.py": "tests/test_export.py tests/test_interrupted.py",
    "exporters/written_weights.py": "tests/test_proof.py",
    "runtimes/agreement.py": "tests/test_agreement.py tests/test_manifest.py",
    "runtimes/built.py": "tests/test_verify_on_device.py -k 'spread or limit or hashes or verdict'",
    "runtimes/bundle.py": "tests/test_bundle.py tests/test_hub_cache.py tests/test_signature.py",
    "runtimes/bundle_writer.py": "tests/test_bundle.py",
    "runtimes/calibration_sections.py": "tests/test_calibration_report.py",
    "runtimes/clips.py": "tests/test_arlow_inputs.py tests/test_clip_plans.py",
    "runtimes/continuation.py": "tests/test_messages.py -k contin",
    "runtimes/conversation.py": "tests/test_conversations.py -k 'not gguf and not llava'",
    "runtimes/cores.py": "tests/test_cores.py",
    "runtimes/cpu.py": "tests/test_targets.py",
    "runtimes/crops.py": "tests/test_crops.py",
    "runtimes/cuda.py": "tests/test_tensorrt_runtime.py -k 'cuda or buffers'",
    "runtimes/cuda_executor.py": "tests/test_cuda_executor.py",
    "runtimes/decoding.py": "tests/test_steps.py",
    "runtimes/encoder.py": "tests/test_load.py tests/test_arlow_bundle.py",
    "runtimes/engine.py": "tests/test_engine.py",
    "runtimes/files.py": "tests/test_bundle.py tests/test_hub_cache.py",
    "runtimes/forks.py": "tests/test_forks.py",
    "runtimes/frames.py": "tests/test_frames.py",
    "runtimes/graph_bounds.py": "tests/test_graph_bounds.py tests/test_graph_check.py",
    "runtimes/graph_calls.py": "tests/test_graph_rules.py tests/test_graph_limits.py",
    "runtimes/graph_check.py": "tests/test_graph_bounds.py tests/test_graph_check.py",
    "runtimes/graph_numbers.py": "tests/test_graph_rules.py tests/test_graph_limits.py",
    "runtimes/graph_products.py": "tests/test_graph_rules.py tests/test_graph_bounds.py",
    "runtimes/graph_shapes.py": "tests/test_graph_rules.py tests/test_graph_limits.py",
    "runtimes/graph_values.py": "tests/test_graph_rules.py tests/test_graph_limits.py",
    "runtimes/graph_work.py": "tests/test_graph_rules.py tests/test_graph_check.py",
    "runtimes/images.py": "tests/test_images.py",
    "runtimes/indexed.py": "tests/test_indexed.py",
    "runtimes/intervals.py": "tests/test_report.py",
    "runtimes/journal.py": "tests/test_journal.py",
    "runtimes/llamacpp/check.py": "tests/test_gguf_check.py",
    "runtimes/llamacpp/encoder_tensors.py": "tests/test_gguf_check.py",
    "runtimes/llamacpp/header.py": "tests/test_gguf_header.py -k 'part_by_part or values or version or blocks'",
    "runtimes/llamacpp/token_list.py": "tests/test_token_list.py",
    "runtimes/loading.py": "tests/test_load.py tests/test_signature.py",
    "runtimes/manifest.py": "tests/test_ranges.py tests/test_manifest.py",
    "runtimes/media.py": "tests/test_media.py tests/test_seen.py",
    "runtimes/messages.py": "tests/test_messages.py -k 'not equal_hf'",
    "runtimes/monomials.py": "tests/test_graph_rules.py tests/test_graph_limits.py tests/test_graph_bounds.py",
    "runtimes/mtp.py": "tests/test_mtp.py",
    "runtimes/new_file.py": "tests/test_new_file.py",
    "runtimes/new_folder.py": "tests/test_bundle.py",
    "runtimes/onnx_decoder.py": "tests/test_qwen3_5.py -k 'head or drafts or turn'",
    "runtimes/options.py": "tests/test_values.py tests/test_options.py",
    "runtimes/places.py": "tests/test_patch_places.py",
    "runtimes/positions.py": "tests/test_positions.py",
    "runtimes/prefill.py": "tests/test_prefill.py",
    "runtimes/prompt.py": "tests/test_prompt.py",
    "runtimes/ranges.py": "tests/test_ranges.py",
    "runtimes/reach.py": "tests/test_reach.py tests/test_messages.py -k 'not equal_hf'",
    "runtimes/records.py": "tests/test_report.py",
    "runtimes/replay.py": "tests/test_replay.py",
    "runtimes/resize.py": "tests/test_images.py",
    "runtimes/sampling.py": "tests/test_sampling.py",
    "runtimes/seen.py": "tests/test_seen.py",
    "runtimes/signature.py": "tests/test_signature.py",
    "runtimes/sources.py": "tests/test_sources.py",
    "runtimes/states.py": "tests/test_conversations.py -k 'fail or branch'",
    "runtimes/streaming.py": "tests/test_streaming.py",
    "runtimes/template_costs.py": "tests/test_template_costs.py",
    "runtimes/template_limits.py": "tests/test_template_bounds.py tests/test_prompt.py",
    "runtimes/template_words.py": "tests/test_messages.py -k 'words or keys or variables'",
    "runtimes/tensorrt.py": "tests/test_tensorrt_runtime.py",
    "runtimes/tensorrt_plugin.py": "tests/test_tensorrt_plugin.py",
    "runtimes/timings.py": "tests/test_units.py",
    "runtimes/tokenizer_check.py": "tests/test_tokenizer_check.py",
    "runtimes/units.py": "tests/test_units.py",
    "runtimes/values.py": "tests/test_values.py tests/test_steps.py",
    "runtimes/variables.py": "tests/test_variables.py",
    "runtimes/video.py": "tests/test_video.py",
    "runtimes/video_files.py": "tests/test_frames.py",
    "runtimes/wishes.py": "tests/test_wishes.py",
    "targets/errors.py": "tests/test_cli_shared.py",
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
    parser.add_argument("module", help="such as calibration/descent.py")
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
