PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/installed

help:    ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

sample: $(INSTALLED)    ## export the bundled checkpoint and sample 64 digits into samples.png
	$(BIN)/sde-onnx export examples/digits/checkpoint -o build/digits.onnx --force
	$(BIN)/sde-onnx sample build/digits.onnx --seeds 0-63 --steps $(STEPS) --zoom 4 -o samples.png --force

model: $(INSTALLED)    ## export the bundled checkpoint into the package
	$(BIN)/sde-onnx export examples/digits/checkpoint -o sde_onnx/models/digits.onnx --force

test: $(INSTALLED)    ## run the test suite
	$(BIN)/python -m pytest

runtime:    ## sample in a new environment that has neither torch nor onnx
	$(PYTHON) -m venv --clear build/runtime
	build/runtime/bin/python -m pip install --quiet -c constraints.txt .
	cd build && runtime/bin/python ../tests/runtime_only.py

lint: $(INSTALLED)    ## check style and types
	$(BIN)/ruff check .
	rm -rf build/types && mkdir -p build/types/sde_onnx
	ln -s $(CURDIR)/sde_onnx/* build/types/sde_onnx/ && ln -s $(CURDIR)/export build/types/sde_onnx/export
	$(BIN)/mypy

bench: $(INSTALLED)    ## time a sampling run against diffusers' pipeline, side by side
	$(BIN)/python benchmarks/digits.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev -e '.[export]'
	touch $(INSTALLED)

STEPS ?= 200

.PHONY: help sample model test runtime lint bench
