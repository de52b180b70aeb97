"""A bundle as a repository of an inference endpoint: its handler.py is imported as there, and asked."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from lensmith.runtimes import InputError, load
from lensmith.runtimes.media import links

from tests.paths import TINY

IMAGE = TINY / "heldout" / "images" / "0001.png"
BASE64 = base64.b64encode(IMAGE.read_bytes()).decode()
QUESTION = {"type": "text", "text": "What word is written?"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ml_dtypes", reason="needs lensmith[export]")
    from lensmith.exporters.pipeline import Options, export, prepare

    out = tmp_path_factory.mktemp("endpoint") / "bundle"
    return export(prepare(TINY / "qwen3_vl", Options()), out, golden="never", with_handler=True).path


@pytest.fixture(scope="module")
def handler(bundle: Path) -> Any:
    """What the Inference Toolkit makes of the repository."""
    spec = importlib.util.spec_from_file_location("handler", bundle / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(bundle))


def about(**source: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", **source}, QUESTION]}]


FORMS: dict[str, Any] = {
    "base64": about(image=BASE64),
    "data URL": about(url=f"data:image/png;base64,{BASE64}"),
    "named base64": about(base64=BASE64),
    "image_url": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}}, QUESTION]}],
    "in a list": [about(image=BASE64)],
    "image beside text": {"image": BASE64, "text": QUESTION["text"]},
    "images beside a question": {"images": [BASE64], "question": QUESTION["text"]},
    "link": about(image="https://example.com/cat.png"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_those_of_the_model(handler: Any, bundle: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensmith.runtimes.generation.endpoint.fetched", lambda *_, **__: IMAGE.read_bytes())
    wanted = load(bundle).generate(about(image=str(IMAGE)), max_new_tokens=8).read()
    parameters = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    assert handler({"inputs": FORMS[form], "parameters": parameters}) == [{"generated_text": wanted}]


def test_a_text_alone(handler: Any, bundle: Path) -> None:
    wanted = load(bundle).generate("Say something.", max_new_tokens=8).read()
    assert handler({"inputs": "Say something.", "parameters": {"max_new_tokens": 8}}) == [{"generated_text": wanted}]


WRONG: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "conversation"),
    "path": ({"inputs": about(image="/etc/passwd")}, "base64"),
    "file": ({"inputs": about(url="file:///etc/passwd")}, "base64|image"),
    "path named path": ({"inputs": about(path="/etc/passwd")}, "base64"),
    "own network": ({"inputs": about(image="http://127.0.0.1/a.png")}, "not a public one"),
    "metadata": ({"inputs": about(image="http://169.254.169.254/latest")}, "not a public one"),
    "parameter": ({"inputs": "Hi", "parameters": {"temprature": 1}}, "temprature"),
    "parameters": ({"inputs": "Hi", "parameters": [1]}, "expected an object"),
    "several": ({"inputs": [about(image=BASE64), about(image=BASE64)]}, "one by one"),
    "unknown": ({"inputs": {"text": "Hi", "audio": "x"}}, "audio"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_obeyed_is_a_sentence(handler: Any, case: str) -> None:
    body, words = WRONG[case]
    with pytest.raises(InputError, match=words):
        handler(body)


def test_the_bundle_names_its_files(bundle: Path, cli: Any) -> None:
    from importlib.metadata import version

    assert (bundle / "requirements.txt").read_text() == f"lensmith=={version('lensmith')}\n"
    assert {"handler.py", "requirements.txt"} <= load(bundle).bundle.content["files"].keys()
    refused = cli("export", TINY / "arlow", "-o", bundle.parent / "none", "--with-handler")
    assert refused.code == 2


def test_redirections_of_strangers_are_not_followed() -> None:
    with pytest.raises(InputError, match="not known"):
        links.fetched("http://no-such-host.invalid/", public=True)
