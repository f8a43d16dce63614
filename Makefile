# make ask     set up .venv (the core only) and answer a question about a picture, a sound and a text
# make test    set up .venv for development and run the linter, the type checker and every test
# make quick   the same without the slow tests
# make constraints  pin what .venv holds now, for everybody

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Small on disk: pip stays where $(PYTHON) has it, and bytecode is written when a module is first imported, so it must be.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(PYTHON) -m pip --python $(BIN)/python --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-compile -c constraints.txt

EXAMPLE := --image examples/picture.png --audio examples/voice.wav --text-file examples/note.txt
QUESTION := Where is the thing that the named person has?

.PHONY: ask test quick check constraints clean

ask: $(VENV)/core
	@$(BIN)/trisense ask --verbose $(EXAMPLE) "$(QUESTION)"

test: check
	$(BIN)/python -m pytest -q

quick: check
	$(BIN)/python -m pytest -q -m "not slow"

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Two stamps in one environment: the development one holds the core too, so it sets both.
$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit("trisense needs Python 3.11 to 3.13 and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	@echo "Setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	@$(INSTALL) -e .
	@touch $@

# torch comes first and alone, so that no other package's wish for a newer one is asked before it is there.
$(VENV)/dev: pyproject.toml constraints.txt | $(VENV)/core
	@echo "Setting up $(VENV) for development ..."
	@$(INSTALL) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	@$(INSTALL) -e '.[train,serve,dev]'
	@touch $(VENV)/core $@

constraints: $(VENV)/dev
	@head -1 constraints.txt > $(VENV)/pins
	@$(PIP) freeze --exclude-editable | sed 's/+cpu$$//' | LC_ALL=C sort -f >> $(VENV)/pins
	@mv $(VENV)/pins constraints.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
