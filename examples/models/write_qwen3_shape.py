#!/usr/bin/env python3
"""Writes a model folder of Qwen3-0.6B's exact shape with random weights: what benchmarks need, without a download.

    write_qwen3_shape.py /tmp/qwen3-shape                                   1.2 GB, some ten seconds
    write_qwen3_shape.py /tmp/small --layers 2 --hidden 256 --vocab 1000    any other size

config.json, generation_config.json and model.safetensors (bfloat16), written with numpy alone. There is no tokenizer:
token ids are the text. Weights have the scale of trained ones, so activations and logits stay finite and near 1."""
import argparse
import json
import pathlib
import struct

import numpy

SIZES = {"layers": 28, "hidden": 1024, "intermediate": 3072, "q_heads": 16, "kv_heads": 8, "head_dim": 128,
         "vocab": 151936, "max_positions": 40960}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    for name, size in SIZES.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=size)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def config_of(a):
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "hidden_size": a.hidden,
            "intermediate_size": a.intermediate, "num_hidden_layers": a.layers, "num_attention_heads": a.q_heads,
            "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim, "vocab_size": a.vocab,
            "max_position_embeddings": a.max_positions, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
            "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0, "use_sliding_window": False,
            "sliding_window": None, "max_window_layers": a.layers, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02, **end_ids(a)}


def end_ids(a):
    """Qwen3's own where the vocabulary has them, else its last two."""
    bos, eos = (151643, 151645) if a.vocab > 151645 else (a.vocab - 2, a.vocab - 1)
    return {"bos_token_id": bos, "eos_token_id": eos}


def tensors_of(a):
    """(name, shape, deviation) in the order of the file; deviation 0: all ones, an RMSNorm's gain."""
    q_width, kv_width = a.q_heads * a.head_dim, a.kv_heads * a.head_dim

    def matrix(name, rows, cols, gain=1.0):
        return name + ".weight", (rows, cols), gain / cols ** 0.5

    def norm(name, width):
        return name + ".weight", (width,), 0.0

    yield matrix("model.embed_tokens", a.vocab, a.hidden, 2.5)
    for i in range(a.layers):
        layer = f"model.layers.{i}."
        yield norm(layer + "input_layernorm", a.hidden)
        yield matrix(layer + "self_attn.q_proj", q_width, a.hidden)
        yield matrix(layer + "self_attn.k_proj", kv_width, a.hidden)
        yield matrix(layer + "self_attn.v_proj", kv_width, a.hidden)
        yield matrix(layer + "self_attn.o_proj", a.hidden, q_width)
        yield norm(layer + "self_attn.q_norm", a.head_dim)
        yield norm(layer + "self_attn.k_norm", a.head_dim)
        yield norm(layer + "post_attention_layernorm", a.hidden)
        yield matrix(layer + "mlp.gate_proj", a.intermediate, a.hidden)
        yield matrix(layer + "mlp.up_proj", a.intermediate, a.hidden)
        yield matrix(layer + "mlp.down_proj", a.hidden, a.intermediate)
    yield norm("model.norm", a.hidden)


def bfloat16(values):
    """The upper halves of float32 numbers, rounded to nearest."""
    return ((values.view(numpy.uint32) + 0x8000) >> 16).astype("<u2")


def write_weights(path, a):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors_of(a):
        begin, end = end, end + 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    random = numpy.random.default_rng(a.seed)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape, deviation in tensors_of(a):
            rows = shape[0] if len(shape) == 2 else 1
            for first in range(0, rows, 8192):  # pieces, so that memory stays small
                piece = (min(8192, rows - first), shape[-1])
                values = random.standard_normal(piece, numpy.float32) * numpy.float32(deviation) if deviation else \
                    numpy.ones(piece, numpy.float32)
                bfloat16(values).tofile(file)


def main():
    a = parse_arguments()
    a.folder.mkdir(parents=True, exist_ok=True)
    (a.folder / "config.json").write_text(json.dumps(config_of(a), indent=2) + "\n")
    ids = end_ids(a)
    generation = {"bos_token_id": ids["bos_token_id"], "eos_token_id": [ids["eos_token_id"], ids["bos_token_id"]],
                  "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (a.folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    write_weights(a.folder / "model.safetensors", a)


if __name__ == "__main__":
    main()
