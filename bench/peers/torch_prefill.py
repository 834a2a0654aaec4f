#!/usr/bin/env python3
"""PyTorch's attention over contiguous K and V on prefill_bench's grid, timed as prefill_bench times: its peers.

usage: torch_prefill.py [--filter REGEX] [--out RESULT.json]     e.g. --filter 'd128/causal/32_8'
Needs PyTorch and a GPU. A line a point, beside a bf16 product of 8192 x 8192 x 8192 in the same moment."""
import argparse
import json
import math
import re
import sys
import time

HEADS = ((32, 8), (32, 32), (16, 16))
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
NUM_TOKENS = 16384
NUM_SETS = 3  # of Q, K and V, that rotate
WARM_UP, TIMED = 3, 21
TOLERANCE = 1e-2


class Shape:
    """Like PrefillShape (bench/support/prefill_shapes.hpp): equal sequences, the queries are the newest keys."""

    def __init__(self, head_dim, causal, heads, num_seqs, q_len, kv_len):
        self.head_dim, self.causal, self.num_seqs = head_dim, causal, num_seqs
        self.q_heads, self.kv_heads = heads
        self.q_len, self.kv_len = q_len, kv_len

    def flops(self):
        keys = self.kv_len - self.q_len / 2 if self.causal else self.kv_len
        return 4 * self.num_seqs * self.q_len * self.q_heads * self.head_dim * keys

    def name(self):
        lengths = f"{self.num_seqs}x{self.q_len}" + (f"_in_{self.kv_len}" if self.q_len != self.kv_len else "")
        return f"d{self.head_dim}/{'causal' if self.causal else 'full'}/{self.q_heads}_{self.kv_heads}/{lengths}"

    def kv_bytes(self):
        return 2 * 2 * self.num_seqs * self.kv_len * self.kv_heads * self.head_dim


def grid():
    return [Shape(head_dim, causal, heads, NUM_TOKENS // length, length, length)
            for head_dim in (128, 64, 256) for heads in HEADS for causal in (True, False) for length in LENGTHS]


def quantile(values, share):
    """Interpolated between neighbours, like bench/support/statistics.hpp."""
    values = sorted(values)
    position = share * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (position - below)


def burst(torch, call):
    """Microseconds of each of TIMED calls, an event pair around each, behind a rest and WARM_UP calls. The GPU waits
    until the host has enqueued them: PyTorch takes longer to start a short kernel than the kernel runs."""
    torch.cuda.synchronize()
    time.sleep(0.02)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(TIMED)]
    torch.cuda._sleep(10_000_000)  # cycles: 5 ms
    for i in range(WARM_UP):
        call(i)
    for i, (start, stop) in enumerate(events):
        start.record()
        call(WARM_UP + i)
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) * 1e3 for start, stop in events]


class Gemm:
    """The bound: TFLOP/s of a large product in a burst."""
    SIZE = 8192

    def __init__(self, torch):
        self.torch = torch
        self.a, self.b, self.c = (torch.randn(NUM_SETS, self.SIZE, self.SIZE, device="cuda", dtype=torch.bfloat16)
                                  for _ in range(3))

    def tflops(self):
        times = burst(self.torch, lambda i: self.torch.mm(self.a[i % NUM_SETS], self.b[i % NUM_SETS], out=self.c[0]))
        return 2 * self.SIZE**3 / quantile(times, 0.5) / 1e6


class Tensors:
    """Random Q, K and V in memory that all shapes share."""

    def __init__(self, torch, largest):
        self.memory = [torch.randn(largest, device="cuda", dtype=torch.bfloat16) for _ in range(3)]

    def of(self, shape, num_sets):
        """Q, K and V, each [sets, sequences, length, heads, head_dim]; fewer sets of what would not fit."""
        views = []
        for memory, length, heads in ((self.memory[0], shape.q_len, shape.q_heads),
                                      (self.memory[1], shape.kv_len, shape.kv_heads),
                                      (self.memory[2], shape.kv_len, shape.kv_heads)):
            sizes = (shape.num_seqs, length, heads, shape.head_dim)
            sets = min(num_sets, memory.numel() // math.prod(sizes))
            views.append(memory[:sets * math.prod(sizes)].view(sets, *sizes))
        return views


def reference(torch, shape, q, k, v, num_rows):
    """In fp32, the last rows of the last sequence: [q_heads, num_rows, head_dim]."""
    group = shape.q_heads // shape.kv_heads
    q = q[-1, -num_rows:].transpose(0, 1).float()
    k, v = (x[-1].transpose(0, 1).float().repeat_interleave(group, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(shape.head_dim)
    if shape.causal:
        query = torch.arange(shape.kv_len - num_rows, shape.kv_len, device="cuda")[:, None]
        scores.masked_fill_(torch.arange(shape.kv_len, device="cuda")[None] > query, -math.inf)
    return torch.softmax(scores, -1) @ v


class Report:
    """The table, and what --out keeps: rows like those of prefill_bench."""

    def __init__(self, torch, out):
        self.out, self.rows, self.failed = out, [], False
        self.context = {"date": time.strftime("%Y-%m-%d"), "gpu": torch.cuda.get_device_name(),
                        "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
                        "calls": f"bursts of {WARM_UP + TIMED}"}
        print("# " + ", ".join(f"{key} {value}" for key, value in self.context.items()))
        print(f"{'case':49} {'us':>8} {'TFLOP/s':>7} {'GEMM':>5} {'%GEMM':>5} {'error':>7}")

    def add(self, name, shape, times, gemm, error):
        us, p10, p90 = (quantile(times, share) for share in (0.5, 0.1, 0.9))
        tflops = shape.flops() / us / 1e6
        self.rows.append({"name": name, "us": us, "p10_us": p10, "p90_us": p90, "TFLOP/s": tflops,
                          "gemm_TFLOP/s": gemm, "of_gemm_%": 100 * tflops / gemm, "error": error})
        print(f"{name:49} {us:8.1f} {tflops:7.1f} {gemm:5.0f} {100 * tflops / gemm:5.1f} {error:7.1e}", flush=True)

    def fail(self, name, why):
        self.failed = True
        print(f"{name:49} FAILED: {why}"[:200], flush=True)

    def end(self):
        if self.out:
            with open(self.out, "w", encoding="utf-8") as file:
                json.dump({"context": self.context, "benchmarks": self.rows}, file, indent=1)
        return 1 if self.failed or not self.rows else 0


def arguments_of(doc):
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--filter", default="", help="regular expression that names must match in part")
    parser.add_argument("--out", help="a JSON file")
    return parser.parse_args()


def measure(torch, report, gemm, name, shape, call, expected):
    """Checks call(0) [sequences, q_len, q_heads, head_dim] against the last rows, then times it."""
    try:
        rows = call(0)[-1, -expected.shape[1]:].transpose(0, 1).float()
        error = ((rows - expected).norm() / expected.norm()).item()
        if error < TOLERANCE:
            report.add(name, shape, burst(torch, call), gemm, error)
        else:
            report.fail(name, f"relative L2 error {error:.1e}")
    except RuntimeError as failure:
        torch.cuda.synchronize()
        report.fail(name, str(failure).split("\n", maxsplit=1)[0])


def main():
    arguments = arguments_of(__doc__)
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
    report = Report(torch, arguments.out)
    product = Gemm(torch)
    tensors = Tensors(torch, NUM_SETS * NUM_TOKENS * 32 * 256)
    for shape in grid():
        names = {backend: f"grid/{shape.name()}/{backend}" for backend in ("cudnn", "fa2")}
        wanted = {backend: name for backend, name in names.items() if re.search(arguments.filter, name)}
        if not wanted:
            continue
        q, k, v = tensors.of(shape, NUM_SETS)
        expected = reference(torch, shape, q[0], k[0], v[0], 16)
        gemm = product.tflops()
        for backend, name in wanted.items():
            choice = SDPBackend.CUDNN_ATTENTION if backend == "cudnn" else SDPBackend.FLASH_ATTENTION

            def call(i):
                at = i % NUM_SETS
                return torch.nn.functional.scaled_dot_product_attention(
                    q[at].transpose(1, 2), k[at].transpose(1, 2), v[at].transpose(1, 2), is_causal=shape.causal,
                    enable_gqa=shape.q_heads != shape.kv_heads).transpose(1, 2)

            with sdpa_kernel(choice):
                measure(torch, report, gemm, name, shape, call, expected)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
