#!/usr/bin/env python3
"""The official `openai` client against pagedkv_server and the embedded model. Exits with 77 where there is no such client.

    tests/engine/server/openai_client_test.py <path of pagedkv_server> [<model folder>]
"""
import subprocess
import sys
import threading

try:
    import openai
except ImportError:
    print("skipped: no package openai")
    sys.exit(77)

TRUTH = "It is a truth universally acknowledged, that a single man"
WIFE = " in possession of a good fortune, must be in want of a wife"


def expect_error(kind, call, part):
    try:
        call()
    except kind as error:
        assert part in str(error), f"{part!r} is not in {error}"
        return error
    raise AssertionError(f"no {kind.__name__}")


def check_models(client):
    models = client.models.list().data
    assert [model.id for model in models] == ["austen-5m"], models


def check_completion(client):
    answer = client.completions.create(model="austen-5m", prompt=TRUTH, max_tokens=15, temperature=0)
    assert answer.choices[0].text.startswith(WIFE), answer
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (15, 15), answer.usage
    long = TRUTH + WIFE + ". " + TRUTH
    for _ in range(2):
        usage = client.completions.create(model="austen-5m", prompt=long, max_tokens=1).usage
    assert usage.prompt_tokens_details.cached_tokens >= 16, usage


def check_stream(client):
    whole = client.completions.create(model="austen-5m", prompt="Elizabeth", max_tokens=40, seed=3)
    chunks = list(client.completions.create(model="austen-5m", prompt="Elizabeth", max_tokens=40, seed=3, stream=True,
                                            stream_options={"include_usage": True}))
    assert len(chunks) > 10
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 40, chunks[-1]
    assert chunks[-2].choices[0].finish_reason == "length"
    with client.completions.create(model="austen-5m", prompt="Emma", max_tokens=1000, stream=True) as stream:
        next(iter(stream))  # and leaves


def check_silent_stream(client):
    fields = {"model": "austen-5m", "prompt": "Emma", "temperature": 0}
    whole = client.completions.create(**fields, max_tokens=5)
    crowd = [client.completions.create(**fields, max_tokens=1000, n=3, extra_body={"ignore_eos": True}, stream=True)
             for _ in range(20)]  # take every row for longer than a heartbeat
    threading.Timer(2.5, lambda: [stream.close() for stream in crowd]).start()
    chunks = list(client.completions.create(**fields, max_tokens=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text, chunks


def check_samples_and_stop(client):
    answer = client.completions.create(model="austen-5m", prompt="Emma", max_tokens=30, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 3
    answer = client.completions.create(model="austen-5m", prompt=TRUTH, max_tokens=30, temperature=0,
                                       stop=["fortune", "wife"])
    assert answer.choices[0].text == " in possession of a good ", answer
    assert answer.choices[0].finish_reason == "stop"
    chunks = client.completions.create(model="austen-5m", prompt=TRUTH, max_tokens=30, temperature=0, stop="fortune",
                                       stream=True)
    assert "".join(c.choices[0].text for c in chunks) == " in possession of a good "


def check_logprobs(client):
    answer = client.completions.create(model="austen-5m", prompt=TRUTH, max_tokens=4, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 4
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert logprob <= 0 and len(top) == 2
        assert abs(top[token] - logprob) < 1e-4 and max(top.values()) == top[token]  # greedy takes the likeliest


def check_sampling_fields(client):
    ask = lambda **fields: client.completions.create(model="austen-5m", prompt="Emma", max_tokens=20, **fields).choices[0].text
    assert ask(temperature=0, presence_penalty=2, frequency_penalty=2) != ask(temperature=0)
    assert ask(temperature=0) == ask(temperature=1, extra_body={"top_k": 1})
    assert ask(temperature=0, logit_bias={"300": 100}) == ask(temperature=1, seed=5, logit_bias={"300": 100}, top_p=0.01)
    answer = client.completions.create(model="austen-5m", prompt="Emma", max_tokens=300, temperature=0,
                                       extra_body={"ignore_eos": True, "min_tokens": 300})
    assert answer.usage.completion_tokens == 300


def check_errors(client):
    complete = lambda **fields: client.completions.create(**{"model": "austen-5m", "prompt": "Emma", **fields})
    error = expect_error(openai.BadRequestError, lambda: complete(temperature=3), "temperature")
    assert error.param == "temperature" and error.type == "invalid_request_error", error.body
    expect_error(openai.BadRequestError, lambda: complete(extra_body={"frob": 1}), "frob")
    expect_error(openai.BadRequestError, lambda: complete(echo=True), "echo")
    expect_error(openai.BadRequestError, lambda: complete(n=1 << 20), "n")
    expect_error(openai.BadRequestError, lambda: complete(max_tokens=1 << 20), "max_tokens")
    expect_error(openai.BadRequestError, lambda: complete(prompt="Emma " * 3000), "positions")
    expect_error(openai.NotFoundError, lambda: complete(model="gpt"), "gpt")
    expect_error(openai.NotFoundError, lambda: client.embeddings.create(model="austen-5m", input="x"), "nothing")
    expect_error(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list(), "key")
    # The embedded model has no chat template, and says so.
    error = expect_error(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model="austen-5m", messages=[{"role": "user", "content": "Hello"}]),
        "template")
    assert error.param == "messages", error.body


def check_chat(client, model):
    fields = {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}],
              "temperature": 0, "max_completion_tokens": 24}
    answer = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    assert "Paris" in answer.choices[0].message.content, answer
    entry = answer.choices[0].logprobs.content[0]
    assert entry.logprob <= 0 and len(entry.top_logprobs) == 2 and bytes(entry.bytes).decode() == entry.token, entry
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content, text
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


def main():
    command = [sys.argv[1], "--port", "0", "--api-key", "secret", "--backend", "cpu", "--max-seqs", "3", "--heartbeat", "1"]
    if len(sys.argv) > 2:
        command += ["--model", sys.argv[2], "--served-name", "other"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().split()[-1]
        assert server.stdout.readline().startswith("serving "), "the model was not loaded"
        client = openai.OpenAI(base_url=url + "/v1", api_key="secret", max_retries=0, timeout=60)
        if len(sys.argv) > 2:
            check_chat(client, "other")
        else:
            for check in (check_models, check_completion, check_stream, check_silent_stream, check_samples_and_stop,
                          check_logprobs, check_sampling_fields, check_errors):
                check(client)
                print(f"{check.__name__}: ok", flush=True)
    finally:
        server.terminate()
        assert server.wait(60) == 0, "the server did not end well"
    print("all ok")


if __name__ == "__main__":
    main()
