# make test         everything that must pass before a change goes in
# make test-slow    the tests that it leaves out: those of tests/slow.txt, which take long and have quicker siblings
# make demo         the main job on a small trained model: export, ask, verify, compare with PyTorch
# make docs         the documentation as pages in build/site, strictly
# make test-oldest  the tests with the oldest versions that pyproject.toml allows, in a folder of its own
# make lint-platforms   mypy as on Windows and on macOS, which finds calls that these lack
# make test-arm     tests on emulated Arm processors, all of them; `make test` has a few
# make wheels       the wheels of all platforms and the sdist in build/wheels, and what is in them
# make clean        remove what these made

PYTHON ?= python3
VENV ?= .venv
OLDEST = .venv-oldest
PACKAGER = .venv-wheels
WHEELS = build/wheels
CONSTRAINTS ?= constraints.txt
BIN = $(VENV)/bin
MODEL = tests/tiny_vlm/qwen3_vl
HELDOUT = tests/tiny_vlm/heldout
IMAGE = $(HELDOUT)/images/0001.png
BUNDLE = build/qwen3_vl-int4
LIMIT ?= 25
JOBS ?= 2
TESTS ?= tests
KERNELS = runtimes/engines/kernels/kernels.so

INSTALL = $(BIN)/python -m pip install --quiet -c $(CONSTRAINTS)

.PHONY: setup test test-slow test-oldest test-arm lint lint-platforms demo docs wheels clean

# Two stamps: what the demo needs, and what the tests need beside it. llama.cpp comes as source and takes minutes.
$(VENV)/demo-ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[export,report]' torch transformers
	$(INSTALL) --no-deps torchvision  # lends its image functions alone; its wheel asks for another build of torch
	touch $@

$(VENV)/ready: $(VENV)/demo-ready
	$(INSTALL) -e '.[export,torch,report,tasks,video,hub,sign,serve,constrain,dev,docs]'
	$(INSTALL) llama-cpp-python || echo 'llama.cpp was not built: tests of it are skipped'
	mkdir -p build/node && cp examples/node/package.json build/node && cd build/node && \
	  npm install --ignore-scripts --no-audit --no-fund || echo 'no packages from npm: tests of examples/node are skipped'
	touch $@

setup: $(VENV)/ready

# Installing compiles them too. Without a compiler, or on another system, there are none and their tests skip.
$(KERNELS): $(wildcard runtimes/engines/kernels/*.[ch]) hatch_build.py | $(VENV)/demo-ready
	$(BIN)/python hatch_build.py --where-possible

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lint-platforms: setup
	for platform in win32 darwin; do \
	  $(BIN)/mypy --platform $$platform --cache-dir .mypy_cache/$$platform .src/lensmith || exit 1; done

# -rs: what was skipped, and why.
test: lint $(KERNELS)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile -rs -m 'not slow' $(TESTS)

test-slow: setup $(KERNELS)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -rs -m slow $(TESTS)

test-oldest:
	$(MAKE) $(OLDEST)/ready $(KERNELS) VENV=$(OLDEST) CONSTRAINTS=constraints-oldest.txt
	$(OLDEST)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile -rs $(TESTS)

test-arm: setup $(KERNELS)
	LENSMITH_ARM_TESTS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -rs tests/arm

docs: setup
	$(BIN)/mkdocs build --strict

$(PACKAGER)/ready: $(CONSTRAINTS)
	$(PYTHON) -m venv $(PACKAGER)
	$(PACKAGER)/bin/python -m pip install --quiet -c $(CONSTRAINTS) auditwheel hatchling lief twine ziglang
	touch $@

# zig compiles parts of each system's C library at the first time, which takes minutes.
wheels: $(PACKAGER)/ready
	rm -rf $(WHEELS)
	$(PACKAGER)/bin/python build_wheels.py --out $(WHEELS)
	$(PACKAGER)/bin/twine check --strict $(WHEELS)/*
	for wheel in $(WHEELS)/*manylinux*; do $(PACKAGER)/bin/auditwheel show $$wheel || exit 1; done
	$(PACKAGER)/bin/python -m tests.wheels.check_wheels $(WHEELS)

demo: $(VENV)/demo-ready $(KERNELS)
	$(BIN)/lensmith export $(MODEL) -o $(BUNDLE) --precision int4 --golden always --force
	$(BIN)/lensmith run $(BUNDLE) "What word is written?" --image $(IMAGE) --timings
	$(BIN)/lensmith verify $(BUNDLE)
	$(BIN)/lensmith compare $(BUNDLE) --against $(MODEL) --tasks $(HELDOUT)/tasks.jsonl --limit $(LIMIT) \
	  --html build/report.html --json build/report.json
	@echo build/report.html

clean:
	rm -rf build dist $(VENV) $(OLDEST) $(PACKAGER)
