"""Embeddings of a sentence encoder's folder against sentence-transformers (PyTorch on the processor, fp32): item texts of a catalogue of
film titles, titles of other languages, odd strings and long texts, as `deeprec trm train` stores them.

python check_sentence.py DEEPREC FOLDER [MOVIES.DAT]    prints the largest difference and the smallest cosine; 1 when they are too far apart

Texts that spell special tokens ([MASK]) are left out: here they stay text, there they become the tokens.
Needs requirements.txt and sentence-transformers==6.2.0; the folder is the caller's."""
import json
import os
import random
import subprocess
import sys
import tempfile

import h5py
import numpy as np
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

MOST, LEAST_COSINE = 1e-5, 0.999999  # of an element, of a row
LANGUAGES = ["千と千尋の神隠し", "Der Himmel über Berlin", "Amélie – Le fabuleux destin", "Сталкер", "살인의 추억", "مرحبا يا عالم", "שלום עולם",
             "हिन्दी फ़िल्म", "ไทย ภาพยนตร์", "Ελληνικός κινηματογράφος", "İstanbul Hatırası", "Příběh", "Việt Nam phim", "Größe, Straße",
             "ファイナルファンタジー", "臥虎藏龍", "Чёрный квадрат", "ქართული ფილმი", "தமிழ் படம்", "Ἀριστοτέλης"]
ODD = ["...", "!!! ??? ###", "a" * 150, "👩‍👩‍👧 🇩🇪 🙂", "\u200bzero\u200bwidth", "e\u0301 \u0301e", "x\u00a0y\u3000z", "1,024.50 $ € ¥",
       "<b>html &amp; more</b>", "C:\\path\\file", "\ufeffbom", "\U0001d538\U0001d539", "ﬁ ligature ½ ①", "don't WON'T they'll", "Ⅷ ℃ Å", "_x_ x-y-z",
       "soft\u00adhyphen", "٠١٢٣", "\u0130\u0131\u017f"]


def texts(movies):
    titles = list(LANGUAGES) + list(ODD)
    if movies:
        with open(movies, encoding="latin-1") as file:
            titles += [line.split("::")[1] for line in file]
    draw = random.Random(3)
    words = " ".join(LANGUAGES + ODD + titles[len(LANGUAGES) + len(ODD):][:300]).split()
    for i in range(400):  # of all lengths, many of them longer than the encoder takes
        titles.append(" ".join(draw.choice(words) for _ in range(draw.randrange(1, 300 if i % 4 == 0 else 40))))
    return list(dict.fromkeys(title for title in titles if title.strip()))


def encoded(deeprec, folder, titles, work):
    """The item texts as the data set has them, and their vectors."""
    with open(os.path.join(work, "items.jsonl"), "w", encoding="utf-8") as file:
        for i, title in enumerate(titles):
            json.dump({"item_id": str(i + 1), "title": title, "categories": ["Drama", "Comédie"][: i % 3]}, file, ensure_ascii=False)
            file.write("\n")
    with open(os.path.join(work, "sequences.txt"), "w", encoding="utf-8") as file:
        for user in range(len(titles) // 8):  # all items are somebody's
            file.write(" ".join([str(user)] + [str(user * 8 + i + 1) for i in range(8)]) + "\n")
    data, model = os.path.join(work, "data.h5"), os.path.join(work, "trm")
    subprocess.run([deeprec, "prepare", "plain", "--input", work, "--out", data], check=True)
    subprocess.run([deeprec, "trm", "train", "--dataset", data, "--out", model, "--text-encoder", folder, "--max-text-tokens", "65536",
                    "--epochs", "1", "--samples", "64", "--batch", "32"], check=True)
    with h5py.File(data) as file:
        title, categories = ([text.decode() for text in file["items/" + name][1:]] for name in ("title", "categories"))
    return [a + ", " + b for a, b in zip(title, categories)], load_file(os.path.join(model, "model.safetensors"))["item_plm_embedding.weight"][1:]


def main():
    with tempfile.TemporaryDirectory() as work:
        items, got = encoded(sys.argv[1], sys.argv[2], texts(sys.argv[3] if len(sys.argv) > 3 else None), work)
    model = SentenceTransformer(sys.argv[2], device="cpu")
    want = model.encode(items, batch_size=32, normalize_embeddings=True, convert_to_numpy=True)
    alone = model.encode(items[:200], batch_size=1, normalize_embeddings=True, convert_to_numpy=True)  # what its own batches change
    cut = sum(len(ids) > model.max_seq_length for ids in model.tokenizer(items, truncation=False, verbose=False)["input_ids"])
    cosine = (got.astype(np.float64) * want.astype(np.float64)).sum(1) / np.linalg.norm(got.astype(np.float64), axis=1) / np.linalg.norm(want, axis=1)
    difference = np.abs(got - want).max()
    print(f"{len(items)} texts, {cut} of them longer than {model.max_seq_length} tokens, {got.shape[1]} values each: "
          f"max |difference| {difference:.3g}, 1 - smallest cosine {1 - cosine.min():.3g}; "
          f"its own batches of 32 and 1 differ by {np.abs(alone - want[:200]).max():.3g}")
    worst = int(np.abs(got - want).max(1).argmax())
    print("the largest difference is that of", ascii(items[worst][:80]))
    sys.exit(1 if difference > MOST or cosine.min() < LEAST_COSINE else 0)


main()
