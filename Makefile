# make test   everything that must pass before a change goes in
# make demo   the main job on a small trained model: export, ask, verify, compare with PyTorch
# make clean  remove what these made

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
MODEL = tests/tiny_vlm/qwen3_vl
HELDOUT = tests/tiny_vlm/heldout
IMAGE = $(HELDOUT)/images/0001.png
BUNDLE = build/qwen3_vl-int4
LIMIT ?= 50
JOBS ?= 2
KERNELS = runtimes/engines/kernels/kernels.so

.PHONY: setup test lint demo clean

setup: $(VENV)/ready

# torchvision only lends its image functions, and its published wheel asks for another build of torch: no dependencies.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[export,report,video,hub,sign,dev]' torch transformers
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps torchvision
	-$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gguf]'  # built from source: tests of it skip without
	touch $@

# Installing compiles them too. Without a compiler, or on another system, there are none and their tests skip.
$(KERNELS): $(wildcard runtimes/engines/kernels/*.[ch]) hatch_build.py | setup
	$(BIN)/python hatch_build.py --where-possible

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint $(KERNELS)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

demo: setup $(KERNELS)
	$(BIN)/lensmith export $(MODEL) -o $(BUNDLE) --precision int4 --golden always --force
	$(BIN)/lensmith run $(BUNDLE) "What word is written?" --image $(IMAGE) --timings
	$(BIN)/lensmith verify $(BUNDLE)
	$(BIN)/lensmith compare $(BUNDLE) --against $(MODEL) --tasks $(HELDOUT)/tasks.jsonl --limit $(LIMIT) \
	  --html build/report.html --json build/report.json
	@echo build/report.html

clean:
	rm -rf build dist $(VENV)
