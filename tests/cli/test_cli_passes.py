"""What is chosen on the command line arrives where the work begins: each option of each command, alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import click
import pytest
from lensmith.calibration.calibration_options import CalibrationOptions
from lensmith.cli.app import lensmith
from lensmith.exporters.comparing.comparison import CompareOptions
from lensmith.exporters.formats.lowering import find_lowering
from lensmith.exporters.pipeline import Options
from lensmith.exporters.planning.proposals import Budget
from lensmith.runtimes.media.image_files import ImageLimits
from lensmith.runtimes.tuning.tuning import USUAL

from tests.paths import TINY

CHECKPOINT = TINY / "qwen3_vl"
FORM = CHECKPOINT / "generation_config.json"  # any text
Row = tuple[Any, dict[str, Any]]  # what follows an option, None for a switch, and what arrives besides
FORCE: Row = (None, {"force": True})
HUB: dict[str, Row] = {
    "--hub-revision": ("v1", {"revision": "v1"}),
    "--adapter": ("tiny/lora", {"adapter": "tiny/lora"}),
}
BUNDLE: dict[str, Row] = {
    **HUB, "--format": ("tensorrt", {"format": "tensorrt"}), "--precision": ("INT8", {"precision": "int8"}),
    "--group-size": (32, {"group_size": 32}), "--asymmetric": (None, {"symmetric": False}),
    "--target": ("cuda", {"target": "cuda"}), "--context": (1, {"context": 1}),
    "--kv-cache": ("int8", {"kv_cache": "int8"}), "--revision": ("A", {"revision of Arlow": "A"}),
    "--max-pixels": (65536, {"max_pixels": 65536}), "--tensor-type": ("ffn=q8_0", {"tensor_types": ("ffn=q8_0",)}),
}  # fmt: skip
CALIBRATION: dict[str, Any] = {
    "--calibrate": ("gptq", {"method": "gptq"}), "--samples": ("some.jsonl", {"samples": Path("some.jsonl")}),
    "--only-samples": (None, {"only_samples": True}), "--sample-count": (4, {"limit": 4}),
    "--answer-tokens": (0, {"answer_tokens": 0}), "--answer-temperature": (2, {"answer_temperature": 2.0}),
    "--seed": (0, {}), "--budget": ("1.5 kB", {"budget": 1500}), "--max-kl": (0.25, {"max_kl": 0.25}),
}  # fmt: skip
ANSWER: dict[str, Row] = {
    "--min-pixels": (1, {"min_pixels": 1}), "--max-pixels": (4096, {"max_pixels": 4096}),
    "--max-video-pixels": (8192, {"max_video_pixels": 8192}),
    "--max-image-megapixels": (0.5, {"image_limits": ImageLimits(max_decoded_pixels=500_000)}),
    "--context": (64, {"context": 64}), "--threads": (3, {"threads": 3}), "--device": ("cpu", {"device": "cpu"}),
    "--key": ("some.pub", {"keys": (Path("some.pub"),)}),
    "--max-new-tokens": (5, {"max_new_tokens": 5}), "--stop": ("end", {"stop": ("end",)}),
    "--sample": (None, {"do_sample": True}), "--greedy": (None, {"do_sample": False}),
    "--temperature": (0.5, {"temperature": 0.5}), "--top-k": (7, {"top_k": 7}), "--top-p": (0.25, {"top_p": 0.25}),
    "--min-p": (0.125, {"min_p": 0.125}), "--repetition-penalty": (1.5, {"repetition_penalty": 1.5}),
    "--seed": (0, {"seed": 0}), "--think": (None, {"enable_thinking": True}),
    "--no-think": (None, {"enable_thinking": False}), "--variable": ("mood=5", {"mood": 5}),
    "--fps": (2, {"fps": 2.0}), "--frames": (6, {"num_frames": 6}), "--system": ("Brief.", {"system": "Brief."}),
    "--thinking-budget": (9, {"thinking_budget": 9}), "--regex": ("a+", {"regex": "a+"}),
    "--choice": ("yes", {"choices": ("yes",)}), "--json-schema": (FORM, {"json_schema": FORM.read_text()}),
    "--grammar": (FORM, {"grammar": FORM.read_text()}), "--draft": (None, {"draft": True}),
    "--no-draft": (None, {"draft": False}),
}  # fmt: skip
ROWS: dict[str, dict[str, Row]] = {
    "plan": {**BUNDLE, "--memory": ("3.5GB", {"memory_bytes": 3_500_000_000}),
             "--decode": (9, {"decode_tokens_per_s": 9}),
             "--first-token": ("800ms", {"first_token_s": 0.8})},
    "export": {**BUNDLE, **{name: (value, {**more, "calibrated": True}) for name, (value, more) in CALIBRATION.items()},
               "--golden": ("never", {"golden": "never"}), "--force": FORCE,
               "--with-handler": (None, {"with_handler": True})},
    "compare": {**HUB, "--limit": (2, {"limit": 2}), "--benchmark": ("GQA", {"benchmark": "GQA"}),
                "--image": ("a.png", {"image": Path("a.png")}),
                "--repeats": (1, {"repeats": 1}), "--dtype": ("bf16", {"dtypes": ("bfloat16",)}),
                "--threads": (3, {"threads": 3})},
    "synth": {"--tiny": (None, {"tiny": True}), "--seed": (9, {"seed": 9}), "--force": FORCE},
    "build": {"--force": FORCE, "--out": ("other", {"out": Path("other")})},
    "verify": {"--device": ("cpu", {"device": "cpu"}), "--key": ("some.pub", {"trusted_keys": (Path("some.pub"),)})},
    "chat": ANSWER,
    "run": ANSWER,
}  # fmt: skip
LINES: dict[str, tuple[object, ...]] = {  # what each command is given beside the option, and what arrives then
    "plan": ("tiny/open", "--json"), "export": ("tiny/open", "--json", "--out", "new"),
    "compare": ("bundle", "--against", "tiny/open", "--tasks", "tasks.jsonl"),
    "synth": ("qwen3-vl-2b", "--out", "new"), "build": ("bundle",), "verify": ("bundle",), "chat": ("bundle",),
    "run": ("bundle", "Tell", "--image", "a.png", "--video", "b.gif"),
}  # fmt: skip
GIVEN: dict[str, dict[str, Any]] = {
    "plan": {"revision": None}, "export": {"revision": None},
    "compare": {"revision": None, "tasks": Path("tasks.jsonl")}, "synth": {"name": "qwen3-vl-2b", "path": Path("new")},
    "run": {"image": "a.png", "video": "b.gif"},
}  # fmt: skip
ELSEWHERE = {"--json", "--html", "--markdown", "--timings", "--tools"}  # how results are shown, and a file of tools
ELSEWHERE |= {"--baseline", "--fail-if", "--all-targets"}  # of other builds, of what was measured, and of all devices


class Begun(Exception):
    """The work begins."""


class Work:
    """Stands in the place of what does the work, and notes with what it was called; `chosen` leaves defaults out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chosen: dict[str, Any] = {}
        for place, stand_in in {
            "exporters.checkpoint.hub._fetched": self.fetched,
            "exporters.pipeline.prepare": self.prepare,
            "exporters.planning.planned_bundle.make_plan": self.make_plan,
            "exporters.pipeline.export": self.export,
            "calibration.calibrated_export.calibrated": self.calibrated,
            "exporters.comparing.comparison.compare": self.compare,
            "exporters.comparing.lineup.encodes_alone": lambda _: False,  # before what it imports has a stand-in
            "exporters.synth.making.synth": self.synth,
            "exporters.formats.tensorrt.finish.build": self.build,
            "runtimes.evidence.verification.verify": self.verify,
            "runtimes.bundle.opening.open_bundle": self.open_bundle,
            "runtimes.generation.loading.answers": lambda _: True,
            "runtimes.generation.model.Model": self.model,
            "runtimes.prompt.variables.checked_variables": lambda *_: None,
            "cli.talk.Talk": self.talk,
        }.items():
            monkeypatch.setattr(f"lensmith.{place}", stand_in)

    def note(self, given: Mapping[str, Any], usual: object = None) -> None:
        self.chosen |= {name: value for name, value in given.items() if value != getattr(usual, name, usual)}

    def fetched(self, name: str, revision: str | None, _: object) -> Path:
        self.chosen |= {"revision": revision} if name == "tiny/open" else {"adapter": name}
        return CHECKPOINT

    def make_plan(self, _: object, target: object, wishes: Budget) -> SimpleNamespace:
        of_both = {"context", "max_pixels"}  # of the bundle, too
        self.note({name: value for name, value in vars(wishes).items() if name not in of_both})
        return SimpleNamespace(to_json=dict)

    def prepare(self, path: Path, options: Options, *, adapter: Path | None, outline: bool) -> SimpleNamespace:
        assert path == CHECKPOINT
        assert (adapter is not None) == ("adapter" in self.chosen)
        given = {**vars(options), "revision of Arlow": options.revision}
        del given["revision"]
        self.note({name: value for name, value in given.items() if value != getattr(Options(), name, None)})
        return SimpleNamespace(lowering=find_lowering(options.format))

    def export(
        self,
        _: object,
        out: Path,
        progress: object,
        *,
        golden: str,
        force: bool,
        with_handler: bool,
        integers: object = None,
    ) -> NoReturn:
        assert (integers is self) == ("calibrated" in self.chosen)
        self.chosen |= {} if golden == "auto" else {"golden": golden}
        self.chosen |= {"force": True} if force else {}
        self.chosen |= {"with_handler": True} if with_handler else {}
        raise Begun

    def calibrated(self, options: CalibrationOptions) -> Work:
        self.note({**vars(options), "calibrated": True}, CalibrationOptions())
        return self

    def compare(
        self, _: Path, path: Path, options: CompareOptions, progress: object, *, adapter: Path | None
    ) -> NoReturn:
        assert path == CHECKPOINT
        assert (adapter is not None) == ("adapter" in self.chosen)
        assert options.command.startswith("lensmith")
        self.note({**vars(options), "command": ""}, CompareOptions())
        raise Begun

    def synth(self, name: str, path: Path, *, progress: object, **given: Any) -> NoReturn:
        self.chosen |= {"name": name, "path": path} | {key: value for key, value in given.items() if value}
        raise Begun

    def build(self, _: Path, out: Path | None, progress: object, *, force: bool) -> NoReturn:
        self.chosen |= {key: value for key, value in {"out": out, "force": force}.items() if value}
        raise Begun

    def verify(self, _: Path, **given: Any) -> NoReturn:
        self.note(given)
        raise Begun

    def open_bundle(self, _: Path, trusted_keys: object) -> str:
        self.note({"keys": trusted_keys})
        return "opened"

    def model(self, bundle: str, *, prefix_bytes: int, **loading: Any) -> SimpleNamespace:
        assert (bundle, prefix_bytes) == ("opened", 0)  # no command asks for copies: each has one conversation
        assert loading.pop("tuning") == USUAL  # nothing was measured of this bundle
        self.note(loading)
        return SimpleNamespace(
            prompts=SimpleNamespace(template=None), default_options=self.options, generate=self.answer
        )

    def options(self, stop: tuple[str, ...], **given: Any) -> str:
        self.note({**given, "stop": stop or None})
        return "options"

    def answer(self, messages: list[dict[str, Any]], options: str, **variables: Any) -> NoReturn:
        assert options == "options"
        *system, question = messages
        *media, words = question["content"]
        assert words == {"type": "text", "text": "Tell"}
        for part in media:
            self.note({name: value for name, value in part.items() if name != "type"})
        self.note({**variables, "system": system[0]["content"] if system else None})
        raise Begun

    def talk(
        self, _: object, options: str, system: str | None, wishes: dict[str, Any], variables: dict[str, Any]
    ) -> None:
        assert options == "options"
        self.note({**wishes, **variables, "system": system})
        raise Begun


@pytest.mark.parametrize("command", ROWS)
def test_each_option_arrives(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And nothing else with it: where an option is left out, the functions' own default counts."""
    monkeypatch.chdir(tmp_path)
    options = {name for option in lensmith.commands[command].params if isinstance(option, click.Option)
               for name in (option.opts[-1], *option.secondary_opts)}  # fmt: skip
    assert options - ELSEWHERE - ROWS[command].keys() <= {*LINES[command], "--out"}
    for option, (value, arrives) in {"": (None, {}), **ROWS[command]}.items():
        work = Work(monkeypatch)
        line = [command, *LINES[command], *([option] if option else []), *([] if value is None else [value])]
        with lensmith.make_context("lensmith", list(map(str, line))) as context, suppress(Begun):
            lensmith.invoke(context)
        assert work.chosen == {**GIVEN.get(command, {}), **arrives}, option
