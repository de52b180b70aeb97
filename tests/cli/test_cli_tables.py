"""The figures in the tables of the command line, cell by cell, of records written by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lensmith.cli import inspect, verify
from lensmith.cli.calibration_tables import print_calibration
from lensmith.cli.screen import size
from lensmith.cli.storage_tables import component_sizes
from lensmith.runtimes.bundle.opening import Bundle
from lensmith.runtimes.bundle.origin import Source
from msgspec import convert
from rich.table import Table

from tests.helpers.contents import content

PIXELS = {"patch_size": 2, "temporal_patch_size": 2, "merge_size": 1, "mean": [0.5] * 3, "std": [0.5] * 3,
          "rescale_factor": 0.5}  # fmt: skip
Cells = list[tuple[str, ...]]


def cells(table: Table) -> Cells:
    """Rows of a table."""
    return list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))


def named(table: Table) -> dict[str, str]:
    """The same for a table of names and values."""
    return {row[0]: row[1] for row in cells(table)}


def bundle(**sections: Any) -> Bundle:
    return Bundle(Path("here"), content(**sections))


def stored(bits: int, group: int, *, symmetric: bool, parameters: int, nbytes: int, reason: str = "") -> dict[str, Any]:
    return {"bits": bits, "group_size": group, "symmetric": symmetric, "parameters": parameters, "bytes": nbytes,
            "reason": reason}  # fmt: skip


def test_tensors_stored_alike_count_together() -> None:
    """The largest first; floats have no zero points."""
    shown = cells(inspect._precision(bundle(precision={
        "a": stored(32, 0, symmetric=False, parameters=10, nbytes=40),
        "b": stored(4, 32, symmetric=False, parameters=1000, nbytes=600),
        "c": stored(4, 32, symmetric=False, parameters=3000, nbytes=1900),
        "d": stored(4, 32, symmetric=True, parameters=2000, nbytes=1100, reason="why"),
        "e": stored(8, 64, symmetric=True, parameters=1, nbytes=2),
    })))  # fmt: skip
    assert shown == [
        ("4", "32", "yes", "2", "4,000", size(2500), ""), ("4", "32", "", "1", "2,000", size(1100), "why"),
        ("32", "", "", "1", "10", size(40), ""), ("8", "64", "", "1", "1", size(2), ""),
    ]  # fmt: skip


def test_limits_of_images_and_videos_and_what_ends_answers() -> None:
    shown = named(inspect._limits(bundle(
        image=PIXELS, limits={"context": 5, "max_image_tokens": 2, "max_pixels": 6, "min_pixels": 4},
        video={**PIXELS, "fps": 1, "min_frames": 1, "max_frames": 8, "min_pixels": 4, "max_pixels": 7, "max_tokens": 9},
        prompt={"template": "chat_template.jinja", "tokenizer": "tokenizer.json", "tokens": {}, "token_ids": {},
                "eos_token_ids": [3], "merge_size": 1, "end_tokens": {"3": ["config.json", "the chat template"]},
                "speech": {"tool_calls": "xml", "arguments": "object", "reasoning": False}},
    )))  # fmt: skip
    assert shown == {"context": "5", "max image tokens": "2", "max pixels": "6", "min pixels": "4",
                     "video max pixels": "7", "video max frames": "8", "video max tokens": "9",
                     "answers end at 3": "config.json, the chat template", "calls of tools": "in XML",
                     "thoughts": "none"}  # fmt: skip


def test_evidence_but_calibration() -> None:
    evidence = {"golden": {"recorded": True, "graphs": {"vision_encoder": [1, 2]}}, "calibration": {"x": 1}}
    shown = named(inspect._evidence(bundle(evidence=evidence)))
    assert shown == {"golden: recorded": "True", "golden: graphs: vision encoder": "1, 2"}
    assert cells(inspect._evidence(bundle(evidence={}))) == [("none", "nothing else was recorded")]


def test_where_a_bundle_comes_from() -> None:
    adapter = {"name": "folder", "base": "n", "rank": 8, "alpha": 16, "dora": False, "modules": 1, "saved": 0}
    plain: dict[str, Any] = {"name": "n", "license": None, "files": {}}
    whole = {**plain, "license": "mit", "parameters": 12_000, "hub": {"repository": "x/n", "commit": "c0"},
             "quantization": {"method": "awq", "declared_in": "config.json"}, "adapter": adapter}  # fmt: skip
    assert list(inspect._origin(convert(plain, Source))) == ["n"]
    assert list(inspect._origin(convert(whole, Source))) == [
        "n",
        "commit c0",
        "quantized by awq",
        "with the adapter folder merged into it",
    ]
    known = {**whole, "adapter_hub": {"repository": "tiny/lora", "commit": "c1"}}
    assert list(inspect._origin(convert(known, Source)))[-1] == "with the adapter tiny/lora commit c1 merged into it"
    for source, licence in ((plain, "not stated"), (whole, "mit")):
        made = bundle(source=source, family="f", target="t", tools={"onnx": "1"})
        assert named(inspect._identity(made))["licence"] == licence
    assert named(inspect._identity(made))["parameters"] == "12,000"


def test_what_was_built_for_gpus() -> None:
    plain: dict[str, Any] = {"flavour": "rtx", "version": "1.2", "capabilities": ["8.9", "12.0"],
                             "layers": {"MatMul": 3, "Add": 1}, "profiles": [{}]}  # fmt: skip
    known: dict[str, object] = {
        "capabilities": ["8.9"],
        "kernels": 7,
        "fused": 2,
        "written_out": ["a", "b"],
        "recordable": True,
    }
    graphs = {"decoder": {"engine": {**plain, "kernels": known}}, "mtp": {"engine": plain}, "vision_encoder": {},
              "other": {"engine": {**plain, "kernels": {**known, "recordable": False}}}}  # fmt: skip
    head = ("rtx 1.2", "8.9, 12.0", "3 MatMul, 1 Add")
    assert cells(cast(Table, inspect._engines(bundle(graphs=graphs)))) == [
        ("decoder", *head, "7", "2", "2", "yes"), ("mtp", *head, *["not known"] * 4),
        ("other", *head, "7", "2", "2", "no"),
    ]  # fmt: skip
    assert inspect._engines(bundle(graphs={"decoder": {}})) is None


def test_verdicts_row_by_row() -> None:
    rows = [SimpleNamespace(case="c", output="o", figure="f", value=0.12345, limit=limit, passed=passed)
            for limit, passed in ((0.2, True), (0.1, False), (None, True))]  # fmt: skip
    shown = cells(verify._verification(cast(Any, SimpleNamespace(reference="r", rows=rows))))
    assert [row[3:] for row in shown] == [("0.123", "0.2", ""), ("0.123", "0.1", "FAILED"), ("0.123", "", "")]


def test_the_files_of_a_graph_count_together() -> None:
    files = {"decoder.onnx": 10, "decoder.data": 1990, "vision_encoder.engine": 5, "tokenizer.json": 7,
             **{f"golden/{name}": 100 for name in "abcd"}, "model.gguf": 3}  # fmt: skip
    assert sorted(component_sizes(files)) == [
        ("decoder", "decoder.data, decoder.onnx", size(2000)),
        ("golden", "golden/a, golden/b, golden/c, …", size(400)),
        ("model.gguf", "model.gguf", size(3)), ("tokenizer.json", "tokenizer.json", size(7)),
        ("vision encoder", "vision_encoder.engine", size(5)),
    ]  # fmt: skip
    assert component_sizes({f"golden/{name}": 1 for name in "abc"})[0][1] == "golden/a, golden/b, golden/c"


@pytest.mark.parametrize("kept", [True, False])
def test_how_calibrated_weights_did(kept: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The same top token over all positions, right answers over all tasks."""

    def judged(part: float) -> dict[str, Any]:
        kinds = {"text": 30, "image": 10}
        return {"kl": dict.fromkeys(kinds, part), "top1": {"text": part, "image": 1.0}, "positions": kinds,
                "accuracy": {"a": part, "b": 1.0}, "perplexity": 2.5, "drafts": {"accepted": part / 2},
                "groups": {"own": part / 10}}  # fmt: skip

    made = {"judgement": {"float": judged(0.0), "nearest": judged(0.25), "calibrated": judged(0.5)}, "method": "gptq",
            "tried": {"descent": ["own"], "gptq": []}, "kept": kept, "samples": {}}  # fmt: skip
    print_calibration(made)
    said = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line.split() for line in reversed(said.splitlines())}
    assert lines["gptq"][1:] == ["0.5000", "0.5000", "62.5%", "2.500", "75.0%", "25.0%"]
    assert lines["rounded to nearest"][3:] == ["0.2500", "0.2500", "43.8%", "2.500", "62.5%", "12.5%"]
    assert "0.05" in said
    assert (
        f"descent was worse than gptq or rounding to nearest on own: {'gptq' if kept else 'rounding'} is kept" in said
    )
