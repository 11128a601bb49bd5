# Trifid: `make demo` shows it working, `make test` checks it; both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A CPU build on most machines; set TORCH to the build you want (any torch >= 2.6 trains).
TORCH ?= torch==2.13.0
RUN_FOLDER ?= runs/trifid
# Files of tests side by side: those without a Kafka broker, which compute most of the time, and those with one, which
# wait for half of it and more.
TEST_WORKERS ?= 2
KAFKA_WORKERS ?= 1

MODULES ?=
SAMPLE ?= 25
SEED ?= 0

.PHONY: demo test coverage mutants faults lint audit bench train lock lock-images images sbom release docs clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# The service with its page: what the demo needs, `make demo DEMO="--web --keep demo.toml"` (docs/tutorial.md), too.
$(VENV)/.service: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[web]'
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
	$(BIN)/trifid demo $(DEMO)

# The longest files come first (tests/conftest.py). One thread each: several of OpenMP's would wait for each other by
# spinning, on cores that another test needs. Tests with a real Kafka are not beside the others, but by themselves.
WITHOUT_KAFKA := tests/unit tests/e2e $(shell grep -L KafkaServer tests/integration/test_*.py)
BY_FILE := --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# Else each of the hundreds of processes that tests start would compile all modules anew where this is set.
test: export PYTHONDONTWRITEBYTECODE :=
test: lint .venv-triton/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WITHOUT_KAFKA) -n $(TEST_WORKERS) $(BY_FILE) --durations 25
	$(BIN)/python -m pytest tests $(addprefix --ignore=,$(WITHOUT_KAFKA)) -n $(KAFKA_WORKERS) $(BY_FILE) --durations 25

# Not part of `test`, as tracing costs a fifth more CPU time (CONTRIBUTING.md).
coverage: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n $(TEST_WORKERS) $(BY_FILE) --cov

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
# digests of base images, which need their registries (to be committed); what is in the images, as CycloneDX, in dist/.
lock: $(VENV)/.all
	$(BIN)/python -m deploy.docker.lock packages

lock-images: $(VENV)/.all
	$(BIN)/python -m deploy.docker.lock images

# The images of a release: refused while an image that they are made from, or that Compose or the chart starts, has no
# digest. Needs Docker.
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
images: sbom
	$(BIN)/python -m deploy.docker.lock check-images
	docker build -f deploy/docker/Dockerfile --target worker -t trifid:$(VERSION) .
	docker build -f deploy/docker/Dockerfile --target web -t trifid-web:$(VERSION) .
	docker build -f deploy/docker/Dockerfile --target triton -t trifid-triton:$(VERSION) .

# Wheel and sdist in dist/, checked (twine, check-wheel-contents), and each tried out in an empty environment.
release: $(VENV)/.all
	rm -rf dist
	$(BIN)/python -m deploy.release dist

# The documentation site, in site/: complete, without a server, and without anything from other hosts.
docs: $(VENV)/.all
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

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
