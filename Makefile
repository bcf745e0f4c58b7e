# fedkern: what a developer runs. Everything goes through the virtual environment in .venv, but for
# gpu-check: it runs where no such thing can be set up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_OUT ?= runs/demo
# For tests and benchmarks the CUDA kernels are compiled for one architecture: this machine's GPU, if any.
ARCHITECTURE = $(shell $(BIN)/python -c "import torch; c = torch.cuda; print('%d%d' % c.get_device_capability() if c.is_available() else 80)")
CUDA_ARCHITECTURES = $(ARCHITECTURE)-real;$(ARCHITECTURE)-virtual

# gpu-check: which part (build, tests, sanitize, bench or all), where its results go, what commit this
# is where git cannot tell, and the wheels of packages that the machine's Python lacks
PART ?= all
RESULTS ?= build/gpu_check/results
COMMIT ?=
WHEELS ?= build/gpu_wheels
# gpu-wheels: for which Python and platforms, and what a machine with torch has anyhow (and is heavy)
WHEELS_PYTHON ?= 3.12
WHEELS_PLATFORMS ?= manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
WHEELS_SKIP ?= numpy scipy scikit-learn matplotlib torchmetrics pillow cmake

.DEFAULT_GOAL := help
.PHONY: help demo compare-all compare-mnist test torture bench bench-tables sanitize cuda-check gpu-check \
  gpu-wheels lint format clean

help:  ## Explain every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch: $(BIN)/python
	$(PIP) install torch torchvision
	touch $@

# The package is built again whenever something that is compiled has changed.
SOURCES := $(shell find csrc -type f) $(addprefix build_support/,backend.py torch_probe.py) \
  CMakeLists.txt setup.py pyproject.toml
$(VENV)/installed: $(VENV)/torch $(SOURCES)
	FEDKERN_CUDA_ARCHITECTURES="$${FEDKERN_CUDA_ARCHITECTURES:-$(CUDA_ARCHITECTURES)}" $(PIP) install --editable '.[test,flower]'
	touch $@

$(VENV)/lint: $(VENV)/installed
	$(PIP) install 'ruff>=0.17' 'mypy>=2' 'clang-format>=20' 'scikit-build-core>=0.10'
	touch $@

demo: $(VENV)/installed  ## Compare FedAvg and FedGA on the embedded digits, three seeds (sets up first)
	$(BIN)/fedkern info
	$(BIN)/fedkern compare fedavg fedga --dataset digits --seeds 3 --overwrite --out $(DEMO_OUT)

# Every method, with published settings. The first one is what the others are compared with.
METHODS = fedavg fedga floco floco+ ditto fedprox climb fedntd fedrl fedper fedrod balanced_softmax fedlc \
  'fedavg --server-optimizer avgm' 'fedavg --server-optimizer adam' 'fedavg --server-optimizer yogi'

compare-all: $(VENV)/installed  ## Compare all methods on the embedded digits, three seeds (minutes)
	$(BIN)/fedkern compare $(METHODS) --dataset digits --tau 25 --seeds 3 --overwrite --out runs/compare-all

ALPHAS ?= 0.1 0.5
compare-mnist: $(VENV)/installed  ## The same on MNIST, in DATA if it is given: alpha 0.1 and 0.5, five seeds
	for alpha in $(ALPHAS); do \
	  $(BIN)/fedkern compare $(METHODS) --dataset mnist --alpha $$alpha --tau 50 --seeds 5 --eval-every 5 \
	    $(if $(DATA),--data-root $(DATA) --download) --overwrite --out runs/compare-mnist/alpha-$$alpha || exit; \
	done

test: $(VENV)/installed  ## Run the tests (sets up first); ARGS="-k name" chooses
	$(BIN)/fedkern info
	$(BIN)/python -m pytest $(ARGS)

torture: $(VENV)/installed  ## Kill runs 200 times, fill disks (as root), forbid writing; resume and compare (minutes)
	$(BIN)/python tests/fl/kill_and_resume.py --kills 200 --forbids 20 --disks $(if $(filter 0,$(shell id -u)),20,0)

bench: $(VENV)/installed  ## Run the benchmarks; rows are appended to benchmarks/results/
	$(BIN)/python -m pytest benchmarks -q -s -o python_files='bench_*.py' $(ARGS)

bench-tables:  ## Print the newest benchmark results as Markdown
	@$(PYTHON) benchmarks/tables.py

# Leaks are looked for in the ordinary build: see leak_check.py.
sanitize: $(VENV)/installed  ## Run what is compiled under ASan and UBSan; look for leaks in 100,000 calls of each operator
	$(BIN)/python build_support/sanitize.py
	$(BIN)/python build_support/leak_check.py

cuda-check: $(VENV)/installed  ## Compile the CUDA kernels for every architecture, run them in the emulator: no GPU needed
	$(BIN)/python build_support/cuda_check.py

gpu-check:  ## On a GPU, without network: build, test, sanitize, benchmark; PART=tests runs one
	$(PYTHON) build_support/gpu_check.py --part '$(PART)' --results '$(RESULTS)' --commit '$(COMMIT)' --wheels '$(WHEELS)'

gpu-wheels: $(VENV)/installed  ## Fetch into WHEELS what gpu-check needs beside torch
	$(BIN)/python build_support/gpu_wheels.py --out '$(WHEELS)' --python $(WHEELS_PYTHON) \
	  --platform $(WHEELS_PLATFORMS) --skip $(WHEELS_SKIP)

lint: $(VENV)/lint  ## Check style and types: ruff, mypy, clang-format
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/lint  ## Format Python and C++
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

CPP = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

clean:  ## Remove what was built, and the virtual environment
	rm -rf $(VENV) build *.egg-info fedkern/*.so
