#!/usr/bin/env bash
# Writes requirements/*.txt from pyproject.toml: exact versions with hashes, and no registry address.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
common=(pip compile -q --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links
        --no-header --python-version 3.11 pyproject.toml)
"$uv" "${common[@]}" --extra dev -o requirements/dev.txt
"$uv" "${common[@]}" -c requirements/dev.txt -o requirements/runtime.txt
