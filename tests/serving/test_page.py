"""The page, used as a person would: an image dropped, a question typed, an answer read while it comes; on a phone."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes import Model
from PIL import Image

from tests.helpers import chromium
from tests.helpers.scripted import script

pytest.importorskip("fastapi", reason="needs lensmith[serve]")
from tests.helpers.served import served

pytestmark = pytest.mark.skipif(chromium.program() is None, reason="needs Chromium")
PHONE, SCREEN = (390, 844), (1280, 800)
LONG_WORD = "lens" * 60
SAID = "document.querySelector('article.assistant .said')?.textContent"
WIDEST = "Math.max(...[...document.querySelectorAll('*')].map(each => each.getBoundingClientRect().right))"


def test_an_image_is_dropped_and_asked_about(thinker: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thoughts, answer = "Let me look at it closely.", f"It is a {LONG_WORD} made of glass."
    script(monkeypatch, thinker, f"<think>\n{thoughts}\n</think>\n\n{answer}")
    run, asked = thinker.decoder.run, list[int]()

    def slow(*given: Any) -> Any:
        time.sleep(0.02)
        asked.append(0 if given[1].images is None else len(given[1].images))
        return run(*given)

    monkeypatch.setattr(thinker.decoder, "run", slow)
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((300, 1200, 3), 90, np.uint8)).save(picture)
    with served({"a model": thinker}) as address, chromium.page(tmp_path / "profile") as page:
        page.resize(*PHONE, phone=True)
        page.open(address)
        page.wait("document.querySelector('#model').value === 'a model'")
        page.drop(picture, 100, 300)
        page.wait("document.querySelectorAll('#thumbs img').length === 1")
        page.type("#question", f"What is this {LONG_WORD}?")
        lengths: list[int] = []
        page.wait("/first token/.test(document.querySelector('.figures')?.textContent)",
                  lambda _: lengths.append(len(page.see(SAID) or "")))  # fmt: skip
        assert len(set(lengths)) > 3  # it came piece by piece
        assert lengths == sorted(lengths)
        assert page.see(SAID) == answer
        details = "document.querySelector('article.assistant details')"
        assert page.see(f"{details}.open") is False
        assert page.see(f"{details}.querySelector('summary').textContent") == "Thinking"
        assert thoughts in page.see(f"{details}.textContent")
        figures = page.see("document.querySelector('.figures').textContent")
        assert re.fullmatch(r"first token \d+\.\d\d s, all \d+\.\d\d s, [\d.]+ tokens/s, "
                            r"prompt \d+ \(\d+ cached\), answer \d+", figures)  # fmt: skip
        assert page.see("document.querySelectorAll('article.user img').length") == 1
        assert max(asked) > 0  # the model saw it
        for width, height in (PHONE, SCREEN):
            page.resize(width, height, phone=width == PHONE[0])
            assert page.see("document.documentElement.scrollWidth") <= width
            assert page.see(WIDEST) <= width
        page.type("#question", "And now?")
        page.wait("document.querySelectorAll('.figures').length === 2 && "
                  "/first token/.test(document.querySelectorAll('.figures')[1].textContent)")  # fmt: skip
        again = page.see("document.querySelectorAll('.figures')[1].textContent")
        assert int(re.findall(r"\((\d+) cached", again)[0]) > 0  # the history is as the model left it
        outside = [each for each in page.requests if not each.startswith((address, "data:", "blob:", "about:"))]
        assert (outside, page.problems) == ([], [])


def test_what_goes_wrong_is_shown(thinker: Model, tmp_path: Path) -> None:
    with served({"model": thinker}) as address, chromium.page(tmp_path / "profile") as page:
        page.open(address)
        page.wait("document.querySelector('#model').value === 'model'")
        page.type("#question", "word " * 1500)
        assert "the context holds 1024" in page.wait("document.querySelector('.error')?.textContent")
