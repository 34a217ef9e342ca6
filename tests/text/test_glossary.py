"""If this fails, users lose their own pronunciations: a glossary that is not read, not kept, or wrong without saying so."""

from pathlib import Path

import pytest

from indextts.text import Glossary, TextNormalizer


def test_survives_saving_and_loading(tmp_path: Path) -> None:
    glossary = Glossary({"SQL": {"en": "sequel", "zh": "S Q L"}, "叠词": "C 加加"})
    path = tmp_path / "new" / "glossary.yaml"
    glossary.save(path)
    assert Glossary.load(path) == glossary
    assert "叠词" in path.read_text(encoding="utf-8"), "Chinese must stay readable in the file"
    assert [file.name for file in path.parent.iterdir()] == ["glossary.yaml"]


def test_an_empty_file_is_an_empty_glossary(tmp_path: Path) -> None:
    (tmp_path / "glossary.yaml").write_text("", encoding="utf-8")
    assert len(Glossary.load(tmp_path / "glossary.yaml")) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- SQL", "must map terms"),
        ("SQL: [a]", "'SQL'"),
        ("SQL: {fr: x}", "unknown language 'fr'"),
        ("SQL: {en: 3}", "spoken form for en must be text"),
        ("SQL:", "'SQL'"),
        ("5: five", "quote it"),
        ("'  ': x", "must not be empty"),
        ("SQL: {en: sequel", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_and_explained(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "glossary.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Glossary.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        Glossary.load(tmp_path / "nowhere.yaml")


def test_a_panel_edits_it_and_the_next_inference_follows() -> None:
    normalizer = TextNormalizer(Glossary(), "identity")
    assert normalizer.normalize("the GUI") == "the GUI"
    normalizer.glossary.add("gui", en="gooey")
    assert normalizer.normalize("the GUI") == "the gooey"
    assert normalizer.normalize("打开GUI") == "打开GUI"
    normalizer.glossary.add("gui", zh="界面")
    assert normalizer.glossary["gui"] == {"en": "gooey", "zh": "界面"}
    assert normalizer.normalize("打开GUI") == "打开界面"
    normalizer.glossary.remove("gui")
    assert normalizer.normalize("the GUI") == "the GUI"
    with pytest.raises(ValueError, match="no term 'gui'"):
        normalizer.glossary.remove("gui")
    with pytest.raises(ValueError, match="zh, en or both"):
        normalizer.glossary.add("gui")


def test_longer_terms_win_and_case_does_not_matter() -> None:
    glossary = Glossary({"PCIe": "P C I E", "pcie 5": "P C I E five"})
    assert glossary.apply("PCIE 5 or pcie 4", "en") == "P C I E five or P C I E 4"


def test_spoken_forms_are_taken_literally() -> None:
    assert Glossary({"x": r"\1 \g<0>"}).apply("x", "en") == r"\1 \g<0>"
    assert Glossary({"c++": "see plus plus"}).apply("C++", "en") == "see plus plus"


def test_terms_never_touch_the_readings_that_the_user_typed() -> None:
    normalizer = TextNormalizer({"PLACE": "location", "lead": "metal"}, "identity")
    assert normalizer.normalize("a place to <lead|L EH1 D> from") == "a location to <lead|L EH1 D> from"
