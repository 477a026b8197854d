"""Writes core/text/nfc_tables.c: canonical decompositions, primary compositions and combining classes.

Source: the Unicode Character Database as Python's `unicodedata` has it. The `tokenizers` library normalises by an older
edition of it (Unicode 9), and a tokenizer must give that library's ids: characters that its NFC treats as unknown are left
out here, by asking it about each one. Run from the root of the tree: python tests/golden/make_nfc.py; then clang-format.
"""
import os
import unicodedata as u
from tokenizers import normalizers

NFC = normalizers.NFC().normalize_str
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def known_class(c):
    """Combining class, 0 when the library does not reorder the character."""
    wanted = u.combining(chr(c))
    for other in "\u0334\u0316\u0301\u0345":
        for text in ("q" + chr(c) + other, "q" + other + chr(c)):
            if NFC(text) != u.normalize("NFC", text):
                return 0
    return wanted


def main():
    classes = [(c, known_class(c)) for c in CODES if u.combining(chr(c))]
    ranges = []
    for c, k in classes:
        if k and ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == k:
            ranges[-1][1] = c
        elif k:
            ranges.append([c, c, k])
    entries, composed = [], []
    for c in CODES:
        parts = u.decomposition(chr(c)).split()
        if not parts or parts[0].startswith("<"):
            continue
        parts = [int(p, 16) for p in parts] + [0]
        whole = u.normalize("NFD", chr(c))
        if NFC(whole) != u.normalize("NFC", whole):
            continue
        assert len(parts) <= 3 and not (len(parts) == 3 and u.decomposition(chr(parts[1])) and not parts[1] < 0x400)
        if len(parts) == 3 and u.normalize("NFC", chr(c)) == chr(c):
            composed.append((parts[0], parts[1], len(entries)))
        entries.append((c, parts[0], parts[1]))
    composed.sort()
    with open(os.path.join(ROOT, "core", "text", "nfc_tables.c"), "w") as f:
        f.write("// Made by tests/golden/make_nfc.py from the Unicode Character Database; the script says which edition.\n"
                "// Hangul syllables are computed, not listed. Over 700 lines: one generated table.\n#include \"core/text/nfc_tables.h\"\n\n")
        for name, kind, values in (
                ("dr_nfc_decompositions[][3]", "uint32_t", ["{0x%X, 0x%X, 0x%X}" % e for e in entries]),
                ("dr_nfc_compositions[]", "uint16_t", [str(e[2]) for e in composed]),
                ("dr_nfc_classes[][3]", "uint32_t", ["{0x%X, 0x%X, %d}" % tuple(r) for r in ranges])):
            f.write("const %s %s = {%s};\n" % (kind, name, ", ".join(values)))
        f.write("const int32_t dr_nfc_n_decompositions = %d, dr_nfc_n_compositions = %d, dr_nfc_n_classes = %d;\n"
                % (len(entries), len(composed), len(ranges)))


main()
