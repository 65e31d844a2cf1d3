#!/usr/bin/env bash
# Makes the virtual environment .venv and installs the pinned requirements into it. Repeatable: it
# does nothing when the environment already holds them.
#
#   PYTHON=python3.12   the interpreter; by default the newest of 3.13, 3.12 and 3.11 that runs
#   VENV=.venv312       another place for the environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}

fail() {
  printf 'vidgen install: %s\n' "$*" >&2
  exit 1
}

version_of() { # the "3.12" of an interpreter, or nothing if it does not run
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

lock_of() { # "3.12" -> requirements/py312.lock
  echo "requirements/py${1/./}.lock"
}

find_python() {
  local candidate version
  if [ -n "${PYTHON:-}" ]; then
    version=$(version_of "$PYTHON")
    [ -n "$version" ] || fail "PYTHON=$PYTHON does not run."
    [ -f "$(lock_of "$version")" ] ||
      fail "PYTHON=$PYTHON is Python $version; vidgen has pinned requirements for 3.11, 3.12 and 3.13."
    echo "$PYTHON"
    return
  fi
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    version=$(version_of "$candidate")
    if [ -n "$version" ] && [ -f "$(lock_of "$version")" ]; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11, 3.12 or 3.13 found. Install one, or name it: PYTHON=/path/to/python3.12 bash $0"
}

if [ -x "$venv/bin/python" ]; then
  version=$(version_of "$venv/bin/python")
  [ -n "$version" ] || fail "$venv/bin/python does not run any more: remove $venv and start again."
  [ -f "$(lock_of "$version")" ] ||
    fail "$venv has Python $version; vidgen needs 3.11, 3.12 or 3.13: remove $venv and start again."
  if [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$version" ]; then
    fail "$venv has Python $version, PYTHON=$PYTHON is another: remove $venv, or set VENV to another folder."
  fi
else
  python=$(find_python)
  version=$(version_of "$python")
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module. On Debian or Ubuntu: apt-get install python$version-venv"
  echo "Making $venv with Python $version"
  "$python" -m venv "$venv"
fi

lock=$(lock_of "$version")
stamp=$venv/installed
want=$("$venv/bin/python" - "$lock" setup.py pyproject.toml <<'PY'
import hashlib, os, sys

digest = hashlib.sha256(os.getcwd().encode())
for path in sys.argv[1:]:
    digest.update(open(path, "rb").read())
print(digest.hexdigest())
PY
)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
  echo "Installing $lock into $venv"
  start=$SECONDS
  rm -f "$stamp"
  pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
  # setuptools first: `promise`, which TFDS needs, has no wheel, and is built with this pinned one.
  awk '/^setuptools==/ {on = 1} on {print} on && !/\\$/ {exit}' "$lock" >"$venv/setuptools.lock"
  "${pip[@]}" --require-hashes -r "$venv/setuptools.lock" &&
    "${pip[@]}" --require-hashes --no-build-isolation --use-pep517 \
      --only-binary :all: --no-binary promise -r "$lock" ||
    fail "pip could not install $lock; its message stands above. A second run goes on from pip's cache."
  "${pip[@]}" --no-deps --no-build-isolation -e .
  echo "$want" >"$stamp"
  echo "Installed in $((SECONDS - start)) s"
fi
