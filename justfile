# The verbs of this project; CI calls the same ones. `just --list` shows them.

python := ".venv/bin/python"
uv := ".venv/bin/uv"

# What is here
default:
    @{{ just_executable() }} --list

# Make the virtual environment and install what the lock file pins
install:
    test -x {{ python }} || python3 -m venv .venv
    test -x {{ uv }} || {{ python }} -m pip install --quiet uv
    {{ uv }} pip install --quiet --python {{ python }} --require-hashes -r requirements-dev.lock
    {{ uv }} pip install --quiet --python {{ python }} --no-deps --no-build-isolation --editable .

# Format, lint and type checks; changes nothing
check: install
    .venv/bin/ruff format --check .
    .venv/bin/ruff check .
    .venv/bin/flake8 cador_trio tests containers benchmarks supply_chain
    .venv/bin/mypy

# Put the formatting right
format: install
    .venv/bin/ruff format .
    .venv/bin/ruff check --fix .

# All tests; arguments go to pytest
test *arguments: install
    {{ python }} -m pytest {{ arguments }}

# The kill test, long: daemons, broker and algorithm die while jobs run. `--seed N --jobs N --daemons N`; needs Java
chaos *arguments: install
    {{ python }} -m tests.kafka.chaos {{ arguments }}

# The main job on real input: bodies of water around the Black Sea and the Caspian
demo *arguments: install
    .venv/bin/cador-trio demo {{ arguments }}

# Draw docs/settings.md from the table of settings
docs: install
    {{ python }} -m cador_trio.settings_page > docs/settings.md

# Speed beside a peer, as ratios; takes some minutes. Kafka's part needs Java 17 and Maven
bench: install
    {{ uv }} pip install --quiet --python {{ python }} --require-hashes -r requirements-bench.lock
    {{ python }} -m benchmarks.latency
    {{ python }} -m benchmarks.idle
    {{ python }} -m benchmarks.kafka

# Uploads beside plain libcloud and other clients, as ratios; some minutes. `--quick` for a look
bench-storage *arguments: install
    {{ uv }} pip install --quiet --python {{ python }} --require-hashes -r requirements-bench.lock
    {{ python }} -m benchmarks.storage {{ arguments }}

# The wheel, the source archive and the list of parts (SBOM), in dist/
build: install
    rm -rf dist
    {{ python }} -m build --no-isolation --outdir dist .
    {{ python }} -m supply_chain.sbom dist

# Known vulnerabilities of what the lock pins; says so if no advisories can be reached
audit: install
    {{ python }} -m supply_chain.audit

# The images' steps and a pod of them without an engine, on Debian's own Python; needs root and debootstrap
clean-root: install
    CLEAN_ROOT=debian {{ python }} -m pytest tests/containers/test_clean_root.py

# The daemon's image, by the container engine that is here
image engine="docker": build
    {{ engine }} build --file containers/Containerfile --tag cador-trio .

# Resolve the dependencies anew
lock:
    {{ uv }} pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra otel --extra self-signed pyproject.toml --output-file requirements.lock
    {{ uv }} pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --all-extras --group dev pyproject.toml --output-file requirements-dev.lock
    {{ uv }} pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group bench --constraint requirements-dev.lock --output-file requirements-bench.lock
