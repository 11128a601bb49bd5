#!/usr/bin/env bash
# Objects a second of Triton on one GPU, with utilisation and the fraction of the peak: one script, at most 8 minutes.
#
#     benchmarks/serving_gpu.sh pack               # first, where PyPI is: what a machine without it lacks, into .serving-pack
#     benchmarks/serving_gpu.sh [OUTPUT]           # on the GPU; TRIFID_PEAK_TFLOPS: float32 of the card, 67 for an H100 SXM
#     benchmarks/serving_gpu.sh --cpu [OUTPUT]     # the same way without a GPU, with little of the load: to try the script
#
# A machine with an NVIDIA GPU needs this checkout, Python with PyTorch (CUDA), onnx, onnxruntime, numba, grpcio and click, and
# either PyPI or .serving-pack (33 MB, for PYTHON_VERSION, 3.12 unless given). Models run by PyTorch where it has CUDA, else by
# onnxruntime-gpu, which is then installed from PyPI. No GPU was at hand so far: only --cpu has been run.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
pack=$PWD/.serving-pack
most=64 # MiB
export PYTHONPATH=$PWD PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

if [ "${1:-}" = pack ]; then
    version=${PYTHON_VERSION:-3.12}
    rm -rf "$pack"
    mkdir -p "$pack"
    platforms=()
    for glibc in 17 24 27 28 34 35; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
    core=$($python -c 'import pydantic, pydantic_core; print(f"pydantic=={pydantic.VERSION} pydantic_core=={pydantic_core.__version__}")')
    # shellcheck disable=SC2086
    $python -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        --platform manylinux2014_x86_64 "${platforms[@]}" --dest "$pack" $core annotated-types pydantic-settings pyerfa python-dotenv \
        python-rapidjson tritonclient typing-inspection
    $python -m deploy.local.triton_server pack "$pack" --python "$version"
    tree=$(git ls-files --cached --others --exclude-standard -z | xargs -0 du --bytes --total | tail -n 1 | cut -f 1)
    carried=$(du --bytes --summarize "$pack" | cut -f 1)
    total=$(((tree + carried) / 1048576))
    echo "tree and pack: $((tree / 1048576)) + $((carried / 1048576)) = $total MiB, of at most $most MiB that can be sent along"
    [ $total -lt "$most" ]
    exit
fi

device=gpu
if [ "${1:-}" = --cpu ]; then
    device=cpu
    shift
fi
output=${1:-runs/serving-gpu}
# Before anything is installed.
if [ $device = gpu ] && ! gpus=$(nvidia-smi --list-gpus 2>&1); then
    echo "no NVIDIA GPU here (nvidia-smi: $gpus); --cpu tries the script without one" >&2
    exit 2
fi
mkdir -p "$output"
export TRIFID_TRITON_VENV=${TRIFID_TRITON_VENV:-$PWD/.venv-triton-gpu}
if [ -d "$pack" ]; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$pack
    $python -m pip install --quiet --no-deps --no-compile --upgrade --target "$output/packages" \
        $(find "$pack" -name '*.whl' ! -name 'nvidia_pytriton*')
    export PYTHONPATH=$PYTHONPATH:$PWD/$output/packages
fi

repository=model_repo
if [ $device = cpu ] || $python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    [ -d "$TRIFID_TRITON_VENV" ] || $python -m deploy.local.triton_server setup --packages-of-this-python
    repository=$output/models
    $python -m deploy.local.torch_programs model_repo "$repository"
else
    [ -d "$TRIFID_TRITON_VENV" ] || $python -m deploy.local.triton_server setup --gpu
fi
$python -m deploy.local.triton_server serve "$repository" --http-port 8010 --grpc-port 8011 --metrics-port 8012 \
    >"$output/server.log" 2>&1 &
server=$!
trap 'kill $server ${watching:-} 2>/dev/null || true; wait' EXIT
if [ $device = gpu ]; then
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$output/gpu.txt"
    nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv,noheader,nounits --loop-ms=500 \
        >"$output/utilisation.csv" &
    watching=$!
fi
$python - "$device" $server <<'PY' || { cat "$output/server.log"; exit 1; }
import os
import sys
import time
from pathlib import Path

from broker.errors import DependencyUnavailableError
from broker.inference.triton import TritonEngine

engine, end = TritonEngine("127.0.0.1:8011", Path("model_repo")), time.monotonic() + 180
while True:
    os.kill(int(sys.argv[2]), 0)  # raises where the server has ended
    try:
        engine.check()
        break
    except DependencyUnavailableError:
        if time.monotonic() > end:
            raise
        time.sleep(1)
assert engine.device() == sys.argv[1], engine.placement()
PY
load=(--batches 64,256,1024 --in-flight 1,4,8 --objects 16384 --rounds 2
    --modalities light_curve,light_curve+metadata,light_curve+spectrum+metadata)
[ $device = gpu ] || load=(--batches 64 --in-flight 1,2 --objects 128 --rounds 1 --modalities light_curve+metadata)
timeout 360 $python benchmarks/serving.py --gpu --url 127.0.0.1:8011 "${load[@]}" \
    --peak-tflops "${TRIFID_PEAK_TFLOPS:-67}" --output "$output"
[ $device = cpu ] || awk -F', ' '
    { sum += $2; if ($2 > most) most = $2 }
    END { printf "GPU utilisation: mean %.0f %%, most %.0f %%\n", sum / NR, most }
' "$output/utilisation.csv" | tee -a "$output/serving.md"
