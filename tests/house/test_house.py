"""Rules of the house: arrows between the folders, a light runtime, a whole wheel, commands that exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.extras import EXTRAS, run_without
from tests.helpers.slow import slow_tests
from tests.paths import ROOT

FOLDERS = ("cli", "exporters", "runtimes", "serving", "calibration", "targets")
MAY_IMPORT = {
    "targets": {"targets"},
    "runtimes": {"targets", "runtimes"},
    "exporters": {"targets", "runtimes", "exporters"},
    "calibration": {"targets", "runtimes", "exporters", "calibration"},
    "serving": {"targets", "runtimes", "serving"},
    "cli": {"targets", "runtimes", "exporters", "calibration", "serving", "cli"},
}
OPTIMUM = ROOT / "cli" / "optimum_register.py"  # belongs to optimum's namespace, imports by full names
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path != OPTIMUM)
BASE_ONLY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "matplotlib", "safetensors", "ml_dtypes")
START_MODULES = 650  # behind `import lensmith.runtimes`; they are about 500, and PyTorch alone has twice as many
COMPILED = "runtimes/engines/kernels/kernels."
LIGHT = ("runtimes", "targets", "exporters.reports", "cli")  # what a device imports


@pytest.mark.parametrize("row", slow_tests())
def test_slow_tests_exist(row: str) -> None:
    path, _, name = row.partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")
    assert not name or f"def {name.partition('[')[0]}(" in source


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """The folders that a file imports from, in functions too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["lensmith", *package[: len(package) - node.level + 1]] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [stem] if node.module else [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("lensmith."))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_arrows(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    assert set(imported(path)) <= MAY_IMPORT[folder]


def test_arrows_are_seen() -> None:
    assert set(imported(ROOT / "exporters" / "pipeline.py")) >= {"runtimes", "targets"}
    assert set(imported(ROOT / "runtimes" / "bundle" / "opening.py")) >= {"runtimes", "targets"}


IMPORT_ALL = """
import importlib
for name in sys.argv[1:]:
    try:
        importlib.import_module("lensmith." + name)
    except ImportError as error:
        print(name, (error.name or "").split(".")[0])
"""


def test_only_the_exporters_need_extras() -> None:
    names = [module_name(path) for path in MODULES if path.stem != "__main__"]
    ran = run_without(EXTRAS, IMPORT_ALL, *names)
    assert ran.returncode == 0, ran.stderr
    failed = dict(line.split() for line in ran.stdout.splitlines())
    assert not [name for name in failed if name.startswith(LIGHT)]
    assert set(failed.values()) <= set(EXTRAS)
    assert "exporters.checkpoint.folder" in failed  # the block works


def test_runtime_starts_light() -> None:
    code = f"import sys, lensmith.runtimes; print(len(sys.modules), [n for n in {BASE_ONLY} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, heavy = ran.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert int(count) < START_MODULES


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in the built wheel."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return set(zipfile.ZipFile(next(out.glob("*.whl"))).namelist())


def test_wheel_holds_every_file(wheel: set[str]) -> None:
    wanted = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
    names = {f"lensmith/{path.relative_to(ROOT).as_posix()}" for path in wanted if "__pycache__" not in path.parts}
    names -= {"lensmith/cli/optimum_register.py"}
    assert names <= wheel
    assert {f"lensmith/{folder}/py.typed" for folder in FOLDERS} <= wheel
    assert {"lensmith/__init__.py", "lensmith/py.typed"} <= wheel
    assert {"lensmith/targets/profiles/cpu.toml", "lensmith/exporters/synth/synth_configs/words.txt",
            "optimum/commands/register/register_lensmith.py"} <= wheel  # fmt: skip


def test_wheel_holds_nothing_else(wheel: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"lensmith", "optimum"}
    assert not any(name.endswith("optimum/__init__.py") for name in wheel)  # optimum is a namespace of many packages
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_the_source_distribution_holds_what_a_wheel_needs(tmp_path: Path) -> None:
    """And no tests, with models that are many times as large."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        found = {member.name.partition("/")[2] for member in archive.getmembers()}
    wanted = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
    names = {path.relative_to(ROOT).as_posix() for path in wanted if "__pycache__" not in path.parts}
    others = {".src/lensmith/__init__.py", ".src/lensmith/py.typed", ".gitignore", "CHANGELOG.md", "LICENSE",
              "PKG-INFO", "README.md", "build_wheels.py", "hatch_build.py", "pyproject.toml"}  # fmt: skip
    assert found == {name for name in names if not name.startswith(COMPILED)} | others


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = re.compile(r"```(?:bash|sh|console)\n(.*?)```", re.S)
INLINE = re.compile(r"`((?:lensmith|make|python|pytest) [^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
IN_REPOSITORY = re.compile(rf"`((?:{'|'.join(FOLDERS)}|tests|docs|examples|\.ci)/[\w./-]*)`")


def commands_of(page: Path) -> list[list[str]]:
    """Every command line in a page's shell blocks, without comments and continuation, and those within its text."""
    text = page.read_text(encoding="utf-8")
    blocks = "".join(SHELL.findall(text)).replace("\\\n", " ").splitlines()
    within = [" ".join(found.split()) for found in INLINE.findall(text)]
    lines = [line.removeprefix("$ ").partition(" && ")[0] for line in (*blocks, *within)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_of_pages_exist(page: Path) -> None:
    from lensmith.cli.app import lensmith

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands_of(page):
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words
        if words[0] in ("python", "pytest"):
            files = [word for word in words if word.startswith("tests/") and word.endswith(".py") and "<" not in word]
            assert all((ROOT / name).is_file() for name in files), words
            if len(files) == 1 and "benchmarks" in files[0]:
                known = (ROOT / files[0]).read_text(encoding="utf-8")
                assert all(f'"{word}"' in known for word in words if word.startswith("--")), words
        if words[0] == "lensmith":
            options = {option for parameter in lensmith.commands[words[1]].params for option in parameter.opts}
            assert {word.split("=")[0] for word in words[2:] if word.startswith("-")} <= options, words


SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py"))}
SCRIPTS = [path for path, text in SOURCES.items() if f"python {page_name(path)}" in text]


@pytest.mark.parametrize("script", SCRIPTS, ids=page_name)
def test_scripts_find_their_package(script: Path) -> None:
    """Run by its path, a script has its own folder on the path of modules and not the root, which it must add."""
    text = SOURCES[script]
    found = re.search(r"^(from|import) tests\b", text, re.M)
    assert found is None or 0 <= text.find("sys.path.insert(0, ") < found.start()


def test_pages_name_every_command() -> None:
    from lensmith.cli.app import lensmith

    named = {words[1] for page in PAGES for words in commands_of(page) if words[0] == "lensmith"}
    assert named == set(lensmith.commands)


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        if re.match(r"[a-z]+://", link):
            continue
        name, _, fragment = link.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), link
        assert not fragment or fragment in anchors(file), link
    for name in IN_REPOSITORY.findall(text):
        assert (ROOT / name).exists(), name


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_ci_runs_the_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ["make", "test"] in commands_of(ROOT / "README.md")


def test_the_workflow_runs_the_same() -> None:
    """The command of .ci on each Python that the package names, and the pages."""
    flow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"python: {json.dumps(named)}" in flow
    assert "run: .ci/run" in flow
    assert "mkdocs build --strict" in flow


def versions(file: str) -> dict[str, tuple[str, bool]]:
    """Of each package of a file of constraints its version, and whether a remark says why it is no older."""
    rows = re.findall(r"^([\w.-]+)==([\w.]+)(  # .+)?$", (ROOT / file).read_text(encoding="utf-8"), re.M)
    return {name.lower().replace("_", "-"): (version, bool(remark)) for name, version, remark in rows}


def test_the_oldest_versions_are_those_that_are_allowed() -> None:
    """And the newest ones are no older."""
    oldest, newest = versions("constraints-oldest.txt"), versions("constraints.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    installed = ("export", "torch", "gguf", "report", "tasks", "video", "hub", "sign", "dev", "docs")
    wanted = [*project["dependencies"], *(each for name in installed for each in extras[name])]
    for requirement in wanted:
        name, bound = re.sub(r"\[.*?\]", "", requirement).lower().replace("_", "-").split(">=")
        least, given = ([*map(int, text.split(".")), 0, 0][:3] for text in (bound, oldest[name][0]))
        assert given >= least if oldest[name][1] else given == least, requirement
        assert [*map(int, newest[name][0].split("."))] >= given[: newest[name][0].count(".") + 1], requirement


def test_no_machine_and_no_unfinished_word() -> None:
    """No absolute path of a machine and no note of unfinished work in anything that people read."""
    forbidden = re.compile(r"/(?:home|Users|root|work)/|\bTO" + r"DO\b|\bFIX" + r"ME\b|\bXX" + r"X\b")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    texts = [ROOT / name for name in tracked.stdout.splitlines()
             if Path(name).suffix in (".py", ".md", ".toml", ".txt", "", ".yml", ".cfg")]  # fmt: skip
    found = [f"{path.relative_to(ROOT)}: {line.strip()[:100]}"
             for path in texts if path.is_file()
             for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
             if forbidden.search(line)]  # fmt: skip
    assert not found
