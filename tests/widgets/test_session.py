"""The session: the kernel must stay free, callbacks belong to its loop, and nothing may break it for the next run."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from typing import Any

import pytest

from tests.widgets.fake import VOICE, FakeTTS
from widgets.session import Cancelled, Session


def speak(session: Session, **more: Any) -> Any:
    return session.render(**{"spk_audio_prompt": VOICE, "text": "Hello.", **more})


def test_render_returns_at_once_and_calls_back_on_the_loop(tts: FakeTTS, kernel: Any) -> None:
    tts.hold.clear()
    heard: list[tuple[str, threading.Thread]] = []
    ended = threading.Event()

    def note(what: str) -> Any:
        return lambda *_: heard.append((what, threading.current_thread()))

    session = kernel.cell(lambda: Session(tts))  # type: ignore[arg-type]
    session.subscribe(note("change"))
    started = time.perf_counter()
    task = kernel.cell(
        lambda: speak(session, on_progress=note("progress"), on_piece=note("piece"), on_done=lambda _: (note("done")(), ended.set()))
    )
    assert time.perf_counter() - started < 1.0
    assert tts.entered.wait(5)
    assert session.busy
    tts.hold.set()
    assert ended.wait(5)
    assert {what for what, _ in heard} == {"change", "progress", "piece", "done"}
    assert {thread for _, thread in heard} == {kernel.thread}
    assert task.result() is session.history.get(1)
    kernel.cell(session.close)


def test_progress_is_told_twice_a_second_at_most(session: Session) -> None:
    told: list[float] = []

    def work(progress: Any) -> str:
        for step in range(110):
            progress(step / 110, f"step {step}")
            time.sleep(0.01)
        return "result"

    task = session.run(work, on_progress=lambda fraction, _: told.append(fraction))
    assert task.result(10) == "result"
    assert 2 <= len(told) <= 5, "at 1.1 s: the start, two in between, and the end"
    assert told[-1] == 1.0


def test_the_latest_progress_can_be_read_at_any_time(session: Session, tts: FakeTTS) -> None:
    assert session.progress == (0.0, "")
    tts.hold.clear()
    task = speak(session)
    assert tts.entered.wait(5)
    deadline = time.monotonic() + 5
    while session.progress[1] != "segment 1 of 1: 10 codes" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session.progress == (0.1, "segment 1 of 1: 10 codes")
    tts.hold.set()
    assert task.wait(5)


def test_cancel_gives_up_what_runs_and_what_waits(session: Session, tts: FakeTTS) -> None:
    tts.hold.clear()
    errors: list[BaseException] = []
    tasks = [speak(session, on_error=errors.append) for _ in range(3)]
    assert tts.entered.wait(5)
    assert session.waiting == 2
    session.cancel()
    assert all(task.wait(5) for task in tasks)
    assert [task.state for task in tasks] == ["cancelled"] * 3
    assert all(isinstance(error, Cancelled) for error in errors)
    assert len(errors) == 3
    assert len(session.history) == 0
    assert len(tts.calls) == 1
    tts.hold.set()
    assert speak(session).result(5).samples.size, "a run after a cancelled one must work"


def test_errors_reach_the_panel_and_leave_the_session_working(session: Session, tts: FakeTTS) -> None:
    errors: list[BaseException] = []
    assert speak(session, text=" ", on_error=errors.append).wait(5)
    assert str(errors[0]) == "the text is empty: nothing to say"
    tts.fail = KeyboardInterrupt()  # a kernel interrupt that reaches the work
    task = speak(session)
    assert task.wait(5)
    assert task.state == "error"
    tts.fail = None
    assert speak(session).result(5)
    assert not session.busy


def test_an_interrupted_wait_cancels_the_work(session: Session, tts: FakeTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    tts.hold.clear()
    task = speak(session)

    def interrupted(_: Any = None) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(task._over, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            task.result()
    with pytest.raises(Cancelled):
        task.result(5)
    tts.hold.set()
    assert speak(session).result(5)


def test_a_failing_callback_does_not_end_the_session(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    def bad(_: Any) -> None:
        raise ZeroDivisionError("oh")

    assert speak(session, on_done=bad).wait(5)
    assert speak(session).result(5)
    assert "a panel's callback failed: oh" in caplog.text
    assert "Traceback" not in caplog.text


def test_warnings_of_a_run_become_notices(session: Session, tts: FakeTTS, capfd: pytest.CaptureFixture[str]) -> None:
    tts.warns = "3 text tokens are not in the vocabulary"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        task = speak(session)
        assert task.wait(5)
        assert task.notices == ["3 text tokens are not in the vocabulary"]
        log = session.run(lambda _: logging.getLogger("indextts.text").warning("cut inside a phrase"))
        assert log.wait(5)
        assert log.notices == ["cut inside a phrase"]
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)  # of other threads: as ever
    assert capfd.readouterr() == ("", "")


def test_close_ends_everything(tts: FakeTTS) -> None:
    session = Session(tts)  # type: ignore[arg-type]
    tts.hold.clear()
    heard: list[int] = []
    session.subscribe(lambda: heard.append(1))
    task = speak(session)
    assert tts.entered.wait(5)
    session.close()
    assert task.state == "cancelled"
    assert session._thread is not None
    assert not session._thread.is_alive()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        speak(session)


def test_results_time_out(session: Session, tts: FakeTTS) -> None:
    tts.hold.clear()
    task = speak(session)
    with pytest.raises(TimeoutError, match=r"0.01 s"):
        task.result(0.01)
    assert not task.over
    task.cancel()
