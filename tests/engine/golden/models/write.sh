#!/usr/bin/env bash
# Writes the folders beside it anew (needs torch and transformers; theirs were 2.15 and 5.23).
set -euo pipefail
cd "$(dirname "$0")"
write() {
  rm -rf "$2"
  python3 ../../../../examples/models/write_random_model.py "$@" --golden
}
write llama llama2 --rope linear --rope-theta 1000 --old-config --dtype float32 --untied --layers 1 --seed 11
write llama llama3 --rope llama3 --rope-theta 100 --seed 10
write mistral mistral --window 7 --untied --seed 24
write qwen2 qwen2 --dtype float16 --shard-kb 6 --untied --seed 12
write qwen3 qwen3 --head-dim 16 --seed 3
