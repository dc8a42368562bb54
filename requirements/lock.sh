#!/usr/bin/env bash
# Writes requirements/*.txt from pyproject.toml: exact versions with hashes, and no registry address.
# dev.txt: everything; runtime.txt: what Headwater imports; build.txt: what makes its wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
common=(pip compile -q --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links
        --no-header --python-version 3.11)
"$uv" "${common[@]}" pyproject.toml --extra dev -o requirements/dev.txt
"$uv" "${common[@]}" pyproject.toml -c requirements/dev.txt -o requirements/runtime.txt
grep -o 'hatchling[^"]*' pyproject.toml | head -n 1 |
    "$uv" "${common[@]}" - -c requirements/dev.txt -o requirements/build.txt
