"""Makes the three tokenizer.json files and expected.json of this folder with Hugging Face's `tokenizers`.

    pip install tokenizers==0.23.* && python3 tests/data/tokenizers/make_golden.py

The files have the parts of GPT-2's, GPT-NeoX's and Llama 3's (normaliser, pre-tokenizer, added tokens, the way of
merging) and small vocabularies of their own, trained on this project's documentation. expected.json has the ids of
difficult strings, with control tokens as text and parsed.
"""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

FOLDER = Path(__file__).resolve().parent
DOCS = FOLDER.parents[2] / "docs"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
OTHER_SCRIPTS = "naïve café über Größe Привет мир привет 你好世界 こんにちは 안녕하세요 مرحبا 😀🎉 ﬁ ½ ٣ " * 20


def train(pre_tokenizer, vocab_size, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = [path.read_text() for path in sorted(DOCS.glob("*.md"))]
    tokenizer.train_from_iterator([*texts, OTHER_SCRIPTS], trainer)
    return tokenizer


def gpt2():
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=False), 700)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=True)])
    return tokenizer


def neox():
    tokenizer = train(pre_tokenizers.ByteLevel(add_prefix_space=False), 700, normalizers.NFC())
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False), AddedToken("<|padding|>", normalized=False)])
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    tokenizer.add_tokens([AddedToken("é!", normalized=True)])  # found only after NFC
    return tokenizer


def llama3():
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    file = json.loads(train(pre_tokenizers.Sequence([split, byte_level]), 700).to_str())
    file["model"]["ignore_merges"] = True
    file["model"]["vocab"]["\u0120zqzq"] = 700  # a word that no merges make: only `ignore_merges` finds it
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False) for name in
                                  ("begin_of_text", "end_of_text", "reserved_special_token_0", "eot_id", "eot")])
    return tokenizer


def difficult_strings():
    generator = random.Random(7)
    pool = [*"aZ é'sStTlL0123456789 \t\n\r  _-.,!?<|>/", "e\u0301", "\u017f", "\u212a", "\u1e9b\u0323", "\u180e",
            "\u0085", "\u2028", "\u3000", "\u200b", "\u00ad", "你", "안", "각", "\u1112\u1161\u11ab", "😀", "👩‍👩‍👧", "ß", "İ", "٣",
            "Ⅷ", "²", "½", "\0", "\x1f", "'", "<|endoftext|>", "  ", "    ", "\u0300", "\ufeff", "ﷺ", "\U00020000"]
    strings = ["", " ", "  ", "\n", "\n\n", " \n", "\n a", "a", " a", "a ", "a  b", "a   ", "\t\tx", "\r\n\r\n x", "I'll it's IT'S we'Ve",
               "don\u2019t", "'\u017f", "x = 1;\n    y = 2;\n\n\n\tz", "12345678901", "3.14159", "café cafe\u0301 e\u0301! é!",
               "\0a\0", "<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", "<|begin_of_text|>x<|end_of_text|>",
               "<|eot|><|eot_id|><|eo", "<|padding|>", "</s>", " " * 24, " " * 25, " " * 60 + "x", "a" * 300, "ab" * 200, "zqzq zqzq",
               "😀😀😀", "你好，世界", "Привет, мир!", "한국어 각각", "\u1112\u1161\u11ab\u1100\u1173\u11af", "a\u0301\u0327\u0323", "\u0344",
               "The quick brown fox.\r\nCRLF line\r\n", "tokens per second", "mini-batch (TTT inner)", "`core/base`", "\u180e \u180e", "a\u0085b"]
    strings += ["".join(generator.choices(pool, k=generator.randint(1, 30))) for _ in range(120)]
    return strings


def main():
    expected = {"texts": difficult_strings()}
    for make in (gpt2, neox, llama3):
        tokenizer = make()
        name = make.__name__
        (FOLDER / f"{name}.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
        tokenizer = Tokenizer.from_file(str(FOLDER / f"{name}.json"))
        ids = {}
        for rule in ("as_text", "parsed"):
            tokenizer.encode_special_tokens = rule == "as_text"
            ids[rule] = [tokenizer.encode(text, add_special_tokens=False).ids for text in expected["texts"]]
        expected[name] = ids
    (FOLDER / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
