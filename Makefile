# Trifid: `make demo` shows it working, `make test` checks it; both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CPU build on most machines; set TORCH to the build you want (any torch >= 2.6 trains).
TORCH ?= torch==2.13.0
RUN_FOLDER ?= runs/trifid
# Files of unit tests side by side.
TEST_WORKERS ?= 2

MODULES ?=
SAMPLE ?= 25
SEED ?= 0

.PHONY: demo test coverage mutants faults lint audit bench train lock lock-images sbom release clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# The service alone: what the demo needs.
$(VENV)/.service: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[service]'
	touch $@

# Everything: training, tests, linters.
$(VENV)/.all: $(VENV)/.service
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable '.[training,test]'
	touch $@

# Triton's wheel wants numpy < 2 and so has its own environment.
.venv-triton/.ready: $(VENV)/.service
	$(BIN)/python -m deploy.local.triton_server setup
	touch $@

demo: $(VENV)/.service
	$(BIN)/trifid demo

# The longest files come first (tests/conftest.py). One thread each: several of OpenMP's would wait for each other by
# spinning, on cores that another test needs.
#
# Tests with Kafka, Triton or several servers run one after another: side by side they passed the limits of Kafka's
# sessions on a busy machine. Those with a Redis of their own alone run beside the unit tests.
REDIS_TESTS := $(shell grep -LiE "kafka|triton|cluster|chromium|archive" tests/integration/test_*.py)
test: lint .venv-triton/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit $(REDIS_TESTS) -n $(TEST_WORKERS) --dist loadfile \
		--no-loadscope-reorder --max-worker-restart 0 --durations 25
	$(BIN)/python -m pytest tests --ignore=tests/unit $(addprefix --ignore=,$(REDIS_TESTS)) --durations 25

# Not part of `test`, as tracing costs a fifth more CPU time (CONTRIBUTING.md).
coverage: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder \
		--max-worker-restart 0 --cov

# Small faults put into the code, one at a time: whether a test fails (docs/testing.md). SAMPLE=0 is all of them: hours.
mutants: $(VENV)/.all
	$(BIN)/pip install --quiet --editable '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(MODULES) --sample $(SAMPLE) --seed $(SEED)

# The long form of the fault suite (docs/faults.md), with its table of results.
faults: $(VENV)/.all .venv-triton/.ready
	TRIFID_FAULTS=full TRIFID_FAULTS_REPORT=runs/faults.md $(BIN)/python -m pytest tests/faults

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Installed packages against the known vulnerabilities; says so where the service cannot be reached.
audit: $(VENV)/.all
	$(BIN)/python deploy/security/audit.py

# What the images are made of (deploy/docker): packages by hash, with the versions that are installed and tested here;
# digests of base images, which need their registries; what is in the images, as CycloneDX, in dist/.
lock: $(VENV)/.all
	$(BIN)/python -m deploy.docker.lock packages

lock-images: $(VENV)/.all
	$(BIN)/python -m deploy.docker.lock images

# Wheel and sdist in dist/, checked (twine, check-wheel-contents), and each tried out in an empty environment.
release: $(VENV)/.all
	rm -rf dist
	$(BIN)/python -m deploy.release dist

sbom: $(VENV)/.all
	$(BIN)/python -m deploy.docker.lock sbom dist

bench: $(VENV)/.all .venv-triton/.ready
	for benchmark in benchmarks/*.py; do echo "== $$benchmark"; PYTHONPATH=. $(BIN)/python $$benchmark || exit 1; done

train: $(VENV)/.all
	$(BIN)/python -m training train --output $(RUN_FOLDER)
	$(BIN)/python -m training export --output $(RUN_FOLDER)
	$(BIN)/python -m training spectrum-encoder --output runs/spectrum
	$(BIN)/python -m training stream --output runs/stream
	$(BIN)/python -m training reference-set
	$(BIN)/python -m training evaluate-live --folds runs/stream/folds

clean:
	rm -rf $(VENV) .venv-triton .mypy_cache .ruff_cache .pytest_cache .coverage .coverage.*
