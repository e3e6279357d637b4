#!/usr/bin/env bash
# Run the measurements: all of bench/, or the named ones (`make bench ARGS="read search"`).
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
    files=("${@/#/bench/}")
    files=("${files[@]/%/.py}")
else
    mapfile -t files < <(compgen -G 'bench/[a-z]*.py' || true)
fi
if [ ${#files[@]} -eq 0 ]; then
    echo "bench: there is no measurement in bench/." >&2
    exit 1
fi
for file in "${files[@]}"; do
    echo "== $file"
    .venv/bin/python "$file"
done
