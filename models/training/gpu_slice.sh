#!/usr/bin/env bash
# Train for one slice on a bare machine that has PyTorch and this checkout, which need not be installed. The same command
# again continues the run. Usage: models/training/gpu_slice.sh ARCHIVE OUT [--config small-gpu] [--minutes 9] [--slices 3]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${RDSR_GPU_WORK:-/tmp/rdsr-gpu}
archive=$1 out=$2
shift 2
mkdir -p "$work/path"
ln -sfn "$root" "$work/path/rdsr"
PYTHONPATH="$work/path" exec python3 -u -m rdsr.models.training.gpu slice "$archive" --work "$work" --out "$out" "$@"
