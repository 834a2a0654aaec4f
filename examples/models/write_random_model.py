#!/usr/bin/env python3
"""Writes a Hugging Face folder with random weights, and what transformers computes with it (needs torch, transformers).

    write_random_model.py llama /tmp/llama --golden         tiny, with /tmp/llama/golden.json
    write_random_model.py qwen3 /tmp/qwen3 --shape qwen3-0.6b

golden.json: "tokens", a text; "positions" in it and the "logits" behind them, float32; "greedy": [{"prompt_len",
"tokens"}], how greedy search goes on behind that many of the tokens, as far as the two best logits differ by more
than MARGIN. There is no tokenizer: the ids are the text.
"""
import argparse
import json
import pathlib

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
SIZES = ("hidden", "layers", "q_heads", "kv_heads", "head_dim", "intermediate", "vocab", "max_positions")
SHAPES = {"tiny": (16, 2, 4, 2, 8, 24, 64, 256),
          "small": (256, 4, 4, 2, 64, 768, 1000, 2048),
          "qwen3-0.6b": (1024, 28, 16, 8, 128, 3072, 151936, 40960)}
MARGIN = 0.02


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="sizes, unless one is given:")
    for size in SIZES:
        parser.add_argument("--" + size.replace("_", "-"), type=int)
    parser.add_argument("--window", type=int, help="sliding window, keys (mistral)")
    parser.add_argument("--rope", choices=("default", "linear", "llama3"), default="default")
    parser.add_argument("--rope-theta", type=float, default=10000)
    parser.add_argument("--rope-original", type=int, default=64, help="positions of the first training (llama3)")
    parser.add_argument("--untied", action="store_true", help="a head of its own")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shard-kb", type=int, help="weights in several files of about this size")
    parser.add_argument("--old-config", action="store_true", help="config.json as transformers 4 spells it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--text", type=int, default=40, help="tokens of the golden text")
    parser.add_argument("--positions", type=int, default=6, help="golden logits at so many of them")
    parser.add_argument("--greedy", type=int, default=16, help="tokens of a continuation, at most")
    arguments = parser.parse_args()
    for size, default in zip(SIZES, SHAPES[arguments.shape]):
        if getattr(arguments, size) is None:
            setattr(arguments, size, default)
    return arguments


def make_config(a):
    rope = {"rope_type": a.rope, "rope_theta": a.rope_theta}
    if a.rope != "default":
        rope["factor"] = 8.0
    if a.rope == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": a.rope_original}
    window = {"sliding_window": a.window} if a.family == "mistral" else {}
    return FAMILIES[a.family][0](
        hidden_size=a.hidden, num_hidden_layers=a.layers, num_attention_heads=a.q_heads, num_key_value_heads=a.kv_heads,
        head_dim=a.head_dim, intermediate_size=a.intermediate, vocab_size=a.vocab,
        max_position_embeddings=a.max_positions, rope_parameters=rope, tie_word_embeddings=not a.untied,
        rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None, pad_token_id=None, **window)


@torch.no_grad()
def fill(model, seed):
    """Weights as far from zero as trained ones, so that no part of the arithmetic can be left out unnoticed: attention
    is sharp, gains and biases matter, logits spread over several units."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.normal_(0, 1)
        elif "norm" in name:
            weight.uniform_(0.5, 1.5)
        elif "embed" in name or "lm_head" in name:
            weight.normal_(0, 2.5 / weight.shape[-1] ** 0.5)
        else:
            is_inner = "v_proj" in name or "gate_proj" in name or "up_proj" in name
            weight.normal_(0, (1 if is_inner else 2) / weight.shape[-1] ** 0.5)


def spell_as_transformers_4(path):
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def logits_of(model, tokens):
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


def continue_greedily(model, prompt, max_tokens):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        best = logits_of(model, tokens)[-1].topk(2)
        if best.values[0] - best.values[1] < MARGIN:
            break
        tokens.append(best.indices[0].item())
    return tokens[len(prompt):]


def golden(a):
    # What counts are the rounded weights in the file, computed in float32.
    model = FAMILIES[a.family][1].from_pretrained(a.folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = torch.randint(a.vocab, (a.text,), generator=torch.Generator().manual_seed(a.seed)).tolist()
    positions = [i * (a.text - 1) // max(a.positions - 1, 1) for i in range(a.positions)]
    logits = logits_of(model, tokens)
    greedy = [{"prompt_len": n, "tokens": continue_greedily(model, tokens[:n], a.greedy)}
              for n in (1, a.text // 3, a.text)]
    greedy = [case for case in greedy if case["tokens"]]
    return {"tokens": tokens, "positions": positions,
            "logits": [[round(x, 5) for x in logits[i].tolist()] for i in positions], "greedy": greedy}


def main():
    a = parse_arguments()
    model = FAMILIES[a.family][1](make_config(a))
    fill(model, a.seed)
    shards = {"max_shard_size": f"{a.shard_kb}KB"} if a.shard_kb else {}
    model.to(getattr(torch, a.dtype)).save_pretrained(a.folder, **shards)
    if a.old_config:
        spell_as_transformers_4(a.folder / "config.json")
    if a.golden:
        text = json.dumps(golden(a), separators=(",", ":")).replace('],"', '],\n"').replace("],[", "],\n[")
        (a.folder / "golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
