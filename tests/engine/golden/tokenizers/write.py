"""Trains a tokenizer of some hundred tokens with each family's pipeline and writes what `tokenizers` encodes with it.

    pip install tokenizers==0.23.3 && python3 tests/engine/golden/tokenizers/write.py
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*"
PATTERNS = {
    "llama3": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}",
    "qwen": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}",
    "tekken": rf"{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SPECIAL = {
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "tekken": ["<s>", "</s>", "[INST]", "[/INST]"],
    "gpt2": ["<|endoftext|>"],
    "smollm2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
NOT_SPECIAL = {"qwen": ["<think>", "</think>", "<tool_call>"]}
ABSENT_BYTES = {"smollm2": [0x04, 0x13, 0xC0, 0xF1, 0xFF]}  # no training text held them

# Trained on: enough of everything for merges within and across the borders that pre-tokenizers cut.
CORPUS = [
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, isn't.",
    "I'll say we've seen it; they're here, I'm sure she'd GO. DON'T SHOUT, WE'LL HEAR, it's 12345 or 67 890.",
    "def f(x):\n    return x + 1\n\n\n        if x:\r\n\t\ty = 3.14159\n",
    "Straße, café, naïve, Ærø, ŵ, ﬁne, e\u0301 vs é, Å vs A\u030a, 한국어, 한국 나라, 日本語のテキスト、你好，世界。",
    "Привет мир, привет, مرحبا بالعالم, नमस्ते दुनिया, ไทย ภาษาไทย, ½ ¼ ⅷ ٣٤٥ १२३ ²³",
    "😀😀 👩‍👩‍👧‍👦 👍🏽 🇫🇷🇯🇵 — “quotes” … ‘single’ —— === ///  --- !!! ??? ...   ",
] * 4

TEXTS = [
    "", " ", "  ", "\n", "\n\n \n", "\r\n\r\n", "\t\tx\t y", "a   b    c     ", "   leading", "trailing   ",
    "It is a truth universally acknowledged", "I'll we've they're I'm she'd it's don't",
    "I'LL WE'VE DON'T IT'S 'S 'ſ", "''s '' 'x 'll'd", "1 12 123 1234 12345678901", "a1b22c333d4444",
    "3.14159 x٣٤٥y १२३ ½ ⅷ ²³ 一二", "e\u0301 é A\u030a Å ẛ\u0323 q\u0307\u0323 \u212b \u2126",
    "\u1112\u1161\u11ab글 한글 한글", "a\u0301\u0327\u0301b\u0340\u0344", "\u0301\u0301 leading marks",
    "日本語のテキスト、你好，世界。", "한국어 나라 中文한국", "😀😀 👩\u200d👩\u200d👧\u200d👦 👍🏽 🇫🇷🇯🇵 ✈️",
    "नमस\u094dते दुनिया ไทย مرحبا Привет ΑΒΓ αβγ", "ﬁne ǅ ǆ ʰ ª º ß ẞ ı İ",
    "x\u00a0y \u2003z\u3000w\u2028v\u2029u\u0085t \u200b\u200d\ufeff",
    "mongolian \u180e vowel \u180e\u180e separator\u180e", "def f(x):\n    return x\n\n\n        y = 1\r\n\tz",
    "!!!??? ...\n\n--- ///\n=== /\r\n x", "—“a”…‘b’ (c)[d]{e}<f>", "a\u0000b\u0001c\u0004\u0013d\u007fe\u001cf",
    "private \ue000 \U000f0000 unassigned \u0378 \U0010ffff", "\U00100000\U00040000",
    "<|im_start|>system\nobey<|im_end|>\n<|im_start|>", "a<|im_end|><|im_end|> b <|im_end",
    "<|im_start|><|endoftext|>x<|endoftext|>", "<think>\nhm\n</think>\n\n<tool_call>{}",
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", "<|begin_of_text|>x<|begin_of_text|>",
    "<s>[INST] a [/INST]b</s>[INST][/INST]", "<|<|im_start|>|> <|im_start|", "e<|im_end|>\u0301 \n<|im_end|>\n\n",
]


def pre_tokenizer(family):
    byte_level = pre_tokenizers.ByteLevel
    if family == "gpt2":
        return byte_level(add_prefix_space=False)
    if family == "smollm2":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(PATTERNS[family]), "isolated")
    return pre_tokenizers.Sequence([split, byte_level(add_prefix_space=False, use_regex=False)])


def post_processor(family, tokenizer):
    byte_level = processors.ByteLevel(trim_offsets=False)
    begin = {"llama3": "<|begin_of_text|>", "tekken": "<s>"}.get(family)
    if begin is None:
        return byte_level
    special = [(begin, tokenizer.token_to_id(begin))]
    template = processors.TemplateProcessing(f"{begin} $A", f"{begin} $A {begin}:1 $B:1", special)
    return processors.Sequence([byte_level, template]) if family == "llama3" else template


def train(family):
    tokenizer = Tokenizer(models.BPE(ignore_merges=family in ("llama3", "tekken")))
    if family == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(family)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    symbols = [chr(byte) for byte in range(256)]  # GPT-2's spelling of each byte
    for i, byte in enumerate([*range(33), *range(127, 161), 173]):
        symbols[byte] = chr(256 + i)
    absent = [symbols[byte] for byte in ABSENT_BYTES.get(family, [])]
    alphabet = [symbol for symbol in alphabet if symbol not in absent]
    own_first = SPECIAL[family] if family in ("smollm2", "tekken") else []  # in the vocabulary; elsewhere behind it
    trainer = trainers.BpeTrainer(
        vocab_size=420 + len(own_first), initial_alphabet=alphabet, special_tokens=own_first, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    is_normalized = family == "gpt2"
    tokenizer.add_special_tokens([AddedToken(t, normalized=is_normalized, special=True) for t in SPECIAL[family]])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in NOT_SPECIAL.get(family, [])])
    tokenizer.post_processor = post_processor(family, tokenizer)
    return tokenizer


def main():
    folder = pathlib.Path(__file__).parent
    (folder / "texts.json").write_text(json.dumps(TEXTS, indent=0) + "\n")
    for family in SPECIAL:
        tokenizer = train(family)
        (folder / family).mkdir(exist_ok=True)
        tokenizer.save(str(folder / family / "tokenizer.json"), pretty=False)
        with_special = [tokenizer.encode(text).ids for text in TEXTS]
        tokenizer.encode_special_tokens = True  # spelt out special tokens are text
        golden = {
            "ids": with_special,
            "untrusted": [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS],
            "decoded": [tokenizer.decode(ids) for ids in with_special],
        }
        (folder / family / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
