"""Writes core/text/late_tables.c: characters that the regular expressions of the `tokenizers` library know and that
Unicode 14, the edition of PCRE2 10.42, does not have yet, by general category.

Source: the library itself, asked about every character. Run from the root of the tree: python tests/golden/make_late.py
"""
import os
import unicodedata as u
from tokenizers import Regex, pre_tokenizers

assert u.unidata_version == "14.0.0", "run with a Python that has Unicode 14 (3.11)"
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(map(chr, CODES))
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So".split()


def main():
    late, changed = {}, []
    for category in CATEGORIES:
        inside = bytearray([1]) * len(TEXT)
        for _, (begin, end) in pre_tokenizers.Split(Regex(r"\p{%s}+" % category), "removed").pre_tokenize_str(TEXT):
            inside[begin:end] = bytes(end - begin)
        for i, c in enumerate(CODES):
            known = u.category(chr(c))
            if inside[i] and known == "Cn":
                late[c] = category
            elif bool(inside[i]) != (known == category) and known != "Cn":
                changed.append((hex(c), known, category))
    print("characters whose category is another one:", changed)
    ranges = []
    for c, category in sorted(late.items()):
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == category:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, category])
    with open(os.path.join(ROOT, "core", "text", "late_tables.c"), "w") as f:
        f.write("// Made by tests/golden/make_late.py: characters younger than Unicode 14, by general category.\n"
                "#include \"core/text/tokenizer_internal.h\"\n\nconst late_range dr_bpe_late[] = {%s};\n"
                "const int32_t dr_bpe_n_late = %d;\n"
                % (", ".join('{0x%X, 0x%X, "%s"}' % tuple(r) for r in ranges), len(ranges)))
    print(len(late), "characters in", len(ranges), "ranges")


main()
