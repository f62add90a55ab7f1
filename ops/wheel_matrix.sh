#!/usr/bin/env bash
# Builds one wheel and runs the operator's tests with it in every virtual environment given as an argument. Each
# environment needs torch, pytest and hypothesis; nothing is compiled there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
FORCE_CUDA=${FORCE_CUDA:-0} MS_DEFORM_ATTN_REQUIRE=1 "${PYTHON:-python3}" -m pip wheel -q --no-deps -w "$work" "$here"
wheel=$(echo "$work"/*.whl)
echo "wheel: $(basename "$wheel"), $(stat -c %s "$wheel") bytes"
cp -r "$here/../tests/ops" "$work/tests"
failed=0
for venv in "$@"; do
  "$venv/bin/pip" install -q --no-deps --force-reinstall "$wheel" 2>/dev/null
  versions=$(cd "$work" && "$venv/bin/python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)')
  if (cd "$work" && unset PYTHONPATH && "$venv/bin/python" -m pytest -q -p no:cacheprovider --import-mode=importlib \
      ${TESTS:-tests} -m "not slow" >"$work/log" 2>&1); then
    echo "$versions: $(tail -1 "$work/log")"
  else
    failed=1
    echo "$versions: FAILED"
    tail -40 "$work/log"
  fi
done
exit $failed
