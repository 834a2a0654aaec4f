#!/usr/bin/env python3
"""Sends malformed HTTP and JSON to a running pagedkv_server (best one that was built with AddressSanitizer).

    bench/engine/fuzz_server.py --url http://127.0.0.1:8000 --minutes 5 --seed 1

Every hundredth time it asks for a completion whose text is known: what others send must not change it. Prints how often which
status came; exits with 1 if the known text changed or the server failed (5xx) or went away.
"""
import argparse
import collections
import json
import random
import socket
import sys
import threading
import time
import urllib.parse

ODD_VALUES = [None, True, False, 0, -1, 1, 1 << 31, 1 << 63, -(1 << 63), 1 << 80, 0.5, -0.5, 1e308, "", "a", "\0", "\u20ac" * 50,
              [], [None], [1], [-1], ["a"], [[1]], [[]], {}, {"a": 1}, {"1": 5}, {"type": "text"}, {"include_usage": True},
              [{"role": "user", "content": "x"}], [{"role": "user"}], [{"role": [], "content": {}}], "x" * 5000, list(range(500))]
FIELDS = ["model", "prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens", "n", "temperature", "top_p", "top_k",
          "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "seed", "stop", "stop_token_ids",
          "ignore_eos", "logprobs", "top_logprobs", "stream", "stream_options", "user", "best_of", "echo", "tools", "frob"]
ODD_BYTES = b"\"[]{},:0123456789-\\ \xff\x00\r\n;=/%e\xc3\xed\xa0"
ODD_HEADERS = [b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Length: -1", b"Content-Length: 5",
               b"Content-Length: 99999999999999999999", b"Content-Length: 1000000000", b"Content-Encoding: gzip",
               b"Content-Encoding: br", b"Content-Encoding: deflate", b"Expect: 100-continue", b"Expect: x",
               b"Range: bytes=0-1", b"Range: bytes=5-1", b"Range: bytes=-5", b"Range: bytes=9999-", b"Range: bytes=0-0,1-1,2-",
               b"Range: bytes=" + b"1-2," * 2000, b"Range: bytes=99999999999999999999-1", b"Range: x", b"Connection: keep-alive",
               b"Connection: Upgrade", b"Content-Type: multipart/form-data; boundary=x", b"Content-Type: multipart/form-data",
               b"Content-Type: application/x-www-form-urlencoded", b"Authorization: Bearer " + b"x" * 7000, b"Authorization:",
               b"Accept-Encoding: gzip, br", b"Host: " + b"a" * 8000, b": x", b"x", b"x: \x00", b"A: b\r\n c: d", b"X-" + b"y: z\r\nX-" * 500]


def json_body(rng):
    body = {"model": "austen-5m", "max_tokens": rng.randint(1, 8)}
    is_chat = rng.random() < 0.3
    body["messages" if is_chat else "prompt"] = [{"role": "user", "content": "x"}] if is_chat else "Emma"
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        body[rng.choice(FIELDS)] = rng.choice(ODD_VALUES)
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    kind = rng.random()
    if kind < 0.1:
        text = text[: rng.randrange(len(text))]
    elif kind < 0.3:
        data = bytearray(text)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(ODD_BYTES) if rng.random() < 0.7 else rng.randrange(256)
        text = bytes(data)
    elif kind < 0.33:
        text = rng.choice([b"[" * 100000, b"{\"a\":" * 20000, b"\"" + b"\\u0000" * 5000 + b"\"", b"", b"1e999", bytes(rng.randbytes(300))])
    return ("/v1/chat/completions" if is_chat else "/v1/completions"), text


def http_bytes(rng):
    path, body = json_body(rng)
    headers = [b"Host: x", b"Content-Type: application/json"]
    framed = body
    if rng.random() < 0.2:  # in chunks, honest or not
        headers.append(b"Transfer-Encoding: chunked")
        framed = b""
        while body:
            n = rng.randint(1, len(body))
            framed += b"%x\r\n" % (n if rng.random() < 0.95 else rng.choice([0, n + 7, 1 << 40, 1 << 70])) + body[:n] + b"\r\n"
            body = body[n:]
        framed += rng.choice([b"0\r\n\r\n", b"0\r\n\r\n", b"", b"-1\r\n\r\n", b"zz\r\n", b"0\r\nX: y\r\n\r\n"])
    else:
        headers.append(b"Content-Length: %d" % (len(body) if rng.random() < 0.9 else rng.choice([0, len(body) + 9, len(body) // 2])))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        headers.insert(rng.randrange(len(headers) + 1), rng.choice(ODD_HEADERS))
    method, version = b"POST", b"HTTP/1.1"
    if rng.random() < 0.1:
        method = rng.choice([b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"PRI", b"CONNECT", b"TRACE", b"get", b"", b"\xff"])
        path = rng.choice([path, "/", "/health", "/metrics", "/v1/models", "*", "//", "/%00", "/%", "/%zz%u0000", "/../../etc/passwd",
                           "/?" + "a=b&" * 1500, "/" + "a" * 8100, "http://x/", ""])
    if rng.random() < 0.03:
        version = rng.choice([b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"x"])
    data = method + b" " + path.encode() + b" " + version + b"\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + framed
    kind = rng.random()
    if kind < 0.05:
        data = data[: rng.randrange(len(data))]
    elif kind < 0.12:
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            damaged[rng.randrange(min(len(damaged), 300))] = rng.choice(ODD_BYTES)
        data = bytes(damaged)
    elif kind < 0.14:
        data = data + data
    return data


class Fuzz:
    def __init__(self, options):
        url = urllib.parse.urlsplit(options.url)
        self.address = (url.hostname, url.port)
        self.end = time.monotonic() + 60 * options.minutes
        self.statuses, self.problems, self.lock = collections.Counter(), [], threading.Lock()
        self.known = self.text()

    def exchange(self, data, half_close=False, patience=20):
        with socket.create_connection(self.address, timeout=patience) as connection:
            try:
                connection.sendall(data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
                received = b""
                while part := connection.recv(65536):
                    received += part
                return received
            except TimeoutError:
                return b"timeout"
            except OSError:  # an end that came before the last byte was sent
                return b"reset"

    def text(self):
        body = b'{"model":"austen-5m","prompt":"It is a truth","max_tokens":8,"temperature":0}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        return json.loads(self.exchange(head % len(body) + body, patience=60).split(b"\r\n\r\n", 1)[1])["choices"][0]["text"]

    def work(self, seed):
        rng, count = random.Random(seed), 0
        while time.monotonic() < self.end and not self.problems:
            data = http_bytes(rng)
            try:
                answer = self.exchange(data, half_close=rng.random() < 0.7, patience=rng.choice([0.3, 8]))
                status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.1 ") else answer.decode(errors="replace")[:20]
                if status.startswith("5"):
                    self.problems.append((status, data[:500], answer[:500]))
                count += 1
                if count % 100 == 0 and self.text() != self.known:
                    self.problems.append(("another text", data[:500], b""))
            except OSError as error:
                status = repr(error)
                self.problems.append((status, data[:500], b""))
            with self.lock:
                self.statuses[status or "nothing"] += 1

    def run(self, seed):
        threads = [threading.Thread(target=self.work, args=(seed * 1000 + i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps({"requests": sum(self.statuses.values()), "answers": dict(self.statuses.most_common())}, indent=1))
        for problem in self.problems:
            print(problem, file=sys.stderr)
        return not self.problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    raise SystemExit(0 if Fuzz(options).run(options.seed) else 1)
