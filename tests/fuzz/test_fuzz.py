"""If this fails, some input that nobody thought of ends in an undocumented exception or a half-written file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.boundaries import BOUNDARIES, Boundary
from tests.fuzz.corpus import CORPUS
from tests.fuzz.run import available, try_boundary
from tests.fuzz.world import World, expected_warnings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


@pytest.mark.parametrize("boundary", BOUNDARIES, ids=lambda boundary: boundary.name)
def test_a_few_inputs_the_same_every_time(world: World, boundary: Boundary) -> None:
    if not available(boundary):
        pytest.skip(f"needs {boundary.needs}")
    tally = try_boundary(world, boundary, boundary.few)
    assert sum(tally.outcomes.values()) >= 1


@pytest.mark.parametrize(("name", "value"), CORPUS, ids=lambda part: part if isinstance(part, str) and len(part) < 30 else "")
def test_inputs_that_once_went_wrong(world: World, name: str, value: object) -> None:
    boundary = next(boundary for boundary in BOUNDARIES if boundary.name == name)
    if not available(boundary):
        pytest.skip(f"needs {boundary.needs}")
    with expected_warnings():
        assert boundary.check(world, value) in ("accepted", "refused")


def test_parts_add_up() -> None:
    assert sum(boundary.part for boundary in BOUNDARIES) == pytest.approx(1)
