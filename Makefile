# Each target makes .venv and installs what it needs; a second call starts at once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
SERVER := .venv/tritonserver/bin/pip install --quiet --disable-pip-version-check
# The package switches ONNX Runtime's telemetry off; scripts here may import that first.
export ORT_DISABLE_TELEMETRY := 1
# The theme prints what its makers plan.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo help test lint docs bench kernel-report paper-tables interop gpu-check clean

demo: .venv/demo.done  ## the whole road on a small network, into demo/
	$(BIN)/cbam-deploy demo -o demo

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## /\1: /p' Makefile | awk -F': ' '{printf "make %-14s %s\n", $$1, $$2}'

test: .venv/dev.done .venv/tritonserver.done  ## the whole test suite
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal --durations=15

lint: .venv/dev.done  ## style, types, imports, and that the documentation builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

docs: .venv/dev.done  ## the documentation as a site, build/site/index.html
	$(BIN)/mkdocs build --strict --quiet

bench: build/resnet50.onnx build/resnet20.onnx  ## measure beside what one would use instead
	$(BIN)/python benchmarks/gate_body.py
	$(BIN)/python benchmarks/bench_vs_bare_loop.py build/resnet20.onnx --beside build/resnet50.onnx
	$(BIN)/python benchmarks/build_vs_polygraphy.py build/resnet50.onnx
	$(BIN)/python benchmarks/quantize_vs_ort.py build/resnet50.onnx --images 16

build/%.onnx: .venv/demo.done
	mkdir -p build
	$(BIN)/cbam-deploy export $* -o $@

kernel-report: .venv/dev.done  ## what the kernels take by counting, into benchmarks/results
	$(BIN)/python -m benchmarks.kernel_report -o benchmarks/results/kernel-report.md

paper-tables: .venv/demo.done  ## write docs/paper-tables.md anew
	$(BIN)/python -m benchmarks.paper_tables -o docs/paper-tables.md

# Our files in other people's tools, each in an environment of its own, which pip fills.
interop: .venv/dev.done  ## try our files in other people's tools; writes docs/interop.md anew
	$(BIN)/python -m benchmarks.interop -o docs/interop.md

# On a machine with a GPU, by its own Python: it may have no network to fill a .venv from.
# OUTPUT=DIR writes elsewhere than to benchmarks/results; OPTIONS="--dry-run" needs no GPU.
gpu-check:  ## what only a machine with a GPU can show
	$(PYTHON) -m benchmarks.gpu_check $(if $(OUTPUT),--output '$(OUTPUT)') $(OPTIONS)

clean:  ## remove .venv and what was built
	rm -rf .venv build demo

.venv/dev.done: .venv/demo.done
	$(INSTALL) --editable '.[rtx,demo,detection,kernels,docs,dev]'
	touch $@

# The server that tests start: its Python backend needs an environment with NumPy 1.
.venv/tritonserver.done: .venv/pyvenv.cfg
	$(PYTHON) -m venv .venv/tritonserver
	$(SERVER) numpy==1.26.4 onnxruntime==1.32.0 pillow==13.0.0 \
	    && $(SERVER) --no-deps nvidia-pytriton==0.7.0 \
	    || echo 'no Triton server for this machine: the tests that start one are skipped'
	touch $@

.venv/demo.done: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(INSTALL) --editable '.[rtx,demo]'
	touch $@

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv
