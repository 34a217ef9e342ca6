"""If this fails, voices are recomputed needlessly, or cached ones fill the memory without limit."""

from __future__ import annotations

import pytest
import torch

from indextts.engine.reference_cache import MB, EmotionPrompt, ReferenceCache


def one_megabyte() -> EmotionPrompt:
    return EmotionPrompt(torch.zeros(MB // 4 - 4), torch.zeros(4))


def filled(count: int) -> ReferenceCache:
    cache = ReferenceCache()
    for number in range(count):
        cache.get("emotion", str(number), one_megabyte)
    return cache


def test_an_entry_is_made_once() -> None:
    cache = ReferenceCache()
    entry, hit = cache.get("emotion", "a", one_megabyte)
    again, second = cache.get("emotion", "a", lambda: pytest.fail("made again"))
    assert (hit, second) == (False, True)
    assert again is entry


def test_roles_do_not_share_entries() -> None:
    cache = filled(1)
    _, hit = cache.get("speaker", "0", one_megabyte)
    assert not hit


def test_size_is_counted() -> None:
    assert filled(3).memory_mb == pytest.approx(3.0)
    assert filled(3).sizes_mb() == {"emotion": pytest.approx(3.0)}


def test_the_least_recently_used_goes_first() -> None:
    cache = filled(3)
    cache.get("emotion", "0", one_megabyte)  # now the most recent
    assert cache.evict(2.0) == 1
    assert cache.get("emotion", "0", one_megabyte)[1]
    assert not cache.get("emotion", "1", one_megabyte)[1]


def test_nothing_goes_below_the_limit() -> None:
    cache = filled(3)
    assert cache.evict(3.0) == 0
    assert len(cache) == 3


def test_a_failed_entry_is_not_kept() -> None:
    cache = ReferenceCache()

    def fail() -> EmotionPrompt:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        cache.get("emotion", "a", fail)
    assert len(cache) == 0
    assert cache.latest("emotion") is None
