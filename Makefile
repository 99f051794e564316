PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
VK_DRIVER_FILES ?= /usr/lib/chromium/vk_swiftshader_icd.json
INSTALLED = $(VENV)/installed

help:    ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

sample: $(INSTALLED)    ## export the bundled checkpoint and sample 64 digits into samples.png
	$(BIN)/sde-onnx export examples/digits/checkpoint -o build/digits.onnx --force
	$(BIN)/sde-onnx sample build/digits.onnx --seeds 0-63 --zoom 4 -o samples.png --force

model: $(INSTALLED)    ## export the bundled checkpoint into the package
	$(BIN)/sde-onnx export examples/digits/checkpoint -o sde_onnx/models/digits.onnx --force \
		--gradient sde_onnx/models/digits-gradient.onnx

test: $(INSTALLED)    ## run the test suite, a worker a core
	$(BIN)/python -m pytest -n auto

quick: $(INSTALLED)    ## the tests of the runtime that take no seconds, for the inner loop
	$(BIN)/python -m pytest -n auto -q -m "not thorough" tests/solvers tests/runtime tests/guidance tests/generate tests/cli \
		tests/export/graph tests/export/rewrites/test_fold.py tests/test_*.py

fuzz: $(INSTALLED)    ## 100,000 hostile cases, one a core at a time, under an hour; a report of what broke the promise of one line
	cd tests && ../$(BIN)/python -m fuzz --cases 100000

faults: $(INSTALLED)    ## stop writing processes at random moments, an hour; a report of what was lost or left
	PYTHONPATH=tests $(BIN)/python -m faults --rounds 8

mutants: $(INSTALLED)    ## put 200 small faults into the code, one a core at a time, over an hour; a report of those no test sees
	PYTHONPATH=tests $(BIN)/python -m mutants

compatibility: $(INSTALLED)    ## run files of every kind under older ONNX Runtimes, OpenVINO and Node.js; docs/embedding.md
	PYTHONPATH=tests:benchmarks $(BIN)/python -m compatibility --output benchmarks/results/compatibility.json
	$(BIN)/python benchmarks/report.py

runtime:    ## sample in a new environment that has neither torch nor onnx
	$(PYTHON) -m venv --clear build/runtime
	build/runtime/bin/python -m pip install --quiet -c constraints.txt .
	cd build && runtime/bin/python ../tests/runtime_only.py

dist: $(INSTALLED)    ## build the wheel and the source archive into build/dist
	rm -rf build/dist build/lib
	$(BIN)/python -m build --quiet --outdir build/dist .
	ls -l build/dist

wheel-test: dist    ## install the wheel into empty environments, with and without the export extra, and use it
	$(BIN)/python tests/release/wheel.py build/dist/*.whl

lowest: $(INSTALLED)    ## the tests that take no seconds, with the lowest versions of all but torch that pyproject.toml names
	$(PYTHON) -m venv --clear build/lowest
	$(BIN)/python tests/release/lowest.py > build/lowest/constraints.txt
	build/lowest/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	build/lowest/bin/python -m pip install --quiet -c build/lowest/constraints.txt -e '.[export,diffusers,plot,ode]' --group test
	build/lowest/bin/python -m pytest -n auto -q -m "not thorough"

lint: $(INSTALLED)    ## check style and types
	$(BIN)/ruff check .
	rm -rf build/types build/lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	$(BIN)/mypy

bench: $(INSTALLED)    ## time network evaluations against PyTorch, side by side: digits and 32x32
	$(BIN)/python benchmarks/evaluations.py

bench-full: $(INSTALLED)    ## the same up to 1024x1024, over an hour; README and docs/performance.md take it
	$(BIN)/python benchmarks/evaluations.py --networks digits 32 256 1024 --batches 1 4 --output benchmarks/results/cpu.json
	$(BIN)/python benchmarks/loop.py --output benchmarks/results/loop.json
	$(BIN)/python benchmarks/report.py

gpu: $(INSTALLED)    ## all that only an NVIDIA GPU can show: tests, timings, what float16 does to pictures
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py --resume --output benchmarks/results/cuda.json
	$(BIN)/python benchmarks/precision.py --provider cuda --output benchmarks/results/fp16.json
	$(BIN)/python benchmarks/report.py

quality: $(INSTALLED)    ## what solvers cost and lose on the bundled digits, hours; docs/quality.md and its pictures
	$(BIN)/python benchmarks/quality.py --output benchmarks/results/quality.json --picture docs/qualities.png
	$(BIN)/python benchmarks/report.py

docs: $(INSTALLED)    ## write what the documentation takes from the code, and the site with its API into build/site
	$(BIN)/python docs/generate.py
	rm -rf build/types build/lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

cpp: $(INSTALLED)    ## build the C++ examples against the wheel's library and Debian's headers, and test them
	(command -v cmake && command -v g++) > /dev/null || apt-get install -qq -y --no-install-recommends cmake g++ make
	mkdir -p build/cpp/lib
	$(BIN)/python -c "import onnxruntime, pathlib; print(*pathlib.Path(onnxruntime.__file__).parent.glob('capi/libonnxruntime.so.*'))" \
		| xargs -I{} ln -sf {} build/cpp/lib/libonnxruntime.so.1
	ln -sf libonnxruntime.so.1 build/cpp/lib/libonnxruntime.so
	cmake -S examples/cpp -B build/cpp -DONNXRUNTIME_LIBRARY=$(CURDIR)/build/cpp/lib/libonnxruntime.so \
		-DONNXRUNTIME_INCLUDE_DIR=$$(examples/cpp/debian_headers.sh build/cpp/headers)
	cmake --build build/cpp
	SDE_ONNX_CPP=build/cpp $(BIN)/python -m pytest -n auto tests/examples/test_cpp.py

cpp-debian: $(INSTALLED)    ## the same with the packages of Debian 13 alone, in a folder of its own; needs root
	command -v debootstrap > /dev/null || apt-get install -qq -y --no-install-recommends debootstrap
	tests/examples/debian.sh build/debian
	SDE_ONNX_CPP=build/debian/programs $(BIN)/python -m pytest tests/examples/test_cpp.py -k "not listing"

webgpu-test: web    ## model, sampler and gradient files, and the page, under WebGPU: on a GPU, or in software where VK_DRIVER_FILES says
	command -v chromium > /dev/null || apt-get install -qq -y --no-install-recommends chromium
	ldconfig -p | grep -q libvulkan.so.1 || apt-get install -qq -y --no-install-recommends libvulkan1
	$(PYTHON) -m venv --clear build/webgpu
	build/webgpu/bin/python -m pip install --quiet -c constraints.txt onnxruntime-webgpu click numpy pillow tqdm
	build/webgpu/bin/python -m pip install --quiet --no-deps .
	VK_DRIVER_FILES=$(VK_DRIVER_FILES) SDE_ONNX_WEBGPU=build/webgpu/bin/python SDE_ONNX_WEB=build/web \
		$(BIN)/python -m pytest -s tests/runtime/test_webgpu.py tests/examples/test_web.py -k "webgpu or gpu"

web: $(INSTALLED)    ## build the page of examples/web into build/web, for any static host
	cd examples/web && npm ci --no-audit --no-fund
	$(BIN)/python examples/web/build.py build/web

web-test: web    ## the same, and test it in headless Chromium
	command -v chromium > /dev/null || apt-get install -qq -y --no-install-recommends chromium
	SDE_ONNX_WEB=build/web $(BIN)/python -m pytest tests/examples/test_web.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev -e '.[export,openvino,webgpu]'
	touch $(INSTALLED)

.PHONY: help sample model test quick fuzz faults mutants compatibility runtime dist wheel-test lowest lint bench bench-full gpu \
	quality docs cpp cpp-debian web web-test webgpu-test
