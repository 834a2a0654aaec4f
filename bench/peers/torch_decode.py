#!/usr/bin/env python3
"""PyTorch's attention as a decode step over contiguous K and V, timed as decode_bench times: a check of the peers.

Needs PyTorch and a GPU. One line a point: backend,q_heads,kv_heads,lengths,us,p10_us,p90_us,GB/s,error."""
import math
import sys

Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
# sequences, keys of each
POINTS = [(1, 1024), (1, 4096), (1, 16384), (8, 1024), (8, 4096), (32, 1024), (32, 4096), (128, 1024)]
REPLAYS = 21


def quantile(values, share):
    """Interpolated between neighbours, like bench/support/statistics.hpp."""
    values = sorted(values)
    position = share * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (position - below)


def replay_times(torch, num_calls, call):
    """Microseconds a call of call(i), i < num_calls, captured in one graph; one number a replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what a library does at its first call must not be captured
        for i in range(2):
            call(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(num_calls):
            call(i)
    times = []
    for _ in range(REPLAYS + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3 / num_calls)
    return times[2:]


def reference(torch, q, k, v):
    """In fp32, the first sequence only: [Q_HEADS, 1, HEAD_DIM]."""
    group = q.shape[1] // k.shape[1]
    k, v = (x[0].float().repeat_interleave(group, 0) for x in (k, v))
    weights = torch.softmax(q[0].float() @ k.transpose(1, 2) / math.sqrt(HEAD_DIM), -1)
    return weights @ v


def main():
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        print("PyTorch is not installed: nothing to measure")
        return 0
    if not torch.cuda.is_available():
        print("no GPU: nothing to measure")
        return 0
    torch.manual_seed(1)
    print(f"# {torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print("backend,q_heads,kv_heads,lengths,us,p10_us,p90_us,GB/s,error")
    wrong = False
    for num_seqs, kv_len in POINTS:
        kv_bytes = num_seqs * kv_len * KV_HEADS * HEAD_DIM * 2 * 2
        num_sets = min(512, max(2, math.ceil(1e9 / kv_bytes)))
        kv = torch.empty(num_sets, 2, num_seqs, KV_HEADS, kv_len, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        kv.normal_()
        q = torch.randn(num_seqs, Q_HEADS, 1, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        expected = reference(torch, q, kv[0, 0], kv[0, 1])
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            def call(i):
                with sdpa_kernel(backend):
                    return torch.nn.functional.scaled_dot_product_attention(
                        q, kv[i, 0], kv[i, 1], enable_gqa=Q_HEADS != KV_HEADS)

            error = ((call(0)[0].float() - expected).norm() / expected.norm()).item()
            wrong |= not error < 1e-2
            times = replay_times(torch, num_sets, call)
            us, p10, p90 = (quantile(times, share) for share in (0.5, 0.1, 0.9))
            print(f"{name},{Q_HEADS},{KV_HEADS},{num_seqs}x{kv_len},{us:.2f},{p10:.2f},{p90:.2f},"
                  f"{kv_bytes / us / 1e3:.0f},{error:.1e}", flush=True)
        del kv
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
