"""If this fails, the small voice mispronounces known words, loses text, or training and synthesis read other ids."""

from __future__ import annotations

import gzip
import logging
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts.text import Lexicon, LexiconTokenizer, TextFrontend, TextNormalizer, Tokenizer, open_tokenizer, split_segments
from indextts.text.lexicon import PHONES, spelled
from indextts.training.letters import PHONE_VOCABULARY, VOCABULARY, letter_tokenizer, phone_tokenizer
from indextts.training.lexicon import build_lexicon, dictionary_entries, irreducible

DICTIONARY = """
hello HH AH0 L OW1
hello(2) HH EH0 L OW1
world W ER1 L D
world's W ER1 L D Z
read R EH1 D # the past
read(2) R IY1 D
light L AY1 T
house HH AW1 S
houses HH AW1 Z IH0 Z
a AH0
a(2) EY1
a. EY1
i AY1
b B IY1
g JH IY1
p P IY1
u Y UW1
x EH1 K S
d D IY1
f EH1 F
stop S T AA1 P
stopped S T AA1 P T
bake B EY1 K
city S IH1 T IY0
don't D OW1 N T
mcdonald M AH0 K D AA1 N AH0 L D
index IH1 N D EH2 K S
cafe K AH0 F EY1
judge JH AH1 JH
'em AH0 M
naught-y N AO1 T IY0
bad1 B AE1 D
""".strip().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voice")
    (folder / "bpe.model").write_bytes(phone_tokenizer())
    (folder / "source.dict").write_text("\n".join(DICTIONARY), encoding="ascii")
    (folder / "LICENSE").write_text("Copyright of the dictionary", encoding="ascii")
    build_lexicon(folder / "lexicon.txt.gz", folder / "source.dict")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> LexiconTokenizer:
    tokenizer = open_tokenizer(folder / "bpe.model", folder / "lexicon.txt.gz")
    assert isinstance(tokenizer, LexiconTokenizer)
    return tokenizer


def said(tokenizer: Tokenizer, text: str) -> str:
    return " ".join(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello, world!", "▁ hh ah0 l ow1 , ▁ w er1 l d !"),
        ("read", "▁ r eh1 d"),  # the first of two readings
        ("<read|R IY1 D> it", "▁ r iy1 d ▁ I T"),  # or the one that the writer names
        ("a <x|Hello> b", "▁ ah0 ▁ hh ah0 l ow1 ▁ b iy1"),
        ("world's", "▁ w er1 l d z"),
        ("judge's stops, bakes", "▁ jh ah1 jh ih0 z ▁ s t aa1 p s , ▁ b ey1 k s"),
        ("stopped baked houses cities", "▁ s t aa1 p t ▁ b ey1 k t ▁ hh aw1 z ih0 z ▁ s ih1 t iy0 z"),
        ("lighthouse", "▁ l ay1 t hh aw2 s"),
        ("Don't, café", "▁ d ow1 n t , ▁ k ah0 f ey1"),
        ("Zorp glim", "▁ Z O R P ▁ G L I M"),
        ("a GPU and PDFs", "▁ ah0 ▁ jh iy1 ▁ p iy1 ▁ y uw1 ▁ A N D ▁ p iy1 ▁ d iy1 ▁ eh1 f s"),
        ("the GPU's 'PDF'", "▁ T H E ▁ jh iy1 ▁ p iy1 ▁ y uw1 z ▁ ' p iy1 ▁ d iy1 ▁ eh1 f '"),
        ("a", "▁ ey1"),
        ("McDonald IndexWorld", "▁ m ah0 k d aa1 n ah0 l d ▁ ih1 n d eh2 k s ▁ w er1 l d"),
    ],
)
def test_words_are_pronounced(tokenizer: LexiconTokenizer, text: str, pieces: str) -> None:
    assert said(tokenizer, text) == pieces
    assert tokenizer.unknown_id not in tokenizer.ids(tokenizer.encode(text))


def test_what_the_file_leaves_out_the_rules_find(folder: Path, tokenizer: LexiconTokenizer) -> None:
    entries = dictionary_entries(DICTIONARY)
    kept = irreducible(entries)
    assert {"STOPPED", "WORLD'S"} <= entries.keys() - kept.keys()
    assert "HOUSES" in kept, "its s is voiced"
    assert not {"NAUGHT-Y", "BAD1", "'EM"} & entries.keys()
    for word, phones in entries.items():
        assert tokenizer.lexicon.phones(word) == tuple(phones.split())
    text = gzip.decompress((folder / "lexicon.txt.gz").read_bytes()).decode()
    assert text.startswith(";;; Copyright of the dictionary"), "the licence wants its notice kept"


def test_the_vocabulary_holds_letters_at_the_front_and_every_phone_once(tokenizer: LexiconTokenizer) -> None:
    assert len(tokenizer) == PHONE_VOCABULARY == VOCABULARY + 69
    ids = tokenizer.ids(PHONES)
    assert len(set(ids)) == 69
    assert tokenizer.unknown_id not in ids
    assert tokenizer.ids(["B"]) != tokenizer.ids(["b"])


def test_no_text_can_be_taken_for_phones(tokenizer: LexiconTokenizer) -> None:
    plain = Tokenizer(tokenizer.path)
    assert not set(plain.encode("aa1 b hh zh", raw=True)) & set(PHONES)


def test_training_can_leave_words_spelled(tokenizer: LexiconTokenizer) -> None:
    assert tokenizer.encode("hello world", spell=lambda word: word == "HELLO") == ["▁", *"HELLO", "▁", "w", "er1", "l", "d"]


def test_pieces_read_as_the_words_they_stand_for(tokenizer: LexiconTokenizer) -> None:
    frontend = TextFrontend(tokenizer, TextNormalizer(grammar="identity", language="en"))
    assert frontend.segments("Hello, zorp lighthouse's world!")[0].text == "HELLO, ZORP LIGHTHOUSE'S WORLD!"


def test_long_phrases_are_cut_between_words(tokenizer: LexiconTokenizer) -> None:
    pieces = tokenizer.encode("hello world " * 12)
    segments = split_segments(pieces, 20, boundary=tokenizer.word_boundary)
    assert [piece for segment in segments for piece in segment] == pieces
    assert all(len(segment) <= 20 and segment[0] == "▁" for segment in segments)
    assert any(segment[0] != "▁" for segment in split_segments(pieces, 19)), "the release's rule cuts words"
    frontend = TextFrontend(tokenizer, TextNormalizer(grammar="identity", language="en"))
    sentences = frontend.segments("Hello world. Stop, stop a house! Hello, hello light?", 18)
    assert " ".join(segment.text for segment in sentences) == "HELLO WORLD. STOP, STOP A HOUSE! HELLO, HELLO LIGHT?"
    assert len(sentences) > 2
    assert all(len(segment) <= 18 and segment.pieces[-1] in (".", ",", "!", "?") for segment in sentences), "cut at the marks"


def test_unknown_characters_are_reported(tokenizer: LexiconTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    frontend = TextFrontend(tokenizer, TextNormalizer(grammar="identity", language="en"))
    with caplog.at_level(logging.WARNING):
        segment = frontend.segments("Hello 😀 world")[0]
    assert segment.unknown == ("😀",)
    assert "😀" in caplog.text
    with pytest.raises(ValueError, match="nothing in this text"):
        frontend.segments("你好")


def test_numbers_alone_are_read_in_english(tokenizer: LexiconTokenizer) -> None:
    frontend = TextFrontend(tokenizer, TextNormalizer(language="en"))
    assert frontend.segments("45")[0].text == "FORTY FIVE"
    with pytest.raises(ValueError, match="language must be"):
        TextNormalizer(language="fr")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Bring fruit, e.g. apples, i.e. something.", "Bring fruit, for example apples, that is something."),
        ("Pens, paper, etc. are here, vs. nothing, etc.", "Pens, paper, and so on are here, versus nothing, and so on."),
        ("Pens, etc. Then we left.", "Pens, and so on. Then we left."),
        ("The U.S. team met the E.U.", "The US team met the EU."),
        ("Read and/or write user_name.", "Read and or write user underscore name."),
        ("It costs $19.99 at 7:45 p.m.", "It costs nineteen point nine nine dollars at seven forty five PM"),
        ("On Mon., Jan. 5th, 2026", "On Monday, the fifth of january, twenty twenty six"),
        ("Write to joe@example.com.", "Write to joe at example dot com."),
        ("See www.example.org/a", "See WWW dot example dot org slash a"),
    ],
)
def test_english_text_is_read_sensibly(text: str, spoken: str) -> None:
    assert " ".join(TextNormalizer(language="en").normalize(text).split()) == spoken


@given(text=st.text(st.characters(), max_size=80) | st.text(st.sampled_from("aBc'zD<|> -,.!?é1😀好\n\ud800"), max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_gives_pieces(text: str) -> None:
    tokenizer = _FUZZED
    text = text.encode("utf-8", "replace").decode()
    TextFrontend(tokenizer, TextNormalizer(grammar="identity", language="en")).pieces(text)
    pieces = tokenizer.encode(text)
    assert all(pieces)
    assert len(tokenizer.ids(pieces)) == len(pieces)
    unknown = tokenizer.unknown(pieces)
    assert [piece for piece, number in zip(pieces, tokenizer.ids(pieces), strict=True) if number == tokenizer.unknown_id] == unknown
    if "<" not in text:
        normal = tokenizer._processor.normalize(Tokenizer.pretokenize(text))
        letters = [character for character in normal if character.isalpha()]
        assert [c for c in spelled(pieces) if c.isalpha()] == letters, "a letter was lost"


def test_every_block_of_unicode_passes() -> None:
    for start in range(0, 0x110000, 256):
        block = "".join(chr(code) for code in range(start, start + 256) if not 0xD800 <= code < 0xE000)
        if block:
            pieces = _FUZZED.encode("hello " + block + " world")
            assert pieces[:5] == ["▁", "hh", "ah0", "l", "ow1"], f"U+{start:04X}"
            assert pieces[-4:] == ["w", "er1", "l", "d"], f"U+{start:04X}"


def test_long_texts_are_encoded_fast(tokenizer: LexiconTokenizer) -> None:
    rng = random.Random(0)
    text = " ".join(rng.choice(["hello", "worlds", "lighthouse", "zorp", "GPU", "don't"]) + str(rng.choice("., !")) for _ in range(20_000))
    began = time.perf_counter()
    tokenizer.ids(tokenizer.encode(text))
    assert time.perf_counter() - began < 4, "fewer than 5,000 words a second"


def test_a_vocabulary_without_phones_is_refused(tmp_path: Path, tokenizer: LexiconTokenizer) -> None:
    (tmp_path / "bpe.model").write_bytes(letter_tokenizer())
    with pytest.raises(ValueError, match="does not fit the voice's lexicon"):
        LexiconTokenizer(tmp_path / "bpe.model", tokenizer.lexicon)
    assert type(open_tokenizer(tmp_path / "bpe.model")) is Tokenizer, "without a lexicon, the release's behaviour"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "not a gzipped lexicon"),
        (gzip.compress(b"HELLO HH AH0")[:-9], "not a gzipped lexicon"),
        (gzip.compress(b";;; nothing\n"), "no entries"),
        (gzip.compress(b"HELLO HH QQ7\n"), "not a pronunciation"),
    ],
    ids=["junk", "cut", "empty", "wrong phone"],
)
def test_a_damaged_lexicon_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "lexicon.txt.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Lexicon.load(path)
    assert "lexicon.txt.gz" in str(error.value)
    with pytest.raises(FileNotFoundError, match="no lexicon at"):
        Lexicon.load(tmp_path / "none.gz")


def test_a_source_without_pronunciations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("hello\nworld\n")
    with pytest.raises(ValueError, match="holds no pronunciations"):
        build_lexicon(tmp_path / "lexicon.txt.gz", tmp_path / "words")
    assert not (tmp_path / "lexicon.txt.gz").exists()


def _fuzzed() -> LexiconTokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bpe.model")
        path.write_bytes(phone_tokenizer())
        return LexiconTokenizer(path, Lexicon(dictionary_entries(DICTIONARY)))


_FUZZED = _fuzzed()
