#!/usr/bin/env bash
# Installs what is missing, then trains the small models on the built-in clips and samples from
# them, on a CPU or a GPU; arguments go to `python -m vidgen.quickstart`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh
exec "${VENV:-.venv}/bin/python" -m vidgen.quickstart "$@"
