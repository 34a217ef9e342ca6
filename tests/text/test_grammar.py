"""If this fails, written forms that wetext reads badly or refuses are spoken wrongly again."""

import sys
from pathlib import Path

import pytest

from indextts.text import TextNormalizer
from indextts.text.grammar import WeTextProcessingGrammar, make_grammar
from indextts.text.grammar_wetext import WetextGrammar


@pytest.fixture(scope="module")
def normalizer() -> TextNormalizer:
    return TextNormalizer()


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ('say "yes" 2 times', "say 'yes' two times"),  # wetext alone: \"yes\"
        ("a\\b is 1", "a\\b is one"),
        ("padded   with \r\n 2  spaces", "padded with two spaces"),  # refused by wetext
        ("in the 1990s", "in the nineteen nineties"),  # wetext alone: seconds
        ("the 1800s and 2000s", "the eighteen hundreds and two thousands"),
        ("rent is $1,200.", "rent is one thousand two hundred dollars."),  # wetext alone: thousand two hundred
        ("rent is $2,345,678.", "rent is two million three hundred forty five thousand six hundred and seventy eight dollars."),
        ("USB3.0 and version 2.0.1", "USB three point oh and version two point oh point one"),  # wetext alone: three.zero
        ("the host 10.0.0.1 is up", "the host one zero dot zero dot zero dot one is up"),
        ("~100 people said ~ok", "approximately one hundred people said -ok"),  # wetext alone: approximatelyone, tilde
        ("if x>=1 then 5 apples", "if x>equals one then five apples"),  # the whole text is refused by wetext
        ("10% & more @ home #1 ~ok", "ten percent and more at home number one -ok"),
    ],
)
def test_english_gaps_of_wetext_are_closed(normalizer: TextNormalizer, text: str, spoken: str) -> None:
    assert normalizer.normalize(text) == spoken


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("電腦有128個檔案", "电脑有一百二十八个档案"),
        ("這裡沒有數字", "这里没有数字"),
        ("ＡＢＣ，５０％！", "ABC,五十%!"),
        ("$1,200", "一千二百美元"),  # wetext alone: one dollar, two hundred
        ('他说"你好"3次', "他说'你好'三次"),
        (" 7 ", " 七"),
    ],
)
def test_chinese_gaps_of_wetext_are_closed(normalizer: TextNormalizer, text: str, spoken: str) -> None:
    assert normalizer.normalize(text) == spoken


def test_prices_versions_and_decades_stay_what_they_are_elsewhere(normalizer: TextNormalizer) -> None:
    assert normalizer.normalize("it costs 3.5 and $1.2 million") == "it costs three point five and one point two million dollars"
    assert normalizer.normalize("see https://example.org/rel2.5/x now").endswith("dot org slash rel two dot five slash x now")
    assert normalizer.normalize("120s later") == "one hundred and twenty seconds later"


def test_a_chapter_is_read_sentence_by_sentence_without_losing_any(normalizer: TextNormalizer) -> None:
    sentence = "Dr. Lin counted 12 boats."
    spoken = normalizer.normalize(sentence)
    assert normalizer.normalize(" ".join([sentence] * 200)) == " ".join([spoken] * 200)
    assert normalizer.normalize("他有3本书。\n" * 300) == ("他有三本书. " * 300).strip()


def test_only_what_wetext_refuses_stays_as_written() -> None:
    class Picky(WetextGrammar):
        def _speak(self, text: str, language: str) -> str:
            if "%%" in text:
                raise AssertionError
            return text.replace("5", "five")

    assert Picky()("5 apples, 5 %% pears", "en") == "five apples, five %% pears"


@pytest.fixture
def fake_wetextprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that only states how it was called."""
    for language in ("chinese", "english"):
        folder = tmp_path / "site" / "tn" / language
        folder.mkdir(parents=True)
        (folder / "normalizer.py").write_text(
            "class Normalizer:\n"
            "    def __init__(self, **options): self.options = options\n"
            f"    def normalize(self, text): return f'{language} {{sorted(self.options)}} {{text}}'\n"
        )
        (folder / "__init__.py").touch()
    (tmp_path / "site" / "tn" / "__init__.py").touch()
    info = tmp_path / "site" / "WeTextProcessing-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: WeTextProcessing\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in [name for name in sys.modules if name == "tn" or name.startswith("tn.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("fake_wetextprocessing")
def test_wetextprocessing_is_used_where_it_is_installed_and_asked_for(tmp_path: Path) -> None:
    grammar = make_grammar("WeTextProcessing")
    assert isinstance(grammar, WeTextProcessingGrammar)
    assert grammar("5", "zh") == "chinese ['cache_dir', 'remove_erhua', 'remove_interjections'] 5"
    assert grammar("5", "en") == "english [] 5"
    assert (tmp_path / "cache" / "indextts" / "wetextprocessing-9.9").is_dir(), "compiled rules must not mix between versions"


def test_without_wetextprocessing_wetext_takes_over(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("indextts.text.grammar._has_tn", lambda: False)
    assert isinstance(make_grammar("WeTextProcessing"), WetextGrammar)
    assert "not installed" in caplog.text


def test_without_wetext_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wetext", None)
    with pytest.raises(RuntimeError, match="pip install wetext"):
        WetextGrammar().load()
