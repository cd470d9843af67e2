.PHONY: install hooks test fuzz lint format docs pictures data draw ci

install:  ## this checkout, with what the tests and the data builders need
	pip install -e ".[test,train]"

hooks: install  ## check every commit
	pip install pre-commit
	pre-commit install

test:  ## everything, on all cores: one thread in each process
	pytest

fuzz:  ## damaged files and texts for every reader, for an hour
	python -m tests.fuzz --seconds 3600

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .

docs:  ## the API reference, from the docstrings: build/api/index.html
	python -m tools.api_reference --output build/api

pictures:  ## the pictures of the documentation, drawn by the built-in model
	python -m tools.readme_pictures

data: data/icons data/text  ## what the built-in model is trained on

data/icons:
	python -m tools.builtin_model.build_icons --output $@

data/text: data/icons
	python -m tools.builtin_model.build_text --icons data/icons --output $@

draw:
	ldm-generate "a red car"

ci:  ## everything, in clean virtual environments
	.ci/run
