PYTHON ?= python
NAME := benchmarks/results/$(shell date -u +%Y-%m-%d)-$(shell git describe --always --dirty --exclude='*' 2>/dev/null || echo unknown)

.PHONY: bench bench-quick bench-gpu docs

# Everything that benchmarks/README.md shows, on a quiet machine (about half an hour), and its tables made anew.
bench:
	$(PYTHON) -m benchmarks --json $(NAME).json
	$(PYTHON) -m benchmarks.whole_job --json $(NAME)-whole_job.json
	$(PYTHON) -m benchmarks.curves
	$(PYTHON) -m benchmarks.side_by_side --json $(NAME)-side_by_side.json
	$(PYTHON) -m benchmarks.table $(NAME).json $(NAME)-whole_job.json $(NAME)-side_by_side.json benchmarks/results/curves.json

# What needs a GPU.
bench-gpu:
	$(PYTHON) -m benchmarks --device cuda --json $(NAME)-cuda.json

# Does it all work? Tiny sizes, half a minute; the numbers mean nothing.
bench-quick:
	$(PYTHON) -m benchmarks --quick

# The documentation as a site, where a warning is an error (the extra `docs`).
docs:
	$(PYTHON) tools/update_docs.py --check
	$(PYTHON) -m sphinx -W --keep-going docs docs/_build
