# Everything a person runs. Each target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.done
# What looks like secrets and is none: the hashes of packages, addresses that mean harm, and commits.
NO_SECRETS := '^(requirements\.lock|tests/data/ssrf_vectors\.json)$$'
# Tests that mostly wait for processes of their own.
WORKERS := tests/loop tests/faults
COMMITS := '"[0-9a-f]{40}"'

.PHONY: setup demo serve model test test-workers test-parts test-fast bench bench-gpu quality hostile faults soak mutants check format schema image-check lock sbom clean

setup: $(SETUP)  ## the virtual environment in .venv

$(SETUP): requirements.txt requirements-ops.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(SETUP)  ## one edit through RunPod's production loop, on this machine
	$(BIN)/python -m local.demo

serve: $(SETUP)  ## RunPod's local HTTP API on the same parts
	$(BIN)/python -m local.serve

model: $(SETUP)  ## download the models that the environment names to where the worker looks; goes on where it broke off
	$(BIN)/python -m qwen_worker.download

test: $(SETUP)  ## the whole suite, in two halves at a time
	$(MAKE) --jobs=2 --keep-going test-workers test-parts

test-workers: $(SETUP)
	$(BIN)/python -m pytest $(WORKERS)

test-parts: $(SETUP)
	$(BIN)/python -m pytest tests $(WORKERS:%=--ignore=%)

test-fast: $(SETUP)  ## without the tests that start whole workers, edit at full size or wait for long
	$(BIN)/python -m pytest -m "not slow"

bench: $(SETUP)  ## measure what the README says of speed, without a GPU; leaves out/bench.json
	$(BIN)/python -m bench

bench-gpu: $(SETUP)  ## measure what the README says of a GPU, on a GPU; leaves out/gpu.json
	$(BIN)/python -m bench.gpu

quality: $(SETUP)  ## compare every preset and profile with exact; leaves out/quality.json
	$(BIN)/python -m bench.quality

hostile: $(SETUP)  ## attack the worker; leaves out/hostile.json
	$(BIN)/python -m hostile

faults: $(SETUP)  ## let everything around the worker fail; leaves out/faults.json
	$(BIN)/python -m faults

soak: $(SETUP)  ## 3,000 jobs, a fifth of them hostile, and then with a leak, which must be found; leaves out/soak.json
	$(BIN)/python -m faults.soak

mutants: $(SETUP)  ## take each guard of tests/guards.toml out: its test must fail
	$(BIN)/python -m local.mutants

check: $(SETUP)  ## lint, types, import contracts, Dockerfile, unsafe calls, secrets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/bandit --quiet --recursive --severity-level medium qwen_worker handler.py local bench hostile faults ops examples
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-files $(NO_SECRETS) --exclude-lines $(COMMITS)

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(SETUP)  ## write anew what is made of settings and requests: docs/request.schema.json, .runpod/*.json
	$(BIN)/python -m local.schema_file
	$(BIN)/python -m local.hub_files

image-check: $(SETUP)  ## build the image with buildah and do jobs in it, as root on Debian; leaves out/image.json
	$(BIN)/python -m local.image_check

lock: $(SETUP)  ## write requirements.lock anew: what the image installs, by the hashes of the public index
	$(BIN)/uv pip compile requirements.txt --universal --python-version 3.11 --only-binary :all: --generate-hashes \
		--no-annotate --no-strip-extras --no-emit-index-url \
		--custom-compile-command "make lock" --quiet --output-file requirements.lock

sbom: $(SETUP)  ## write out/sbom.json: packages and models as CycloneDX
	$(BIN)/python -m local.sbom

clean:
	rm -rf .venv out
