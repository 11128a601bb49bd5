#!/usr/bin/env bash
# Objects a second of Triton on one GPU, with utilisation and the fraction of the peak: one script, at most 8 minutes, on a
# machine with an NVIDIA GPU, this checkout (`pip install -e '.[test]'`) and PyPI. Never run so far: no GPU was at hand.
#
#     benchmarks/serving_gpu.sh [OUTPUT]         # TRIFID_PEAK_TFLOPS: float32 of the card, 67 for an H100 SXM
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-runs/serving-gpu}
python=${PYTHON:-python}
export PYTHONPATH=$PWD
mkdir -p "$output"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$output/gpu.txt"

# With ONNX Runtime for CUDA; a server whose models are not on the GPU is refused below.
[ -d "${TRIFID_TRITON_VENV:-.venv-triton}" ] || $python -m deploy.local.triton_server setup --gpu
$python -m deploy.local.triton_server serve model_repo --http-port 8010 --grpc-port 8011 --metrics-port 8012 >"$output/server.log" 2>&1 &
server=$!
nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv,noheader,nounits --loop-ms=500 >"$output/utilisation.csv" &
watching=$!
trap 'kill $watching $server 2>/dev/null || true; wait' EXIT
for _ in $(seq 120); do
    curl --fail --silent http://127.0.0.1:8010/v2/health/ready && break
    kill -0 $server || { cat "$output/server.log"; exit 1; }
    sleep 1
done
$python - <<'PY'
from pathlib import Path
from broker.inference.triton import TritonEngine

engine = TritonEngine("127.0.0.1:8011", Path("model_repo"))
assert engine.device() == "gpu", engine.placement()
PY
timeout 420 $python benchmarks/serving.py --gpu --url 127.0.0.1:8011 --batches 64,256,1024 --in-flight 1,4,8 --objects 16384 \
    --rounds 3 --modalities light_curve,light_curve+metadata,light_curve+spectrum+metadata \
    --peak-tflops "${TRIFID_PEAK_TFLOPS:-67}" --output "$output"
awk -F', ' '{ sum += $2; if ($2 > most) most = $2 } END { printf "GPU utilisation: mean %.0f %%, most %.0f %%\n", sum / NR, most }' \
    "$output/utilisation.csv" | tee -a "$output/serving.md"
