"""Golden token ids from the `tokenizers` library. Run with the versions of requirements.txt.

tokenizer_qwen2, tokenizer_llama3: small byte-level BPE vocabularies with these models' pre-tokenisers, and the ids of random
and hand-picked strings. tokenizer_zoo: one vocabulary, many ways around it (variants.json: what differs from tokenizer.json),
2,000 random Unicode strings among them (cases.json: per variant the ids of its strings).

python make_tokenizer.py           writes the golden folders
python make_tokenizer.py DEEPREC   compares the program `deeprec tokenize --json` on 20,000 random strings a variant
"""
import json
import os
import random
import subprocess
import sys
import tempfile
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEXT = ["The quick brown fox jumps over the lazy dog's 1,024 cousins.", "Größe, naïveté — déjà vu; 你好，世界! Привет мир",
        "  leading spaces\n\n\ttabs and\r\nline ends   ", "don't WON'T they'll I'm", "items: 1. First (1987)\n2. Second (1990)"]
CHARACTERS = list("abcdeXYZ 0123456789.,'\"!?()\n\r\t -_") + list("éßñüДжяΩ你好世界日本語한국어🙂🚀\u00a0\u2003\u0301")
WORDS = ("the quick Fox jumps don't WON'T they'll I'M we'Ve it'\u017f 1987 12345 x1y (1990) 1. <|im_start|> <|im_end|> <|x y|> ab abc ABC"
         " _word word\u0301 naïve nai\u0308ve 각 \u1100\u1161\u11a8 \u1112\u1161 Å \u212b \u0958 q\u0323\u0307 q\u0307\u0323 ﬁ ½ ² Ⅷ 你好 한국어"
         " مرحبا שלום ไทย हिन्दी 👩\u200d👩\u200d👧 🇩🇪 \U0001f1e9 𝒳 \u1e9b\u0323 \U00011099\U000110ba ~ $5 a+b=c ... ?! // \\n").split(" ")
SPACES = ["", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u00a0", "\u180e", "\u2003", "\u3000", "\u0085", "\u2028", "\x0b", "\x1c"]
RANGES = [(0, 0x7F), (0x80, 0x24F), (0x250, 0x6FF), (0x700, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x1FFFF)]


def trained(size, special, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special,
                                  show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3 + [" ".join(WORDS)] * 2, trainer)
    return tokenizer


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


def random_text(rng):
    parts = []
    for _ in range(rng.randint(1, 8)):
        kind = rng.random()
        if kind < 0.6:
            parts.append(rng.choice(WORDS))
        elif kind < 0.75:
            parts.append("".join(rng.choice("abcdexyzABC019'_-") for _ in range(rng.randint(1, 9))))
        else:
            low, high = rng.choice(RANGES)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5))).replace("\0", ""))
        parts.append(rng.choice(SPACES))
    return "".join(parts)


def split(regex, behaviour="isolated", invert=False):
    return pre_tokenizers.Split(Regex(regex), behaviour, invert)


def level(prefix=False, use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def variants():
    """name -> tokenizer; all of one vocabulary."""
    base = trained(700, []).to_str()
    result = {}

    def add(name, *steps, normalizer=None, tokens=(), ignore_merges=False):
        data = json.loads(base)
        data["model"]["ignore_merges"] = ignore_merges
        tokenizer = Tokenizer.from_str(json.dumps(data))
        tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(list(steps))
        tokenizer.decoder = decoders.ByteLevel()
        if normalizer:
            tokenizer.normalizer = normalizer
        for token in tokens:
            tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        result[name] = tokenizer

    chat = [AddedToken("<|im_start|>", special=True, normalized=False), AddedToken("<|im_end|>", special=True, normalized=False)]
    add("qwen2", split(QWEN2), level(), normalizer=normalizers.NFC(), tokens=chat)
    add("llama3", split(LLAMA3), level(), tokens=chat, ignore_merges=True)
    add("gpt2", level(prefix=False, use_regex=True), tokens=chat)
    add("prefix", level(prefix=True, use_regex=True), tokens=chat)
    add("cased", split(CASED), level(), tokens=chat)
    add("steps", split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True), level(), tokens=chat)
    add("digits", pre_tokenizers.Digits(individual_digits=False), level(use_regex=True))
    add("punctuation", pre_tokenizers.Punctuation(), split(r"\d{2}|^a|e$|\w\W", "contiguous"), level(prefix=True))
    for behaviour in ("isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next"):
        for invert in (False, True):
            add("%s%s" % (behaviour, "_invert" if invert else ""), split(r"[aeo]|\s|\d", behaviour, invert), level())
        add(behaviour + "_empty", split(r"x*|(?=b)", behaviour), level())
    add("text", pre_tokenizers.Split("a", "merged_with_next"), pre_tokenizers.Split(".", "isolated"), level())
    flags = [AddedToken(text, special=special, normalized=normalized, lstrip=lstrip, rstrip=rstrip, single_word=single)
             for text, special, normalized, lstrip, rstrip, single in (
                 ("<|im_start|>", True, False, True, False, False), ("<|im_end|>", True, False, False, True, False),
                 ("ab", False, True, False, False, True), ("abc", False, False, False, False, False),
                 ("\u212b", False, True, False, False, False), ("q\u0307\u0323", False, True, True, True, False),
                 ("na\u00efve", False, False, False, True, True), ("the", False, True, False, False, True),
                 ("  ", False, False, False, False, False), ("<|x y|>", True, True, True, True, True), ("é", False, False, False, False, False))]
    add("flags", split(QWEN2), level(), normalizer=normalizers.NFC(), tokens=flags)
    add("flags_plain", level(prefix=True, use_regex=True), tokens=flags)
    return result


def texts_of(name, n):
    rng = random.Random(name)
    return [random_text(rng) for _ in range(n)]


def write_zoo():
    folder = os.path.join(HERE, "tokenizer_zoo")
    os.makedirs(folder, exist_ok=True)
    shared, changes, cases = None, {}, {}
    zoo = variants()
    for name, tokenizer in zoo.items():
        data = json.loads(tokenizer.to_str())
        model = data["model"]
        ignore_merges = model.pop("ignore_merges")
        assert shared in (None, model)
        shared = model
        del data["model"]
        changes[name] = {"ignore_merges": ignore_merges, **data}
        texts = texts_of(name, 2000 // len(zoo) + 1)
        cases[name] = [[t, tokenizer.encode(t).ids] for t in texts]
    for file, value in (("model.json", shared), ("variants.json", changes), ("cases.json", cases)):
        with open(os.path.join(folder, file), "w") as f:
            json.dump(value, f, separators=(",", ":"), sort_keys=True)


def compare(program, n=20000):
    worst = 0
    for name, tokenizer in variants().items():
        texts = texts_of(name + " long run", n)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(os.path.join(folder, "tokenizer.json"))
            lines = "".join(json.dumps(t) + "\n" for t in texts)
            out = subprocess.run([program, "tokenize", "--model", folder, "--json"], input=lines.encode(), stdout=subprocess.PIPE,
                                 check=True).stdout.decode().splitlines()
        want = [e.ids for e in tokenizer.encode_batch(texts)]
        wrong = [i for i in range(n) if json.loads(out[i]) != want[i]]
        worst += len(wrong)
        print("%-28s %d of %d differ" % (name, len(wrong), n), *[(texts[i], json.loads(out[i]), want[i]) for i in wrong[:2]], flush=True)
    return worst


if len(sys.argv) > 1:
    sys.exit(1 if compare(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20000) else 0)
write("tokenizer_qwen2", QWEN2, False, 1)
write("tokenizer_llama3", LLAMA3, True, 2)
write_zoo()
