"""Golden token ids from the `tokenizers` library: two small byte-level BPE vocabularies with Qwen2's and Llama 3's
pre-tokenisers, and ids of random and hand-picked strings. Run with the versions of requirements.txt."""
import json
import os
import random
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEXT = ["The quick brown fox jumps over the lazy dog's 1,024 cousins.", "Größe, naïveté — déjà vu; 你好，世界! Привет мир",
        "  leading spaces\n\n\ttabs and\r\nline ends   ", "don't WON'T they'll I'm", "items: 1. First (1987)\n2. Second (1990)"]
CHARACTERS = list("abcdeXYZ 0123456789.,'\"!?()\n\r\t -_") + list("éßñüДжяΩ你好世界日本語한국어🙂🚀\u00a0\u2003\u0301")


def write(name, regex, ignore_merges, seed):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|im_start|>", "<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    random.seed(seed)
    texts = TEXT + ["", "<|im_start|>", "a<|endoftext|>b<|im_start|", "<|im_start|><|im_start|> x"]
    texts += ["".join(random.choice(CHARACTERS) for _ in range(random.randint(1, 24))) for _ in range(200)]
    cases = [{"text": t, "ids": tokenizer.encode(t).ids} for t in texts]
    with open(os.path.join(folder, "cases.json"), "w") as f:
        json.dump(cases, f, separators=(",", ":"))


write("tokenizer_qwen2", QWEN2, False, 1)
write("tokenizer_llama3", LLAMA3, True, 2)
