# `make install` makes a virtual environment in .venv; the other targets make it first where it is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Python >= 3.12 to make the environment with: the first of these that is one.
PYTHON := python3.13 python3.12 python3 "$$(pyenv root 2>/dev/null || echo ~/.pyenv)"/versions/3.{13,12}*/bin/python
# Arguments for pytest, the demo and the benchmarks, as in: make test PYTEST_ARGS="-m 'not slow'"
PYTEST_ARGS :=
DEMO_ARGS :=
BENCH_ARGS :=

PYTEST := pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
BIN := .venv/bin
INSTALLED := .venv/.installed
LOWEST_INSTALLED := .venv-lowest/.installed
KERNEL_TESTS := $(patsubst %,tests/ops/%_test.py,derivatives experts inverted_bottleneck library native)
EXTENSION := $(wildcard setup.py direct_hifimamba/ops/csrc/*)

.PHONY: help install peers demo test test-without-kernels test-sanitised test-lowest lint typecheck bench clean

help:
	@cat <<- 'END'
		make install    package, DIRECT, PyTorch and the developers' tools into .venv
		make demo       train and evaluate on simulated data, on a CPU
		make test       all tests
		make test-without-kernels
		                tests marked core, in a copy of the sources in which no kernels are compiled
		make test-sanitised
		                tests of the compiled kernels, built with g++'s address sanitiser in a copy of the sources
		make test-lowest
		                tests marked core, with Python 3.12 and the lowest versions in pyproject.toml, without extras
		make lint       ruff: rules and format
		make typecheck  mypy
		make peers      others' selective scans, which benchmarks and tests compare ours with
		make bench      time the network and its parts
		make clean      remove what make and the tools wrote, the environments included
	END

install: $(INSTALLED)

$(INSTALLED): PACKAGES = --editable '.[benchmark,data,formats,measured,report,slurm,dev]'
# Every lower bound of the dependencies as the version to install.
$(LOWEST_INSTALLED): PACKAGES = --editable '.[dev]' \
	$$(sed -n '/^dependencies/,/^]/s/.*"\(.*\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml)
$(LOWEST_INSTALLED): PYTHON := python3.12 "$$(pyenv root 2>/dev/null || echo ~/.pyenv)"/versions/3.12*/bin/python

$(INSTALLED) $(LOWEST_INSTALLED): pyproject.toml $(EXTENSION)
	@for candidate in $(PYTHON); do
		if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
			python=$$candidate
			break
		fi
	done
	if [[ -z $${python:-} ]]; then
		echo "Python 3.12 or newer (with venv) was not found. Install it, or say where it is:" >&2
		echo "    make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.12" >&2
		exit 1
	fi
	echo "Making $(@D) with $$("$$python" --version): PyTorch, DIRECT and tools, several GB, takes minutes ..."
	"$$python" -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PACKAGES)
	touch $@
	echo "Installed. Activate with: source $(@D)/bin/activate"

demo: $(INSTALLED)
	$(BIN)/python projects/hifimamba_demo/demo.py $(DEMO_ARGS)

test: $(INSTALLED)
	$(BIN)/python -m $(PYTEST) $(PYTEST_ARGS)

# Go to a copy of the sources, without compiled kernels.
define IN_A_COPY
	@copy=$$(mktemp -d)
	trap 'rm -rf "$$copy"' EXIT
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$$copy"
	cd "$$copy"
	export PYTHONPATH=$$PWD  # before the editable installation, in subprocesses too
	python=$(CURDIR)/$(BIN)/python
endef

test-without-kernels: $(INSTALLED)
	$(IN_A_COPY)
	"$$python" -c 'from direct_hifimamba.ops import library; assert not library.INSTRUCTION_SETS'
	"$$python" -m $(PYTEST) -m 'core and not slow' $(PYTEST_ARGS)

# With g++: the libraries are its own, and the second one has to be there when the first one looks for its functions. What
# the sanitiser reports is written to the standard error, which pytest must not capture.
test-sanitised: $(INSTALLED)
	$(IN_A_COPY)
	export CXX=g++ CXXFLAGS='-fsanitize=address -O1' LDFLAGS='-fsanitize=address'
	"$$python" setup.py --quiet build_ext --inplace
	export LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)"
	export ASAN_OPTIONS=detect_leaks=0  # Python frees little of what it has at its end
	"$$python" -m $(PYTEST) --capture=sys -m 'not slow' $(KERNEL_TESTS) $(PYTEST_ARGS)

test-lowest: $(LOWEST_INSTALLED)
	$(<D)/bin/python -m $(PYTEST) -m 'core and not slow' $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(INSTALLED)
	$(BIN)/mypy

# mamba-ssm without compiling its CUDA kernels and without its dependencies: its Python code is all that is used.
peers: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r performance/requirements.txt
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps mamba-ssm==2.3.2.post1 ||
		echo "mamba-ssm could not be installed: what needs it is left out."

bench: peers
	$(BIN)/python performance/scan.py $(BENCH_ARGS)
	$(BIN)/python performance/network.py $(BENCH_ARGS)
	$(BIN)/python performance/allocation.py $(BENCH_ARGS)
	$(BIN)/python performance/kernels.py

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
