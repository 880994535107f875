# make demo, make test: everything from a fresh clone. The work is in bootstrap.py and mlperf_exp/; this only names it.

PYTHON ?= python3
DEVICE ?= auto
PORT   ?= 5000
ARGS   ?=
BIN    := .venv/bin

# Python keeps its byte code here, whatever the shell says: without it each start of PyTorch and vLLM takes three times as long.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help python setup setup-dev demo test test-clusters test-replicas faults fuzz audit lint ui clean distclean

help:
	@echo 'make demo   set up .venv, run the quick start        (ARGS="scenario.target_qps=2" overrides its configuration)'
	@echo 'make test   set up .venv, run the checks and all tests (ARGS="-k judge" chooses tests)'
	@echo 'make test-clusters  launchers on a real Kubernetes, Slurm, Ray and SkyPilot, as root; builds them once (Debian 12)'
	@echo 'make test-replicas  engines as Ray actors on nodes and hosts of this machine, lost and killed, as root'
	@echo 'make faults what happens to a run that is hurt, as a table; make fuzz  mangled files; make audit  known weaknesses'
	@echo 'make lint   ruff and mypy'
	@echo 'make ui     MLflow on http://127.0.0.1:$(PORT)'
	@echo 'make clean  remove caches and builds; make distclean removes .venv too; outputs/ is never removed'
	@echo
	@echo 'PYTHON=python3.11     the interpreter, 3.11 or later      DEVICE=cpu|cuda    default: looks for an NVIDIA GPU'
	@echo 'TORCH_INDEX=URL|DIR   where CPU wheels of torch are       INSTALLER=pip|uv   default: uv if it serves, else pip'

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "set-up: needs Python 3.11 or later, and '$(PYTHON)' is `$(PYTHON) --version 2>&1 | head -n 1`. Name another: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.11" >&2; \
	  exit 1; }

setup: python
	@$(PYTHON) bootstrap.py --device $(DEVICE)

setup-dev: python
	@$(PYTHON) bootstrap.py --device $(DEVICE) --dev

demo: setup
	@$(BIN)/python -m mlperf_exp experiment=quickstart $(ARGS)

test: lint
	@$(BIN)/python -m pytest $(ARGS)

# Programs are built once into the user's cache folder (four minutes); a file's tests share one cluster. Nine and a half
# minutes on two cores, where they mostly wait: two at a time.
test-clusters: setup-dev
	@tests/clusters/k8s_build.sh
	@MLPERF_TEST_CLUSTERS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/clusters tests/launchers/test_ray.py $(ARGS)

# Engines start slowly on two cores: ten minutes.
test-replicas: setup-dev
	@MLPERF_TEST_CLUSTERS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/sut/test_replicas*.py $(ARGS)

# As root, with a C compiler for the clock of one run. Writes the table in docs/reliability.md; a quarter of an hour.
faults: setup-dev
	@$(BIN)/python -m tests.faults $(ARGS)
	@MLPERF_KILLS=200 $(BIN)/python -m pytest -n 0 tests/faults/test_kills.py

fuzz: setup-dev
	@$(BIN)/python -m pip install -q atheris
	@$(BIN)/python -m tests.fuzz $(ARGS)

# Needs the network of the public list of vulnerabilities.
audit: setup-dev
	@$(BIN)/python -m pip install -q pip-audit
	@$(BIN)/python -m pip_audit -r constraints/cpu.txt --no-deps --disable-pip
	@$(BIN)/python -m pip_audit -r constraints/cuda.txt --no-deps --disable-pip

lint: setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

ui: setup
	@mkdir -p outputs
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///outputs/mlflow.db

clean:
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv
