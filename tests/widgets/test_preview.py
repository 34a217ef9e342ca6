"""If this fails, the synthesis panel promises a sentence of four seconds nine."""

from __future__ import annotations

import pytest

from widgets.synthesis_text import Preview


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("THE FERRY CAME IN AT A QUARTER TO EIGHT, AND NOBODY WAS WAITING.", 4.0), ("我们在码头等了一个小时。", 2.6), ("", 0.0)],
)
@pytest.mark.parametrize("tokens", [12, 60])
def test_seconds_do_not_depend_on_how_a_voice_cuts_its_text(text: str, seconds: float, tokens: int) -> None:
    assert Preview(((tokens, text),)).seconds == pytest.approx(seconds, rel=0.15, abs=0.1)
