# make compare   proves the three implementations equal and measures their speed
# make test      runs the tests and the lint
# make tour      opens the notebook docs/tour.py
# Each makes the virtual environment .venv first, once. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3

.PHONY: compare test tour

compare: .venv/installed
	.venv/bin/python compare.py

test: .venv/installed-dev
	.venv/bin/python -m pytest -n 2 --dist loadfile
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

tour: .venv/installed-dev
	.venv/bin/jupytext --to ipynb --output runs/tour.ipynb docs/tour.py
	.venv/bin/jupyter notebook runs/tour.ipynb

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	    "error: this needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d; try make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 1; }

# pytest: two processes, and a file's tests stay together, for what they share.
# The stamps are as old as the last installation, so a change of the requirements installs again and nothing else does.
.venv/installed: .venv/bin/python requirements.txt
	@echo "Installing TensorFlow and the other packages of requirements.txt into .venv: about 700 MB to download, once."
	.venv/bin/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	.venv/bin/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@
