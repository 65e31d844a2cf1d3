#!/usr/bin/env bash
# Installs what is missing, checks layout and lint, and runs the tests; arguments go to pytest.
#
#   bash launch/test.sh tests/test_flow.py -k shift
#   TEST_WORKERS=8 bash launch/test.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh
python=${VENV:-.venv}/bin/python

# Small arrays gain nothing from threads, and the workers would fight over the cores.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# Most of the time goes to compiling programs that run for a moment: without LLVM's passes, a third
# less (test_train_state: 106 CPU-s instead of 180).
export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 ${XLA_FLAGS:-}"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

if [ "$#" -eq 0 ]; then
  "$python" -m ruff format --check .
  "$python" -m ruff check .
fi
exec "$python" -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal "$@"
