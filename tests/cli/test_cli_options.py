"""Options of run and chat: obeyed or refused; variables, tools and their results; no option twice."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lensmith.cli.app import lensmith
from lensmith.cli.option_types import Once
from lensmith.cli.talk import Talk
from lensmith.cli.template_options import read_variables
from lensmith.cli.verbs import MEANT
from lensmith.exporters.families.families import FAMILIES
from lensmith.exporters.pipeline import Options, export, prepare
from lensmith.exporters.synth.making import synth
from lensmith.runtimes.bundle.input_sections import Speech
from lensmith.runtimes.dialogue.dialogue_parser import DialogueParser
from lensmith.runtimes.generation.answer import Answer, Progress
from lensmith.runtimes.generation.options import GenerationOptions
from lensmith.runtimes.generation.timings import Timings
from lensmith.targets.errors import InputError
from PIL import Image

from tests.helpers.extras import Ran

Cli = Callable[..., Ran]
SHORT = ("--max-new-tokens", 6, "--json")
TOOL = {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose template reads enable_thinking."""
    folder = tmp_path_factory.mktemp("thinker")
    source = synth("tarn-2b", folder / "source", tiny=True)
    return export(prepare(source, Options(precision="fp32")), folder / "bundle", golden="never").path


def ids(ran: Ran) -> list[int]:
    assert ran.code == 0, ran.err
    found: list[int] = json.loads(ran.out)["ids"]
    return found


def test_a_temperature_means_sampling(cli: Cli, tiny_bundle: Path) -> None:
    run = ("run", tiny_bundle, "Tell", *SHORT)
    greedy = ids(cli(*run, "--greedy"))
    assert ids(cli(*run, "--temperature", 0)) == greedy
    hot = [ids(cli(*run, "--temperature", 50, "--top-k", 0, "--top-p", 1, "--seed", seed)) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    assert greedy not in hot


REFUSED: list[tuple[tuple[Any, ...], str]] = [
    (("--max-new-tokens", 99999999999), "from 1 to 16777216"), (("--max-new-tokens", 0), "max-new-tokens"),
    (("--temperature", -1), "temperature is -1"), (("--temperature", "nan"), "temperature is nan"),
    (("--temperature", "1e12"), "temperature is 1000000000000"), (("--temperature", 0, "--sample"), "has no effect"),
    (("--greedy", "--top-p", 0.5), "top_p is 0.5, which has no effect"),
    (("--greedy", "--temperature", 1), "no effect"),
    (("--top-p", "inf"), "top_p is inf"), (("--top-k", -1), "top_k is -1"), (("--seed", -1), "seed is -1"),
    (("--stop", ""), "stop is"), (("--repetition-penalty", 0), "repetition_penalty is 0"),
    (("--min-p", 2), "min_p is 2"),
    (("--threads", 1000), "threads is 1000"), (("--context", 10**12), "context"), (("--fps", 1), "no video is given"),
    (("--max-pixels", 4096), "--max-pixels has no effect"), (("--min-pixels", 4096), "--min-pixels has no effect"),
    (("--max-video-pixels", 8192), "--max-video-pixels has no effect"),
    (("--frames", 4), "no video is given"), (("--think",), "'enable_thinking' is neither"),
    (("--variable", "enable_thinking=false"), "'enable_thinking' is neither"),
    (("--variable", "add_vision_ids=1"), "did you mean"),
    (("--variable", "seed=1"), "'seed' is neither"), (("--variable", "x"), "NAME=VALUE"),
    (("--variable", "a b=1"), "NAME=VALUE"),
    (("--variable", "tools=[]", "--variable", "tools=[]"), "given twice"),
    (("--tools", "no-such-file"), "cannot be read"),
    (("--variable", "tools=5"), "tools is a int"), (("--seed", 1, "--seed", 1), "--seed is given twice"),
    (("--json", "--json"), "--json is given twice"), (("--sample", "--greedy"), "given twice"),
    (("--system", "a", "--system", "b"), "--system is given twice"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused_options_of_run(number: int, cli: Cli, tiny_bundle: Path) -> None:
    options, words = REFUSED[number]
    ran = cli("run", tiny_bundle, "Tell", *options)
    assert ran.code == 2
    assert words in ran.err
    assert ran.err.count("\n") == 1
    assert "--json" in options or ran.out == ""


def test_variables_reach_the_template(cli: Cli, thinker: Path, tiny_bundle: Path) -> None:
    def tokens(bundle: Path, *options: Any) -> int:
        ran = cli("run", bundle, "Tell", "--max-new-tokens", 1, "--json", *options)
        assert ran.code == 0, ran.err
        return int(json.loads(ran.out)["timings"]["prompt_tokens"])

    plain = tokens(thinker)
    assert tokens(thinker, "--no-think") == plain == tokens(thinker, "--variable", "enable_thinking=false")
    assert tokens(thinker, "--think") == tokens(thinker, "--variable", "enable_thinking=true") < plain
    picture = Image.new("RGB", (64, 64))
    path = thinker.parent / "picture.png"
    picture.save(path)
    shown = tokens(tiny_bundle, "--image", path)
    assert tokens(tiny_bundle, "--image", path, "--variable", "add_vision_id=true") > shown
    both = cli("run", thinker, "Tell", "--think", "--variable", "enable_thinking=true")
    assert both.code == 2
    assert "say the same thing" in both.err


def test_tools_reach_the_template(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([TOOL]), encoding="utf-8")
    ran = cli("run", tiny_bundle, "Tell", "--tools", path, *SHORT)
    made = json.loads(ran.out)
    assert made["timings"]["prompt_tokens"] > 100
    assert made["tool_calls"] == []
    path.write_text(json.dumps([TOOL["function"]]), encoding="utf-8")  # without what OpenAI puts around it
    assert json.loads(cli("run", tiny_bundle, "Tell", "--tools", path, *SHORT).out)["timings"]["prompt_tokens"] > 90
    for content, words in [("[", "not valid JSON"), ("{}", "no list of named tools"), ("[]", "no list of named tools"),
                           ('[{"type": "function"}]', "no list of named tools"),
                           ("[3]", "no list of named tools")]:  # fmt: skip
        path.write_text(content, encoding="utf-8")
        ran = cli("run", tiny_bundle, "Tell", "--tools", path)
        assert (ran.code, words in ran.err) == (2, True), ran.err


def test_answers_of_a_form(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance", reason="needs lensmith[constrain]")
    ran = cli("run", tiny_bundle, "Tell", "--choice", "yes", "--choice", "no", *SHORT)
    assert json.loads(ran.out)["text"] in ("yes", "no")
    assert json.loads(cli("run", tiny_bundle, "Tell", "--regex", "[ab]", *SHORT).out)["text"] in ("a", "b")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": [7]}')
    grammar.write_text('start: "ok"')
    assert json.loads(cli("run", tiny_bundle, "Tell", "--json-schema", schema, *SHORT).out)["text"] == "7"
    assert json.loads(cli("run", tiny_bundle, "Tell", "--grammar", grammar, *SHORT).out)["text"] == "ok"
    for given, words in [(("--json-schema", "none.json"), "none.json"), (("--regex", "(["), "regex cannot be obeyed"),
                         (("--regex", "a", "--choice", "b"), "two forms of one answer")]:  # fmt: skip
        ran = cli("run", tiny_bundle, "Tell", *given)
        assert (ran.code, words in ran.err) == (2, True), ran.err


def test_values_of_variables() -> None:
    given = ("a=true", "b=1.5", "c=[1]", 'd="x"', "e=plain text=1", "f=", "g=NaN", "h=null")
    assert read_variables(None, None, given) == {  # type: ignore[arg-type]
        "a": True, "b": 1.5, "c": [1], "d": "x", "e": "plain text=1", "f": "", "g": "NaN", "h": None,
    }  # fmt: skip


class Told:
    """A model that gives answers in order, and remembers what it was asked."""

    prompts = SimpleNamespace(reads_thoughts=True)

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), []  # type: tuple[list[str], list[tuple[Any, Any]]]

    def generate(self, messages: Any, options: Any, **variables: Any) -> Any:
        self.asked.append((messages, variables))
        text = self.answers.pop(0)

        speech = Speech(tool_calls="xml", reasoning=True)
        ids = (f"id{number}" for number in itertools.count())
        parser = DialogueParser(speech, variables.get("tools"), make_id=lambda: next(ids))
        return Answer((piece for piece in (text[:9], text[9:])), Progress(Timings()), parser)


def talk(model: Told, typed: str, monkeypatch: pytest.MonkeyPatch, **variables: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    Talk(model, GenerationOptions(), None, {"fps": 1.0}, variables).loop()  # type: ignore[arg-type]


def test_results_of_tools_in_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    two = "".join(
        f'<tool_call>{{"name": "{name}", "arguments": {{"x": "ä"}}}}</tool_call>' for name in ("zoom", "turn")
    )
    model = Told(two, "done", "bye")
    talk(model, "Look\n/tool turn left\n/tool zoom 2 times\nThanks\n", monkeypatch, tools=[TOOL])
    messages, variables = model.asked[1]
    assert variables == {"tools": [TOOL]}
    calls = [{"id": f"id{i}", "type": "function", "function": {"name": name, "arguments": '{"x": "ä"}'}}
             for i, name in enumerate(("zoom", "turn"))]  # fmt: skip
    assert messages[1] == {"role": "assistant", "content": None, "tool_calls": calls}
    assert messages[2:] == [{"role": "tool", "tool_call_id": "id1", "name": "turn", "content": "left"},
                            {"role": "tool", "tool_call_id": "id0", "name": "zoom", "content": "2 times"}]  # fmt: skip
    assert [message["role"] for message in model.asked[2][0]] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "user",
    ]
    told = capsys.readouterr().err
    assert '(calls zoom {"x": "ä"}; answer with /tool zoom RESULT)' in told
    assert "(still to come: zoom)" in told


def test_thoughts_in_chat_are_shown_beside_the_answer_and_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Told("<think>\nIs it?\n</think>\n\nIt is.", "bye")
    talk(model, "Look\nThanks\n", monkeypatch)
    assert model.asked[1][0][1] == {"role": "assistant", "content": "It is.", "reasoning_content": "Is it?"}
    model = Told("<think>\nIs it?\n</think>\n\nIt is.", "bye")
    model.prompts = SimpleNamespace(reads_thoughts=False)
    told = capsys.readouterr()
    talk(model, "Look\nThanks\n", monkeypatch)
    assert model.asked[1][0][1] == {"role": "assistant", "content": "It is."}
    assert told.out == "It is.\nbye\n"
    assert told.err == "Is it?\n"


@pytest.mark.parametrize(
    ("typed", "words"),
    [("Look\n/tool zom 1\n", "did you mean 'zoom'"), ("/tool zoom 1\n", "calls no tool"),
    ("Look\n/tool zoom\n", "is empty"),
     ("Look\n/tool\n", "without a name"), ("Look\n/reset\n/tool zoom 1\n", "calls no tool")],
)  # fmt: skip
def test_unusable_results_of_tools(typed: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=words):
        talk(Told('<tool_call>{"name": "zoom"}</tool_call>', "x"), typed, monkeypatch, tools=[TOOL])


def test_media_and_wishes_are_of_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wishes for frames go with videos alone; what was shown is not shown again."""
    for name in ("a.png", "b.gif"):
        (tmp_path / name).touch()
    model = Told("one", "two", "three")
    typed = f"/image {tmp_path / 'a.png'}\nLook\n/video {tmp_path / 'b.gif'}\nAnd this?\nThanks\n"
    talk(model, typed, monkeypatch)
    first, second, third = (messages[-1]["content"] for messages, _ in model.asked)
    assert [part["type"] for part in first] == ["image", "text"]
    assert [part["type"] for part in second] == ["video", "text"]
    assert second[0]["fps"] == 1.0
    assert "fps" not in first[0]
    assert [part["type"] for part in third] == ["text"]


def test_system_messages_and_starting_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "a.png"
    picture.touch()
    model = Told("a", "b", "c", "d")
    talk(
        model, f"One\n/system Be brief.\nTwo\n/image {picture}\n/reset\nThree\n/system\nFour\n/quit\nno\n", monkeypatch
    )
    roles = [[message["role"] for message in messages] for messages, _ in model.asked]
    assert roles == [["user"], ["system", "user"], ["system", "user"], ["user"]]
    assert model.asked[1][0][0]["content"] == "Be brief."
    assert [part["type"] for part in model.asked[2][0][1]["content"]] == ["text"]  # the image was forgotten, too


def test_a_question_in_place_of_a_result_takes_those_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model waits for two; one comes, and then the user goes on. Nothing is left over for later."""
    two = "".join(f'<tool_call>{{"name": "{name}"}}</tool_call>' for name in ("zoom", "turn"))
    model = Told(two, "well", "bye")
    talk(model, "Look\n/tool zoom 2\nNever mind\nThanks\n", monkeypatch, tools=[TOOL])
    assert [message["role"] for message in model.asked[1][0]] == ["user", "assistant", "tool", "user"]
    assert [message["role"] for message in model.asked[2][0]][4:] == ["assistant", "user"]
    with pytest.raises(InputError, match="calls no tool"):
        talk(Told(two, "well"), "Look\nNever mind\n/tool zoom 2\n", monkeypatch, tools=[TOOL])


@pytest.mark.parametrize(
    ("typed", "words"), [("/imag x\n", "did you mean 'image'"), ("/image none.png\n", "is not a file")]
)
def test_the_first_mistake_in_piped_input_ends_it(typed: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Told("never")
    with pytest.raises(InputError, match=words):
        talk(model, f"{typed}Look\n", monkeypatch)
    assert not model.asked


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    source = synth("arlow-vision", folder / "source", tiny=True)
    return export(prepare(source, Options(precision="fp32")), folder / "bundle", golden="never").path


@pytest.mark.parametrize(
    "options",
    [("--system", "a"), ("--temperature", 1), ("--max-new-tokens", 5), ("--timings",), ("--stop", "x"), ("--think",),
     ("--variable", "a=1"), ("--seed", 1), ("--greedy",), ("--max-video-pixels", 4096), ("--fps", 2), ("--frames", 2)],
)  # fmt: skip
def test_options_without_effect_on_encoders(options: tuple[Any, ...], cli: Cli, encoder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(picture)
    ran = cli("run", encoder, "--image", picture, "-o", tmp_path / "f.npz", *options)
    assert ran.code == 2
    assert options[0] in ran.err
    assert "no effect" in ran.err


def test_no_command_takes_an_option_twice(cli: Cli) -> None:
    for name, command in lensmith.commands.items():
        assert isinstance(command, Once), name
    for arguments in (("targets", "--json", "--json"), ("inspect", "x", "--tensors", "--tensors"),
                      ("export", "x", "-o", "a", "--out", "b"),
                      ("plan", "x", "--precision", "int4", "--precision", "int8")):  # fmt: skip
        ran = cli(*arguments)
        assert (ran.code, "is given twice" in ran.err) == (2, True), ran.err


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    asked, alone = cli("--help"), cli()
    assert (asked.code, asked.err) == (0, "")
    assert (alone.code, alone.out, alone.err) == (2, "", asked.out)


def test_the_list_of_commands_is_whole(cli: Cli) -> None:
    """Each with a sentence that fits in its line, in the order of the main job."""
    listed = cli("--help").out.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == [*lensmith.commands]
    assert [line.split()[0] for line in listed[:3]] == ["plan", "export", "run"]
    assert all(line.endswith(".") and not line.endswith("..") for line in listed)


def test_synth_says_what_it_knows(cli: Cli) -> None:
    said = set(re.findall(r"[\w.-]+\w", cli("synth", "--help").out))
    assert {name for family in FAMILIES.values() for name in family.synth} <= said


@pytest.mark.parametrize("name", MEANT)
def test_names_of_others(name: str, cli: Cli) -> None:
    """What is suggested is a command, and the name is none."""
    assert name not in lensmith.commands
    verb, *rest = MEANT[name].split()
    known = {option for each in lensmith.commands[verb].params for option in each.opts}
    assert {word for word in rest if word.startswith("-")} <= known
    assert f"try: lensmith {MEANT[name]};" in cli(name).err
