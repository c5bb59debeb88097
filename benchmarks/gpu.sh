#!/usr/bin/env bash
# For a machine with a GPU, without network: build in place for its architecture, the laws on the device, the sanitizers
# of CUDA on a few of them, and the benchmark. Logs and JSON go to $OUT (default build/gpu); PYTHON chooses the
# interpreter. A stage that fails or runs out of time does not stop the next; the exit status says whether all passed.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$(command -v python3 || command -v python)}
OUT=$(realpath -m "${OUT:-build/gpu}")
mkdir -p "$OUT"
: > "$OUT/summary.txt"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0

stage() { # name seconds command...
    local name=$1 limit=$2 begin=$SECONDS status=0
    shift 2
    timeout --kill-after=30 "$limit" "$@" > "$OUT/$name.log" 2>&1 || status=$?
    local verdict=passed
    [[ $status == 0 ]] || { verdict="FAILED ($status)"; failed=1; tail -n 15 "$OUT/$name.log"; }
    [[ $status != 124 && $status != 137 ]] || verdict="FAILED (no end in $limit s)"
    echo "$name: $verdict after $((SECONDS - begin)) s" | tee -a "$OUT/summary.txt"
}

absent() { echo "$1: FAILED ($2)" | tee -a "$OUT/summary.txt"; failed=1; }

# ---- What must be there ----------------------------------------------------------------------------------------------
missing=()
for module in torch numpy pybind11 setuptools pytest hypothesis; do
    "$PYTHON" -c "import $module" 2> /dev/null || missing+=("the Python module $module")
done
scripts=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
export PATH="$scripts:$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
for program in cmake ninja nvcc c++; do
    command -v "$program" > /dev/null || missing+=("$program")
done
if ((${#missing[@]})); then
    printf 'missing: %s\n' "${missing[@]}" | tee -a "$OUT/summary.txt"
    exit 1
fi
capability='import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))'
if ! arch=$("$PYTHON" -c "$capability" 2> "$OUT/device.log"); then
    echo "torch finds no CUDA device: $(tail -n 1 "$OUT/device.log")" | tee -a "$OUT/summary.txt"
    exit 1
fi
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$arch}"

# ---- The stages ------------------------------------------------------------------------------------------------------
workers=()
"$PYTHON" -c 'import xdist' 2> /dev/null && workers=(-n 4)
stage build 1200 env FORCE_CUDA=1 "$PYTHON" setup.py build_ext --inplace
stage info 120 "$PYTHON" -m metafast info
stage laws 1800 "$PYTHON" -m pytest -q "${workers[@]}" tests/test_cuda_laws.py

few='test_law and gradient_of_loss_equals and native and (linear/sequence or norm/2d or graph/conv4 or pool/max-2)'
for tool in memcheck racecheck; do
    if command -v compute-sanitizer > /dev/null; then
        stage "$tool" 900 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda_laws.py -k "$few"
    else
        absent "$tool" "no compute-sanitizer"
    fi
done

# Each workload in a process of its own: a fault on the device would spoil all that follows.
for workload in ${WORKLOADS:-W1 W1b W1-adam W2 W2-momentum W3 W4 W5 W6 W7 W1-fo W3-fo W3-32 W3-256 W4-32}; do
    stage "bench-$workload" 2400 "$PYTHON" -m benchmarks --device cuda --only "$workload" --out "$OUT/bench/$workload"
done

exit "$failed"
