# make app     set up .venv and open the app
# make test    set up .venv and prove everything: what CI runs
# make quick   only the tests that need no browser, start no process and are not slow, in about a minute
# make check   lint, format and types
# make docs    write docs/api.md and the lists of docs/architecture.md again
PYTHON ?= python3
BIN := .venv/bin
TESTS := $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: app test quick check docs

app: .venv/app.stamp
	$(BIN)/python app.py

test: check
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || \
	if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq chromium; \
	else echo "The browser tests need Chromium: install it (on Debian: apt-get install chromium) or set CHROMIUM to its path." >&2; exit 2; fi
	$(TESTS)

quick: .venv/test.stamp
	$(TESTS) -m "not browser and not process and not slow"

check: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/app.stamp
	$(BIN)/python scripts/pages.py

.venv/app.stamp: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

.venv/test.stamp: .venv/app.stamp tests/requirements.txt
	$(BIN)/pip install --disable-pip-version-check -q -r tests/requirements.txt
	touch $@
