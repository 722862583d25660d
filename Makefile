# Everything that is done to this work tree; `make help` lists it.

# The interpreter of .venv: python3 if it is new enough, else the oldest supported one that is found.
PYTHON ?= $(shell python3 -c 'import sys; assert sys.version_info >= (3, 10); print(sys.executable)' 2>/dev/null \
	|| sh tools/pythons.sh | sed -n '1s/^[^ ]* //p')
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
UNIT := tests/unit tests/kernels

# Kernels for `make test-kernels`: suites of Debian (5.10, 6.1, 6.12, the newest) and the one that runs now.
KERNELS ?= bullseye bookworm trixie sid host
SELECT ?= kernel
KERNEL_TIMEOUT ?= 3000
# How many guests at a time; each has two virtual CPUs and 2 GiB.
KERNEL_JOBS ?= 1
# The interpreter for `make test-python`.
NEWEST_PYTHON ?= 3.14
# More arguments for pytest: make test-unit ARGS='-k step'
ARGS ?=

METADATA := pyproject.toml setup.py
NATIVE := $(shell find probes src -name '*.[ch]' -o -path '*/_native/build_*.py' | grep -v /build/)
SOURCES := $(shell find src -name '*.py' -o -name '*.pyi' -o -name '*.html' -o -name '*.svg')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# Twice quiet: errors only. What is going on is said before each step.
PIP_INSTALL := -m pip install -qq

.DELETE_ON_ERROR:
.PHONY: help demo demo-django serve test soak test-deaths test-unit environments test-other-pythons test-tiers test-kernel \
	test-integration test-sanitized test-fresh test-python test-kernels coverage lint lint-native format bench build doctor \
	bpf-objects deps deps-build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp ## run a traced application under mixed traffic and show what the kernel did
	@$(BIN)/python examples/demo.py $(ARGS)

demo-django: $(VENV)/.stamp ## the same for a Django site under gunicorn, by view
	@$(BIN)/python examples/django_demo.py $(ARGS)

serve: $(VENV)/.stamp ## leave the traced application running, until Ctrl-C
	@$(BIN)/python examples/demo.py --serve $(ARGS)

# The line of the last pytest run ends the output.
test: deps $(VENV)/.stamp ## run the whole suite: the unit tier on all interpreters, every tier on one
	@$(MAKE) --no-print-directory test-other-pythons
	@$(MAKE) --no-print-directory test-tiers

test-tiers: deps $(VENV)/.stamp ## run every tier on one interpreter
	@echo "== all tiers on $$($(BIN)/python -V)"
	@$(PYTEST) -q $(ARGS)

test-unit: $(VENV)/.stamp ## run the unit tier
	@$(PYTEST) -q $(UNIT) $(ARGS)

test-kernel: deps $(VENV)/.stamp ## run the kernel tier on this kernel
	@$(PYTEST) -q tests/kernel $(ARGS)

soak: deps $(VENV)/.stamp ## open and close 2000 sessions; minutes
	@KERNELTRACE_OPENINGS=2000 $(PYTEST) -q tests/kernel/test_session.py -k 'often or forks' $(ARGS)

test-integration: deps $(VENV)/.stamp ## run the integration tier: real servers on this kernel
	@$(PYTEST) -q tests/integration $(ARGS)

# Shell: for each other interpreter that is found, of those that PYTHONS names if it names any.
EACH_OTHER = own=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	sh tools/pythons.sh | { while read -r version program; do \
		case " $(or $(PYTHONS),$$version) " in *" $$version "*) ;; *) continue ;; esac; \
		[ "$$version" != "$$own" ] || continue; \
		venv=.venvs/$$version;

# The wheel is what these test, and that one wheel serves all of them. They are made side by side.
environments: build ## make .venvs/3.N for each other interpreter from 3.10 to 3.14
	@making=; $(EACH_OTHER) ( \
			if [ ! -e "$$venv/.stamp" ] || [ pyproject.toml -nt "$$venv/.stamp" ]; then \
				echo "$$venv: installing the wheel and what its tests need"; \
				rm -rf "$$venv" && "$$program" -m venv "$$venv" || exit 1; \
				for wheel in build/wheel/*.whl; do \
					"$$venv/bin/python" $(PIP_INSTALL) "$$wheel[dev]" || exit 1; \
				done; \
				touch "$$venv/.stamp"; \
			elif [ build/wheel/.stamp -nt "$$venv/.stamp" ]; then \
				"$$venv/bin/python" $(PIP_INSTALL) --force-reinstall --no-deps build/wheel/*.whl || exit 1; \
				touch "$$venv/.stamp"; \
			fi \
		) </dev/null & making="$$making $$!"; \
	done; \
	for one in $$making; do wait "$$one" || exit 1; done; }

test-other-pythons: environments ## run the unit tier on each other interpreter (PYTHONS='3.10 3.12')
	@$(EACH_OTHER) \
		echo "== unit tier on $$("$$program" -V)"; \
		"$$venv/bin/python" -m pytest -q -p no:cacheprovider $(UNIT) $(ARGS) </dev/null || exit 1; \
	done; }

test-deaths: deps $(VENV)/.stamp ## kill 500 workers at random, in each of six ways, and look at what is left
	@KERNELTRACE_TEST_KILLS=500 $(PYTEST) -q -k random $(ARGS) \
		tests/integration/test_shared_deaths.py tests/kernel/test_pins_disturbed.py

# The page is written when the whole tier ran on all of them.
test-kernels: $(VENV)/.stamp ## run the kernel tier on other kernels, as guests (KERNELS=..., SELECT=...)
	@PYTHON='$(PYTHON)' sh tools/deps.sh guest
	$(if $(filter-out host,$(KERNELS)),@sh tests/kernels/fetch_kernels.sh $(filter-out host,$(KERNELS)))
	@$(BIN)/python tests/kernels/matrix.py --timeout $(KERNEL_TIMEOUT) --jobs $(KERNEL_JOBS) --select '$(SELECT)' \
		$(if $(filter kernel-5,$(SELECT)-$(words $(KERNELS))),--document docs/kernels.md) $(KERNELS) -- $(ARGS)

# The C parts in a build of their own, with every error fatal; CPython leaks at its exit, so leaks are
# not looked for. With malloc under Python's objects, a step beyond one of them is seen as well. The one
# module left out is of Python alone, in a process whose memory is limited below what ASan reserves.
SANITIZED := build/sanitized
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1
test-sanitized: $(VENV)/.stamp ## run the unit tier with the C parts under ASan and UBSan
	@rm -rf $(SANITIZED)
	@CFLAGS='$(SANITIZE)' $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	@for part in $(SANITIZED)/lib/kerneltrace_core/_native/*.so; do nm -D $$part | grep -q __asan_init || exit 1; done
	@echo "== unit tier on $$($(BIN)/python -V), C parts under ASan and UBSan"
	@PYTHONPATH='$(CURDIR)/$(SANITIZED)/lib' PYTHONMALLOC=malloc LD_PRELOAD="$$(cc -print-file-name=libasan.so)" \
		ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1 \
		UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1 \
		$(PYTEST) -q -p no:cacheprovider tests/unit --ignore=tests/unit/test_btf_fuzz.py $(ARGS)

coverage: deps $(VENV)/.stamp ## measure, tier by tier, which statements the tests run
	@$(BIN)/python tools/measure_coverage.py $(ARGS)

test-fresh: ## run README's two commands on a bare Debian, made with debootstrap (ARGS: for pytest)
	@PYTHON='$(PYTHON)' sh tools/deps.sh fresh
	@"$(PYTHON)" tests/fresh/run_fresh.py -- $(ARGS)

test-python: ## run the unit and kernel tier on Debian sid's newest Python, in a root of its own
	@PYTHON='$(PYTHON)' sh tools/deps.sh fresh
	@"$(PYTHON)" tests/fresh/run_fresh.py --suite sid --python $(NEWEST_PYTHON) -- $(ARGS)

lint: $(VENV)/.stamp lint-native ## check style, types and the C files
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(C_SOURCES) | xargs $(BIN)/clang-format --dry-run --Werror

C_SOURCES := find probes src tests benchmarks -name '*.[ch]'

# In a build of its own: a warning that an earlier build let pass is an error here.
lint-native: $(VENV)/.stamp ## compile C and BPF with every warning an error
	@rm -rf build/strict
	@CFLAGS='-Werror' $(BIN)/python setup.py -q build_ext --build-lib build/strict/lib --build-temp build/strict

format: $(VENV)/.stamp ## rewrite the sources as `make lint` wants them
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .
	@$(C_SOURCES) | xargs $(BIN)/clang-format -i

bpf-objects: $(VENV)/.stamp ## compile the BPF programs for x86-64 and arm64 into build/bpf
	@for machine in x86_64 aarch64; do \
		$(BIN)/python setup.py -q bpf_objects --machine=$$machine && \
		$(BIN)/python setup.py -q bpf_objects --machine=$$machine --sources=tests/probes \
			--folder=build/bpf/$$machine/tests || exit 1; \
	done

bench: deps $(VENV)/.stamp ## measure what tracing costs (docs/performance.md)
	@PYTHON='$(PYTHON)' sh tools/deps.sh bench
	@$(BIN)/python benchmarks/run.py $(ARGS)

build: build/wheel/.stamp ## build the wheel into build/wheel

doctor: $(VENV)/.stamp ## say what works on this machine, and how to get the rest
	@$(BIN)/python -m kerneltrace_core.doctor $(ARGS)

deps: ## install the system packages that building and testing need
	@PYTHON='$(PYTHON)' sh tools/deps.sh build test

deps-build:
	@PYTHON='$(PYTHON)' sh tools/deps.sh build

clean: ## remove what was built and installed here
	@rm -rf .venv .venvs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@rm -rf src/*.egg-info src/kerneltrace_core/_objects
	@find src probes tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
	@find src -name '*.so' -delete

# Order-only: looking for system packages must not rebuild anything.
$(VENV)/.stamp: $(METADATA) $(NATIVE) | deps-build
	@[ -n "$(PYTHON)" ] || { echo "make: no Python of 3.10 to 3.14 found" >&2; exit 1; }
	@[ -x $(BIN)/python ] || { echo "$(VENV): making it with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@if [ ! -e $@ ] || [ -n "$(filter $(METADATA),$?)" ]; then \
		echo "$(VENV): installing kerneltrace and what its tests need (a minute or two)"; \
		$(BIN)/python $(PIP_INSTALL) 'setuptools>=77' wheel 'cffi>=1.15' && \
		$(BIN)/python $(PIP_INSTALL) --no-build-isolation -e '.[dev]'; \
	else \
		echo "$(VENV): compiling kerneltrace's native parts"; \
		$(BIN)/python $(PIP_INSTALL) --no-build-isolation --no-deps -e .; \
	fi
	@touch $@

# build/lib keeps modules that the source has lost; a wheel must not.
build/wheel/.stamp: $(VENV)/.stamp $(METADATA) $(NATIVE) $(SOURCES) README.md
	@echo "build/wheel: building the wheel"
	@rm -rf build/lib* build/bdist* build/wheel
	@$(BIN)/python -m pip wheel -qq --no-build-isolation --no-deps --wheel-dir build/wheel .
	@touch $@
