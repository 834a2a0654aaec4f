#!/usr/bin/env python3
"""Draws decode's speed against the size of K and V, between the ceiling, the floor of each size, and the best peers; or
prefill's against the length, beside other projects' kernels.

usage: plots.py [--figure decode|prefill] [--out FILE.svg] [RESULT.json ...]     results: decode_bench
--benchmark_filter='^(grid|mixed)/' --benchmark_out=RESULT.json, prefill_bench --benchmark_filter='^grid/', those of
peers/torch_prefill.py and peers/fa3_prefill.py --out RESULT.json, or what keep.py made of them; by default those of
bench/results/h200, drawn beside them. Peers that no result holds are drawn as measured earlier (peers/*.csv). Needs
matplotlib."""
import argparse
import csv
import json
import pathlib
import sys

BENCH = pathlib.Path(__file__).resolve().parent
HEADS = ((32, 8), (64, 8), (32, 32), (8, 1))


def read_results(paths):
    """The grid's and the mixed batches' counters by (q_heads, kv_heads, lengths); other benchmarks' files have none."""
    points = {}
    for path in paths:
        result = json.loads(path.read_text())
        for run in result.get("benchmarks", result.get("rows", [])):
            parts = run.get("name", "").split("/")
            if parts[0] not in ("grid", "mixed") or "us" not in run:  # a case that failed has no time
                continue
            q_heads, kv_heads = (int(n) for n in parts[1].split("_"))
            points[q_heads, kv_heads, parts[2]] = run
    return points


def read_peers(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {(int(row["q_heads"]), int(row["kv_heads"]), row["lengths"]): row for row in csv.DictReader(lines)}


def is_mixed(key):
    batch, _, length = key[2].partition("x")
    return not (batch.isdigit() and length.isdigit())


def draw_panel(axes, heads, points, peers):
    own = {key: run for key, run in points.items() if key[:2] == heads}
    by_size = sorted(own.values(), key=lambda run: run["kv_MB"])
    floors = {run["kv_MB"]: run["kv_MB"] / run["floor_us"] * 1e3 for run in by_size}
    axes.axhline(by_size[0]["ceiling_GB/s"], color="0.4", linestyle="--", linewidth=1, label="one long read")
    axes.plot(floors.keys(), floors.values(), color="0.6", linewidth=1.5, label="only reading as much")
    for mixed in (False, True):
        keys = [key for key in own if is_mixed(key) == mixed]
        label = " (mixed lengths)" if mixed else ""
        rated = [key for key in keys if key in peers]
        axes.plot([own[key]["kv_MB"] for key in rated],
                  [own[key]["kv_MB"] / float(peers[key]["best_peer_us"]) * 1e3 for key in rated],
                  "s", color="tab:orange", markersize=5, fillstyle="none" if mixed else "full",
                  label="best paged peer" + label if rated else None)
        axes.plot([own[key]["kv_MB"] for key in keys], [own[key]["GB/s"] for key in keys],
                  "o", color="tab:blue", markersize=5, fillstyle="none" if mixed else "full",
                  label="pagedkv" + label if keys else None)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    axes.set_title(f"{heads[0]} query heads, {heads[1]} KV head{'s' if heads[1] > 1 else ''}", fontsize=10)


PREFILL_PANELS = [(head_dim, mask) for head_dim in (64, 128, 256) for mask in ("causal", "full")]
# What the table and the results call a kernel, then how it is drawn.
PREFILL_CURVES = {
    "block16": ("pagedkv, blocks of 16", "tab:blue", "o-"),
    "block128": ("pagedkv, blocks of 128", "tab:cyan", "o--"),
    "contiguous": ("pagedkv, contiguous", "tab:purple", "o:"),
    "fa3": ("FlashAttention-3, contiguous", "tab:green", "s-"),
    "fa3_block16": ("FlashAttention-3, blocks of 16", "tab:orange", "s-"),
    "cudnn": ("cuDNN, contiguous", "tab:red", "^-"),
    "fa2": ("FlashAttention-2, contiguous", "0.5", "v-"),
}


def read_prefill(paths):
    """TFLOP/s by kernel and shape, e.g. ["fa3"]["d128/causal/32_8/4x4096"]; names "grid/<shape>/<kernel>"."""
    speeds = {}
    for path in paths:
        result = json.loads(path.read_text())
        for run in result.get("benchmarks", result.get("rows", [])):
            parts = run.get("name", "").split("/")
            if parts[0] == "grid" and "TFLOP/s" in run:
                speeds.setdefault(parts[5], {})["/".join(parts[1:5])] = run["TFLOP/s"]
    return speeds


def read_prefill_peers(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    speeds = {}
    for row in csv.DictReader(lines):
        for peer, speed in row.items():
            if peer not in ("shape", "gemm") and speed:
                speeds.setdefault(peer, {})[row["shape"]] = float(speed)
    return speeds


def draw_prefill_panel(axes, head_dim, mask, measured, earlier):
    def curve(speeds, heads):
        points = {}
        for shape, speed in speeds.items():
            dim, its_mask, its_heads, lengths = shape.split("/")
            if (dim, its_mask, its_heads) == (f"d{head_dim}", mask, heads) and "_in_" not in lengths:
                points[int(lengths.split("x")[1])] = speed
        return sorted(points.items())

    for kernel, (label, color, style) in PREFILL_CURVES.items():
        for speeds, heads, note in ((measured, "32_8", ""), (earlier, "32_8", " (earlier)"),
                                    (earlier, "32_32", " (earlier, 32 KV heads)")):
            points = curve(speeds.get(kernel, {}), heads)
            if points:
                axes.plot(*zip(*points), style, color=color, markersize=4, linewidth=1.2, label=label + note,
                          alpha=0.6 if note else 1)
                break
    lengths = [512 << i for i in range(6)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    axes.set_title(f"head_dim {head_dim}, {mask}", fontsize=10)


def draw_prefill(pyplot, paths, out):
    measured = read_prefill(paths)
    if not any(kernel in measured for kernel in ("block16", "block128", "contiguous")):
        print("no plots: no result holds prefill's grid")
        return
    earlier = read_prefill_peers(BENCH / "peers/h200_prefill.csv")
    figure, panels = pyplot.subplots(3, 2, figsize=(10, 10.8), sharex=True, sharey=True, squeeze=False)
    for axes, (head_dim, mask) in zip(panels.flat, PREFILL_PANELS):
        draw_prefill_panel(axes, head_dim, mask, measured, earlier)
    for axes in panels[-1]:
        axes.set_xlabel("queries and keys of a sequence, 16,384 in all")
    for row in panels:
        row[0].set_ylabel("TFLOP/s, 32 query and 8 KV heads")
        row[0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="*", type=pathlib.Path)
    parser.add_argument("--figure", choices=("decode", "prefill"), default="decode")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (Debian and Ubuntu: apt install python3-matplotlib)")
        return 0
    matplotlib.use("svg")
    from matplotlib import pyplot

    out = arguments.out or BENCH / f"results/h200/{arguments.figure}.svg"
    paths = arguments.results or sorted((BENCH / "results/h200").glob(f"*{arguments.figure}*.json"))
    # The same data, the same file; text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "pagedkv", "svg.fonttype": "none", "font.size": 9})
    if arguments.figure == "prefill":
        draw_prefill(pyplot, paths, out)
        return 0
    points = read_results(paths)
    heads = [pair for pair in HEADS if any(key[:2] == pair for key in points)]
    if not heads:
        print("no plots: no result holds decode's grid")
        return 0
    peers = read_peers(BENCH / "peers/h200_decode.csv")
    columns = min(2, len(heads))
    rows = (len(heads) + columns - 1) // columns
    figure, panels = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.6 * rows), sharey=True, squeeze=False)
    for axes in panels.flat[len(heads):]:
        axes.set_visible(False)
    for axes, pair in zip(panels.flat, heads):
        draw_panel(axes, pair, points, peers)
    for axes in panels[-1]:
        axes.set_xlabel("K and V of a call, MB")
    for row in panels:
        row[0].set_ylabel("GB/s, K and V counted once")
    panels[0][0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
