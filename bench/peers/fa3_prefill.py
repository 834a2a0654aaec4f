#!/usr/bin/env python3
"""FlashAttention-3 over contiguous K and V on prefill_bench's grid and chunks, timed as prefill_bench times: its peer.

usage: fa3_prefill.py [--filter REGEX] [--out RESULT.json]     e.g. --filter 'd128/causal/32_8'
Needs PyTorch 2.10 or newer for CUDA 13, a Hopper GPU, and fa3-fwd 0.0.3 (pip install --no-deps fa3-fwd), which
is built without paged K and V."""
import re
import sys

from torch_prefill import (NUM_SETS, NUM_TOKENS, TIMED, WARM_UP, Gemm, Report, Shape, Tensors, arguments_of, grid,
                           measure, reference)


def chunks():
    """Like prefill_chunks() (bench/support/prefill_shapes.hpp)."""
    lengths = [(1, new, context) for context in (8192, 16384, 65536) for new in (512, 2048, 8192)]
    lengths += [(4, 512, 4096), (4, 2048, 4096), (8, 128, 2048), (8, 2048, 2048), (16, 16, 1024)]
    return [Shape(128, True, (q_heads, 8), *sizes) for q_heads in (32, 64) for sizes in lengths]


def num_sets(shape):
    """Like num_prefill_sets(): where a set could stay in L2, a gigabyte of them."""
    if shape.q_len == shape.kv_len:
        return NUM_SETS
    return min(max(-(-10**9 // shape.kv_bytes()), NUM_SETS), WARM_UP + TIMED)


def main():
    arguments = arguments_of(__doc__)
    try:
        import torch
        from fa3_fwd_interface import flash_attn_func
    except ImportError as missing:
        print(f"{missing}: nothing to measure")
        return 0
    if not torch.cuda.is_available():
        print("no GPU: nothing to measure")
        return 0
    torch.manual_seed(1)
    report = Report(torch, arguments.out)
    product = Gemm(torch)
    tensors = Tensors(torch, NUM_SETS * NUM_TOKENS * 32 * 256)
    for group, shapes in (("grid", grid()), ("chunked", chunks())):
        for shape in shapes:
            name = f"{group}/{shape.name()}/fa3"
            if not re.search(arguments.filter, name):
                continue
            q, k, v = tensors.of(shape, num_sets(shape))
            splits = 1 if group == "grid" else 0  # 0: as many as it thinks best

            def call(i):
                return flash_attn_func(q[i % len(q)], k[i % len(k)], v[i % len(v)], causal=shape.causal,
                                       num_splits=splits)

            with torch.inference_mode():
                expected = reference(torch, shape, q[0], k[0], v[0], 16)
                measure(torch, report, product.tflops(), name, shape, call, expected)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
