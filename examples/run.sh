#!/usr/bin/env bash
# Builds the reference engine and generates text with the embedded model: on a GPU where nvcc is too, else
# on the CPU.
# Arguments go to the program (try --help); without any it shows the demo. With `serve` as the first argument it starts the
# OpenAI-compatible server instead.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/cmake/setup.sh"

program=generate
if [[ ${1:-} == serve ]]; then
  program=pagedkv_server
  shift
fi
{
  install_missing "${build_tools[@]}" "${engine_libraries[@]}"
  read -ra cuda <<<"$(cuda_settings)"
  build="$root/build/generate"
  mkdir -p "$root/build"
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPAGEDKV_BUILD_TESTS=OFF -DPAGEDKV_BUILD_BENCH=OFF \
    "${cuda[@]}" >"$root/build/generate.log" 2>&1 || { cat "$root/build/generate.log"; exit 1; }
  cmake --build "$build" --target "$program"
} >&2
exec "$build/$program" "$@"
