"""Golden token ids of WordPiece tokenizers (BERT's family) from the `tokenizers` library. Run with the versions of
requirements.txt. tokenizer_wordpiece: models.json, small vocabularies (kept when there); variants.json, what stands around them; cases.json, per
variant [text, ids, decoded text, max ids, ids of the text truncated to them].

python make_wordpiece.py                    writes the golden folder
python make_wordpiece.py DEEPREC [N]        compares the program `deeprec tokenize --json --special` on N random strings a variant
python make_wordpiece.py DEEPREC characters the same on every character of Unicode, alone, in a word and among words
"""
import json
import os
import random
import subprocess
import sys
import tempfile
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer_wordpiece")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CORPUS = ["The quick brown fox jumps over the lazy dog's 1,024 cousins, unaffable and running.",
          "Gr\u00f6\u00dfe, na\u00efvet\u00e9 \u2014 d\u00e9j\u00e0 vu; \u4f60\u597d\uff0c\u4e16\u754c! \u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
          "I don't know: you can't, they won't, we've seen it's mine. (1987) [2nd] {x} <y> $5 + 7% = ?",
          "Toy Story (1995), Jumanji (1995), Amélie (2001), 千と千尋の神隠し, Crouching Tiger", "hugging face tokenization of retrieval recommendations"]
WORDS = ("the quick Fox jumps don't WON'T they'll I'M 1987 12345 x1y (1990) unaffable running tokenizations Größe naïve nai\u0308ve É É ÉÀ"
         " ÀB\u0301c \u00c5 \u212b q\u0323\u0307 각 \u1100\u1161\u11a8 한국어 你好世界 日本語 が か\u3099 \u0130stanbul \u0131 \u017f \u1e9e ΣΑΣ Ǆ ﬁ ½ Ⅷ ^ ` |x| a+b=c ~"
         " مرحبا שָׁלוֹם ไทย हिन्दी कि 👩\u200d👩\u200d👧 🇩🇪 🙂 \u200bzero\u200bwidth \ufeffbom soft\u00adhyphen \x01control\x7f \ufffd \ue000 "
         " [CLS] [SEP] [MASK] [mask] [UNK] [PAD] ##ing ##s @@ing [ CLS ] [C\u200bLS] <unk> xaby AB ab. ... ?! // \\ ' s n't 's 've 're 'm do not"
         " \U00020000 \u3400 \uf900 \U0002f800 \U0001d538 \u00b4 \u2019 \u3001 \u166d \U000111c9 _x_ x\u200cy \u20e3 a\u20dd \U0001e921\U0001e900").split(" ")
SPACES = ["", " ", " ", " ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u180e", "\u2003", "\u3000", "\u0085", "\u2028", "\x0b", "\x1c", "\u200b"]
RANGES = [(1, 0x7F), (0x80, 0x24F), (0x250, 0x6FF), (0x700, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x1FFFF)]
HAND = ["", " ", "a" * 100, "a" * 101, "b" * 100 + " " + "é" * 101, "The quick brown fox", "x\x01y \u200b z", "\u0301", "e\u0301 \u0301e", "[CLS] a [SEP] b",
        "hugging-face's don't , ok ? I 'm do not ' x '", "你好", "\ufffd\ufffd", "[MASK][MASK] the", "unaffable!" * 6]


def trained(normalizer, size, prefix="##", unknown="[UNK]", longest=100):
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown, continuing_subword_prefix=prefix, max_input_chars_per_word=longest))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [unknown if s == "[UNK]" else s for s in SPECIAL]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, continuing_subword_prefix=prefix, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3 + [" ".join(w for w in WORDS if w.isascii())] * 2, trainer)
    return json.loads(tokenizer.to_str())["model"]


def bert(clean=True, chinese=True, strip=None, lower=True):
    return normalizers.BertNormalizer(clean_text=clean, handle_chinese_chars=chinese, strip_accents=strip, lowercase=lower)


def vocabularies():
    """name -> model; trained once: the trainer takes one of several equal pairs at random."""
    path = os.path.join(FOLDER, "models.json")
    if not os.path.exists(path):
        os.makedirs(FOLDER, exist_ok=True)
        trained_now = {"uncased": trained(bert(), 420), "cased": trained(bert(lower=False), 460),
                       "at": trained(bert(), 300, prefix="@@", unknown="<unk>", longest=6), "joined": trained(bert(), 300, prefix="")}
        with open(path, "w") as f:
            json.dump(trained_now, f, separators=(",", ":"), sort_keys=True)
    with open(path) as f:
        return json.load(f)


def around(tokenizer, kind):
    ids = {s: tokenizer.token_to_id(s) for s in ("[CLS]", "[SEP]")}
    if kind == "bert":
        return processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    single = "[CLS]:0 $A:0 [SEP]:0" if kind == "template" else "[CLS] [SEP] $A [SEP]"
    return processors.TemplateProcessing(single=single, pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=list(ids.items()))


def variants():
    """name -> (name of the model, tokenizer)"""
    N, P, result = normalizers, pre_tokenizers, {}
    known = {name: models.WordPiece(**{key: value for key, value in model.items() if key != "type"}) for name, model in vocabularies().items()}

    def add(name, model, normalizer, pre_tokenizer, post="template", decoder=None, tokens=()):
        tokenizer = Tokenizer(known[model])
        if normalizer:
            tokenizer.normalizer = normalizer
        if pre_tokenizer:
            tokenizer.pre_tokenizer = pre_tokenizer
        if decoder:
            tokenizer.decoder = decoder
        tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL if known[model].token_to_id(s) is not None])
        for token in tokens:
            tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if post:
            tokenizer.post_processor = around(tokenizer, post)
        result[name] = (model, tokenizer)

    words = decoders.WordPiece(prefix="##", cleanup=True)
    add("uncased", "uncased", bert(), P.BertPreTokenizer(), decoder=words)
    add("cased", "cased", bert(lower=False), P.BertPreTokenizer(), decoder=words)
    add("keep_accents", "cased", bert(strip=False), P.BertPreTokenizer(), decoder=decoders.WordPiece(prefix="##", cleanup=False))
    add("strip_cased", "cased", bert(strip=True, lower=False), P.BertPreTokenizer(), post="bert", decoder=words)
    add("as_it_is", "cased", bert(clean=False, chinese=False, lower=False), P.BertPreTokenizer(), decoder=words)
    add("no_chinese", "uncased", bert(chinese=False), P.BertPreTokenizer(), post="two", decoder=words)
    add("steps", "uncased", N.Sequence([N.NFD(), N.Lowercase(), N.StripAccents()]), P.Whitespace(), decoder=words)
    add("replaced", "cased", N.Sequence([N.Replace("''", "\""), N.Replace("o", "0o"), N.NFC(), bert(strip=False)]),
        P.Sequence([P.WhitespaceSplit(), P.Punctuation()]), decoder=words)
    add("white_space", "uncased", bert(), P.WhitespaceSplit(), post=None, decoder=words)
    add("digits", "uncased", bert(), P.Sequence([P.BertPreTokenizer(), P.Digits(individual_digits=True)]), decoder=words)
    add("bare", "cased", None, None, post=None)
    add("at", "at", bert(), P.BertPreTokenizer(), decoder=decoders.WordPiece(prefix="@@", cleanup=True))
    add("joined", "joined", bert(), P.BertPreTokenizer(), decoder=decoders.WordPiece(prefix="", cleanup=False))
    flags = [AddedToken(text, special=special, normalized=normalized, lstrip=lstrip, rstrip=rstrip, single_word=single)
             for text, special, normalized, lstrip, rstrip, single in (
                 ("<|Turn|>", True, False, True, False, False), ("Ab", False, True, False, False, True), ("do not", False, True, False, False, False),
                 ("na\u00efve", False, False, False, True, True), ("GRÖSSE", False, True, True, True, False), ("1987", False, True, False, False, False))]
    add("flags", "uncased", bert(), P.BertPreTokenizer(), decoder=words, tokens=flags)
    return result


def random_text(rng):
    parts = []
    for _ in range(rng.randint(1, 8)):
        kind = rng.random()
        if kind < 0.65:
            parts.append(rng.choice(WORDS))
        elif kind < 0.8:
            parts.append("".join(rng.choice("abcdexyzABC019'_-ingers") for _ in range(rng.randint(1, 9))))
        else:
            low, high = rng.choice(RANGES)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5))))
        parts.append(rng.choice(SPACES))
    return "".join(parts)


def texts_of(name, n):
    rng = random.Random(name)
    return [random_text(rng) for _ in range(n)]


def write():
    changes, cases = {}, {}
    for name, (model, tokenizer) in variants().items():
        rng = random.Random(name + " length")
        cases[name] = []
        for text in (HAND + [" ".join(WORDS[i:i + 8]) for i in range(0, len(WORDS), 8)] if name in ("uncased", "cased") else HAND[:5]) + texts_of(name, 40):
            ids, most = tokenizer.encode(text).ids, rng.randint(3, 12)
            tokenizer.enable_truncation(most)
            cases[name].append([text, ids, tokenizer.decode(ids, skip_special_tokens=False), most, tokenizer.encode(text).ids])
            tokenizer.no_truncation()
        if name == "cased":  # these sections are for batches; what is measured here is one text alone
            tokenizer.enable_truncation(16)
            tokenizer.enable_padding(length=24, pad_id=0, pad_token="[PAD]")
        data = json.loads(tokenizer.to_str())
        changes[name] = {**data, "model": model}
    for file, value in (("variants.json", changes), ("cases.json", cases)):
        with open(os.path.join(FOLDER, file), "w") as f:
            json.dump(value, f, separators=(",", ":"), sort_keys=True)


def run(program, tokenizer, texts):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(os.path.join(folder, "tokenizer.json"))
        lines = "".join(json.dumps(t) + "\n" for t in texts)
        out = subprocess.run([program, "tokenize", "--model", folder, "--json", "--special"], input=lines.encode(), stdout=subprocess.PIPE,
                             check=True).stdout.decode().splitlines()
    return [json.loads(line) for line in out]


def compare(program, name, tokenizer, texts):
    got, want = run(program, tokenizer, texts), [e.ids for e in tokenizer.encode_batch(texts)]
    wrong = [i for i in range(len(texts)) if got[i] != want[i]]
    print("%-28s %d of %d differ" % (name, len(wrong), len(texts)), *[(texts[i], got[i], want[i]) for i in wrong[:4]], flush=True)
    return len(wrong)


def compare_characters(program):
    """A vocabulary of all characters, so that ids say what became of each."""
    codes = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
    texts = ["%s x%sy %sy" % (chr(c), chr(c), chr(c)) for c in codes]
    vocabulary = {"[UNK]": 0}
    for c in codes:
        for token in (chr(c), "##" + chr(c)):
            vocabulary[token] = len(vocabulary)
    wrong = 0
    for name, (_, variant) in variants().items():
        if name not in ("uncased", "keep_accents", "strip_cased", "as_it_is", "steps", "white_space"):
            continue
        tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer, tokenizer.pre_tokenizer = variant.normalizer, variant.pre_tokenizer
        wrong += compare(program, name, tokenizer, texts)
    return wrong


if len(sys.argv) == 1:
    write()
elif sys.argv[2:] == ["characters"]:
    sys.exit(1 if compare_characters(sys.argv[1]) else 0)
else:
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    sys.exit(1 if sum(compare(sys.argv[1], name, t, texts_of(name + " long run", n)) for name, (_, t) in variants().items()) else 0)
