"""Writes core/text/character_tables.c: what the normalisers of the `tokenizers` library do with a character by its kind, and its
lower case.

Source: the library itself, asked about every character: its tables of kinds are of other editions of Unicode than its regular
expressions. Run from the root of the tree: python tests/golden/make_characters.py; then clang-format.
"""
import os
from tokenizers import normalizers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def bert(**on):
    flags = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return normalizers.BertNormalizer(**{**flags, **on}).normalize_str


def kinds():
    """[first, last, bits]: CONTROL, ACCENT, MARK and IDEOGRAPH of character_tables.h."""
    asked = ((1, bert(clean_text=True), ""), (2, bert(strip_accents=True), ""), (4, normalizers.StripAccents().normalize_str, ""),
             (8, bert(handle_chinese_chars=True), " %s "))
    ranges = []
    for c in CODES:
        bits = sum(bit for bit, ask, changed in asked if ask(chr(c)) == changed.replace("%s", chr(c)))
        if bits and ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == bits:
            ranges[-1][1] = c
        elif bits:
            ranges.append([c, c, bits])
    return ranges


def lower_cases():
    """[first, last, step, difference]; every `step`th character of the range has a lower case."""
    lower = normalizers.Lowercase().normalize_str
    ranges = []
    for c in CODES:
        text = lower(chr(c))
        assert text == bert(lowercase=True)(chr(c)) and (len(text) == 1 or c == 0x130), "only U+0130 becomes two characters"
        if text == chr(c) or len(text) > 1:
            continue
        difference = ord(text) - c
        if ranges and ranges[-1][3] == difference:
            first, last, step, _ = ranges[-1]
            if c - last == step or (first == last and c - last == 2):
                ranges[-1] = [first, c, c - last, difference]
                continue
        ranges.append([c, c, 1, difference])
    return ranges


def main():
    tables = (("uint32_t dr_character_kinds[][3]", ["{0x%X, 0x%X, %d}" % tuple(r) for r in kinds()]),
              ("int32_t dr_character_lower[][4]", ["{0x%X, 0x%X, %d, %d}" % tuple(r) for r in lower_cases()]))
    with open(os.path.join(ROOT, "core", "text", "character_tables.c"), "w") as f:
        f.write("// Made by tests/golden/make_characters.py from the normalisers of the `tokenizers` library.\n"
                "#include \"core/text/character_tables.h\"\n\n")
        for name, rows in tables:
            f.write("const %s = {%s};\n" % (name, ", ".join(rows)))
        f.write("const int32_t dr_character_n_kinds = %d, dr_character_n_lower = %d;\n" % tuple(len(rows) for _, rows in tables))


main()
