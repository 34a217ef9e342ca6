"""If this fails, text reaches the GPT as other ids than the release's, or a damaged download fails without saying which file."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts.text import Tokenizer

MODEL = Path(__file__).parents[1] / "golden" / "bpe_small.model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"bpe\.model"):
        Tokenizer(tmp_path / "bpe.model")


@pytest.mark.parametrize("content", [b"", b"not a model", MODEL.read_bytes()[:9000]], ids=["empty", "junk", "cut"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bpe.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bpe\.model is not a SentencePiece model"):
        Tokenizer(path)


def test_cjk_stands_alone_and_the_rest_is_upper_cased(tokenizer: Tokenizer) -> None:
    assert tokenizer.pretokenize(" 你好hello  world。straße ") == "你 好 HELLO  WORLD 。 STRASSE"
    assert tokenizer.encode("Hello there!") == ["▁HELLO", "▁THERE", "!"]


def test_unknown_pieces_are_kept_and_reported(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.encode("hello 😀")
    assert tokenizer.unknown(pieces) == ["😀"]
    assert tokenizer.ids(pieces)[-1] == tokenizer.unknown_id


def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([0, len(tokenizer)])


@given(text=st.text(alphabet="abcdefgh ,.!?", max_size=60))
@settings(deadline=None)
def test_what_is_encoded_decodes_to_the_text(text: str) -> None:
    tokenizer = Tokenizer(MODEL)
    pieces = tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.ids(pieces)) == " ".join(text.upper().split())
