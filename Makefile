# make app   set up .venv and open the app        make test   set up .venv and prove everything
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: app test

app: .venv/app.stamp
	$(BIN)/python app.py

test: .venv/test.stamp
	@command -v chromium >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq chromium; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

.venv/app.stamp: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

.venv/test.stamp: .venv/app.stamp tests/requirements.txt
	$(BIN)/pip install --disable-pip-version-check -q -r tests/requirements.txt
	touch $@
