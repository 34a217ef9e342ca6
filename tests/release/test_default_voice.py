"""Which of the bundled clips speaks when nobody names one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from indextts.release import write_random_release
from indextts.release.find import find_release
from indextts.release.sizes import small_config


def test_the_named_clip_comes_first_and_the_others_by_name(tmp_path: Path) -> None:
    sizes = small_config()
    inference = dataclasses.replace(sizes.config.inference, voice="flite-slt")
    named = dataclasses.replace(sizes, config=dataclasses.replace(sizes.config, inference=inference))
    for size, expected in ((named, ["flite-slt", "espeak-f4", "flite-rms"]), (sizes, ["espeak-f4", "flite-rms", "flite-slt"])):
        folder = write_random_release(tmp_path / expected[0], size)
        (folder / "voices").mkdir()
        for name in ("flite-rms", "flite-slt", "espeak-f4"):
            (folder / "voices" / f"{name}.wav").touch()
        assert [path.stem for path in find_release(folder).voices] == expected
