# Two commands do everything: `make run` and `make test`. `make chat` is one confidential chat.
VENV := .venv
PYTHON := $(VENV)/bin/python
# The constraints pin everything that is installed, build tools included.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# No telemetry and no update checks of Flower and Ray, in whatever is started from here.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
# The TPM driver compiles against tpm2-tss: where its headers are, it is installed too, and its tests run.
EXTRAS := dev$(shell pkg-config --exists tss2-esys 2>/dev/null && echo ,tpm)

.PHONY: run chat test lint install proto clean

run: $(VENV)/.compiled
	$(VENV)/bin/confed run experiments/digits/config.toml

chat: $(VENV)/.compiled
	$(PYTHON) experiments/chat/chat.py

# Files in their order, not by their number of tests: those of few, long tests would be left for the end, and for one.
test: $(VENV)/.compiled
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright --pythonpath $(PYTHON)

install: $(VENV)/.compiled

$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --no-compile --editable ".[$(EXTRAS)]"
	touch $@

# Byte code is not pip's to write, file by file: it takes every processor here, and linters, which need none, run beside it.
# Confined TEEs cannot write any later. What packages carry that is no Python of this version is not imported either.
$(VENV)/.compiled: $(VENV)/.installed
	$(PYTHON) -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	touch $@

proto: $(VENV)/.installed
	$(PYTHON) -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/confed/wire/v1/confed.proto

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
