#!/usr/bin/env bash
# Builds and runs every benchmark that this machine can run; the figures go to the terminal and to build/bench/*.json,
# decode's and prefill's also to build/bench/decode.svg and prefill.svg.
# Arguments go to each program, e.g. --benchmark_filter=fork.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/cmake/setup.sh"

install_missing "${build_tools[@]}" libbenchmark-dev
read -ra cuda <<<"$(cuda_settings)"
build="$root/build/bench"
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPAGEDKV_BUILD_TESTS=OFF -DPAGEDKV_BUILD_EXAMPLES=OFF \
  "${cuda[@]}" -Wno-dev >/dev/null
cmake --build "$build" --target benchmarks
for program in "$build"/bench/*_bench; do
  name=$(basename "$program")
  echo "== $name"
  "$program" --benchmark_out="$build/$name.json" --benchmark_out_format=json "$@"
done
for figure in decode prefill; do
  if [[ -s $build/${figure}_bench.json ]]; then
    python3 "$root/bench/plots.py" --figure "$figure" --out "$build/$figure.svg" "$build/${figure}_bench.json"
  fi
done
