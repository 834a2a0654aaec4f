#!/usr/bin/env python3
"""Soak test of a running pagedkv_server: many streaming clients that come, read, and often leave in the middle.

    bench/engine/soak.py --url http://127.0.0.1:8000 --pid <the server's> --clients 200 --minutes 10

Prints a line every ten seconds and one JSON object at the end: the server's resident memory over time, its KV blocks when
everybody has gone, the latency between two events as the clients see it, and every error. Exits with 1 if a block is
missing, if a request failed in a way that it should not, or, in runs of 8 minutes and more, if memory still grows in the
second half: from the median of its first part to that of its second by more than 0.2 MiB a minute.
"""
import argparse
import asyncio
import collections
import json
import os
import random
import statistics
import time
import urllib.parse

WORDS = "Emma Elizabeth Anne Mr Darcy walked said thought the a house letter morning to of and with her his very".split()


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024


def num_threads_and_files(pid):
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def growth_per_minute(samples):
    """Of (second, MiB), in the second half: between the medians of its two parts."""
    half = samples[len(samples) // 2:]
    if len(half) < 4:
        return 0.0
    parts = half[:len(half) // 2], half[len(half) // 2:]
    (early, before), (late, after) = ([statistics.median(column) for column in zip(*part)] for part in parts)
    return 60 * (after - before) / (late - early)


class Soak:
    def __init__(self, options):
        self.options = options
        url = urllib.parse.urlsplit(options.url)
        self.host, self.port = url.hostname, url.port
        self.counts = collections.Counter()
        self.errors = collections.Counter()
        self.first, self.between = [], []
        self.shared = " ".join(random.choices(WORDS, k=60))  # a prefix that many prompts begin with

    async def open(self, request):
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        return reader, writer, int(head.split()[1])

    async def get(self, path):
        reader, writer, _ = await self.open(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        body = await reader.read()
        writer.close()
        return body.decode()

    def body(self, rng):
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
        if rng.random() < 0.5:
            prompt = self.shared + " " + prompt
        body = {"model": self.options.model, "prompt": prompt, "stream": True, "max_tokens": rng.randint(1, 120),
                "ignore_eos": rng.random() < 0.5, "seed": rng.randint(0, 1 << 30)}
        if rng.random() < 0.2:
            body["n"] = rng.randint(2, 4)
        if rng.random() < 0.2:
            body["stop"] = [".", " and"]
        if rng.random() < 0.1:
            body["logprobs"] = 3
        return json.dumps(body).encode()

    async def request(self, rng):
        body = self.body(rng)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        leaves_after = rng.choice([None, None, None, 0, 1, rng.randint(2, 60)])  # events; half of the clients leave
        reader, writer, status = await self.open(head.encode() + body)
        try:
            if status == 429:
                self.counts["refused"] += 1
                await asyncio.sleep(rng.random())
                return
            if status != 200:
                self.errors[f"status {status}: {(await reader.read())[:200]!r}"] += 1
                return
            last, num_events, is_done = time.monotonic(), 0, False
            while leaves_after is None or num_events < leaves_after:
                line = await reader.readline()
                if not line:
                    break
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    is_done = True
                    break
                if line.startswith(b'data: {"error"'):
                    self.errors[line.decode()] += 1
                    return
                now = time.monotonic()
                (self.between if num_events else self.first).append(now - last)
                last, num_events = now, num_events + 1
            if is_done:
                self.counts["whole"] += 1
            elif leaves_after is not None:
                self.counts["left"] += 1
            else:
                self.errors["a stream ended without [DONE]"] += 1
        finally:
            writer.transport.abort() if rng.random() < 0.5 else writer.close()  # a reset, or a polite end

    async def client(self, seed, end):
        rng = random.Random(seed)
        await asyncio.sleep(rng.random())
        while time.monotonic() < end:
            try:
                await self.request(rng)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.errors[repr(error)] += 1
                await asyncio.sleep(0.1)

    def metrics(self, text):
        return {name: float(value) for name, value in
                (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))}

    async def watch(self, start, end, samples):
        while time.monotonic() < end:
            samples.append((round(time.monotonic() - start), round(resident_mib(self.options.pid), 1)))
            print(f"{samples[-1][0]:5d} s  {samples[-1][1]:7.1f} MiB  {dict(self.counts)}  errors {sum(self.errors.values())}",
                  flush=True)
            await asyncio.sleep(10)

    async def run(self):
        start, samples = time.monotonic(), []
        end = start + 60 * self.options.minutes
        await asyncio.gather(self.watch(start, end, samples),
                             *(self.client(seed, end) for seed in range(self.options.clients)))
        for _ in range(100):
            metrics = self.metrics(await self.get("/metrics"))
            if metrics["pagedkv_requests_running"] + metrics["pagedkv_requests_waiting"] == 0:
                break
            await asyncio.sleep(0.1)
        percentile = lambda values, p: round(1e3 * sorted(values)[min(len(values) - 1, int(p * len(values)))], 1)
        threads, files = num_threads_and_files(self.options.pid)
        growth = growth_per_minute(samples)
        result = {
            "clients": self.options.clients, "minutes": self.options.minutes, **self.counts,
            "errors": dict(self.errors), "events": len(self.first) + len(self.between),
            "ttft_ms": {p: percentile(self.first, q) for p, q in (("p50", .5), ("p99", .99))},
            "itl_ms": {p: percentile(self.between, q) for p, q in (("p50", .5), ("p99", .99))},
            "generated_tokens_per_s": round(metrics["pagedkv_generated_tokens_total"] / (time.monotonic() - start)),
            "preemptions": metrics["pagedkv_preemptions_total"],
            "rss_mib": {"start": samples[0][1], "middle": samples[len(samples) // 2][1], "end": samples[-1][1],
                        "highest": max(rss for _, rss in samples), "growth_per_minute": round(growth, 2)},
            "blocks_after": {state: metrics[f'pagedkv_kv_blocks{{state="{state}"}}'] for state in ("free", "cached", "owned")},
            "threads": threads, "files": files}
        print(json.dumps(result, indent=1))
        is_flat = growth < 0.2 or self.options.minutes < 8  # the first minutes fill caches and buffers
        return not self.errors and result["blocks_after"]["owned"] == 0 and is_flat


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--model", default="austen-5m")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    random.seed(0)
    raise SystemExit(0 if asyncio.run(Soak(options).run()) else 1)
