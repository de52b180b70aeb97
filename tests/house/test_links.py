"""The links in .src/lensmith: made where git wrote files of text in their place, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

import hatch_build


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A checkout as git makes it with core.symlinks=false."""
    made = tmp_path / ".src" / "lensmith"
    made.mkdir(parents=True)
    for name in hatch_build.LINKED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "here.py").touch()
        (made / name).write_text(f"../../{name}")
    return made


def test_the_links_of_this_checkout_are_all() -> None:
    committed = {path.name for path in hatch_build.PACKAGE.iterdir() if path.suffix != ".py" and path.is_dir()}
    assert committed - {"__pycache__"} == set(hatch_build.LINKED)
    assert hatch_build.make_links() == ""


def test_files_of_text_become_links(package: Path) -> None:
    (package / "cli").unlink()  # or are missing
    for _ in range(2):  # what is right stays
        assert hatch_build.make_links(package) == ""
        for name in hatch_build.LINKED:
            assert (package / name).readlink() == Path(f"../../{name}")
            assert (package / name / "here.py").is_file()


@pytest.mark.parametrize("kind", ["text", "folder", "copy"])
def test_something_else_is_left_alone(package: Path, kind: str) -> None:
    link = package / "runtimes"
    link.unlink()
    if kind == "text":
        link.write_text("somewhere/else")
    else:
        link.mkdir()
        if kind == "copy":
            (link / "here.py").touch()
    said = hatch_build.make_links(package)
    assert str(link) in said
    assert "remove it" in said
    assert not link.is_symlink()
    assert link.exists()


def test_where_no_link_can_be_made(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path, target_is_directory: bool = False) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    said = hatch_build.make_links(package)
    assert "required privilege" in said
    assert "core.symlinks=true" in said
    assert (package / "calibration").read_text() == "../../calibration"


def test_an_editable_install_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class App:
        def abort(self, text: str) -> None:
            raise SystemExit(text)

    monkeypatch.setattr(hatch_build, "make_links", lambda: "no link")
    hook = hatch_build.KernelsHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel", App())  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="no link"):
        hook.initialize("editable", {"force_include": {}})
