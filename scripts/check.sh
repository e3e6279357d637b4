#!/usr/bin/env bash
# Every gate, cheapest first: `check.sh quick` leaves out the slow tests, `check.sh all` is what must be green,
# `check.sh coverage` is the same and tells which lines no test reaches: a quarter slower, so not every time.
# A failed gate does not hide the next one.
set -uo pipefail
cd "$(dirname "$0")/.."

readonly scope=${1:-quick} ANSWERS=build/answers
shift || true
failed=()

gate() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || failed+=("$name")
}

# A green gate has nothing to say.
silent() {
    local output
    output=$("$@" 2>&1) || { printf '%s\n' "$output"; return 1; }
}

if [ ! -x .venv/bin/pytest ]; then
    echo "check: there is no virtual environment here yet: run 'make setup' first." >&2
    exit 1
fi
export PATH=$PWD/.venv/bin:$PATH

gate format silent ruff format --check .
gate lint silent ruff check .
gate floors silent lint-imports --no-cache
gate types silent basedpyright --level error
case $scope in
    quick) gate tests pytest -q -m "not slow and not orthanc and not postgres and not browser" "$@" ;;
    all | coverage)
        rm -rf "$ANSWERS"
        reached=()
        [ "$scope" = all ] || reached=(--cov --cov-report=term)
        gate tests pytest -n 2 --dist loadfile "${reached[@]}" -p tests.recorder --record "$ANSWERS" "$@"
        # A part of the tests may have nothing to judge, the whole must.
        gate judges python scripts/judge.py "$ANSWERS" --least $(($# ? 0 : 500))
        ;;
    *) echo "check: say 'check.sh quick', 'check.sh all' or 'check.sh coverage'" >&2 && exit 2 ;;
esac

if [ ${#failed[@]} -gt 0 ]; then
    echo "check: failed: ${failed[*]}" >&2
    exit 1
fi
echo "check: all gates are green"
