#!/usr/bin/env bash
# Builds and runs every benchmark that this machine can run; the figures go to the terminal and to build/bench/*.json,
# decode's and prefill's also to build/bench/decode.svg and prefill.svg.
# Arguments go to each of Google Benchmark's programs, e.g. --benchmark_filter=fork; with any, the engine is left out.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/cmake/setup.sh"

install_missing "${build_tools[@]}" "${engine_libraries[@]}" libbenchmark-dev
read -ra cuda <<<"$(cuda_settings)"
build="$root/build/bench"
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPAGEDKV_BUILD_TESTS=OFF \
  "${cuda[@]}" -Wno-dev >/dev/null
cmake --build "$build" --target benchmarks
for program in "$build"/bench/*_bench; do
  name=$(basename "$program")
  echo "== $name"
  "$program" --benchmark_out="$build/$name.json" --benchmark_out_format=json "$@"
done

# engine <name> <flags>...: a run of the reference engine, which has a table of its own.
engine() {
  local name=$1
  shift
  echo "== engine_bench: $name"
  "$build/bench/engine/engine_bench" --json "$build/engine_$name.json" "$@"
}
if [[ $# -eq 0 ]]; then
  engine embedded --backend cpu --requests 16 --max-len 200 --rates 2,8
  if [[ " ${cuda[*]} " != *PAGEDKV_CUDA=OFF* ]] && python3 -c 'import numpy' 2>/dev/null; then
    model="$build/qwen3-0.6b-shape"
    [[ -s $model/model.safetensors ]] || python3 "$root/examples/models/write_qwen3_shape.py" "$model"
    engine qwen3-0.6b --model "$model" --backend cuda --max-model-len 4096 --rates 8,32
  fi
fi

for figure in decode prefill; do
  if [[ -s $build/${figure}_bench.json ]]; then
    python3 "$root/bench/plots.py" --figure "$figure" --out "$build/$figure.svg" "$build/${figure}_bench.json"
  fi
done
