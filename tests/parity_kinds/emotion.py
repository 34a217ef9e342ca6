"""Goldens ``emotion`` (vectors) and ``emotion_text`` (replies of the text classifier)."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator

from indextts.emotion_text import CHAT_TEMPLATE_ARGUMENTS, build_messages, cut_thinking, parse_reply, parse_reply_strict
from indextts.models.emotion import EMOTIONS, EmotionMatrices, normalize_emo_vec, scale_emotion
from tests.parity_kinds.common import Check, Golden, compare_values, runner

_VECTOR_IN_TEXT = re.compile(r"emo_vector=\[([^\]]*)\]")
_THINK_END = 151668


@runner("emotion")
def check_emotion(golden: Golden) -> Iterator[Check]:
    """Row choice, scaling, the final vector, random rows and the web page's normalisation."""
    spec = golden.spec
    matrices = EmotionMatrices(golden["in.spk_matrix"], golden["in.emo_matrix"], spec["emo_num"])
    merged = golden["in.merged_emovec"]
    rows = matrices.choose_rows(golden["in.style"])
    yield compare_values("rows_chosen_by_cosine", rows, spec["rows_chosen_by_cosine"])
    for case in spec.get("cases", []):
        weights = scale_emotion(case["emo_vector"], case["emo_alpha"])
        yield compare_values(f"{case['name']}.vector_used", weights, case["vector_used"])
        name = f"out.{case['name']}.emovec"
        if name in golden:
            yield golden.compare(name, matrices.final_vector(merged, weights, rows))
    for i, case in enumerate(spec.get("use_random", [])):
        drawn = matrices.random_rows(random.Random(case["seed"]))
        yield compare_values(f"use_random[{i}].rows", drawn, case["rows"])
        name = f"out.random{i}.emovec"
        if name in golden:
            weights = _weights_of(golden, name, case)
            yield golden.compare(name, matrices.final_vector(merged, weights, drawn))
    for i, case in enumerate(spec.get("normalize_emo_vec", [])):
        yield compare_values(f"normalize_emo_vec[{i}]", normalize_emo_vec(case["emo_vector"], case["apply_bias"]), case["out"])


def _weights_of(golden: Golden, name: str, case: dict) -> list[float]:
    """The eight values of a random case: its own field, or what the meaning of its tensor states."""
    if "emo_vector" in case:
        return case["emo_vector"]
    stated = _VECTOR_IN_TEXT.search(golden.spec["tensors"][name]["meaning"])
    if stated is None:
        raise ValueError(f"{golden.path.name}: {name} does not state its emo_vector")
    return [float(value) for value in stated[1].split(",")]


@runner("emotion_text")
def check_emotion_text(golden: Golden) -> Iterator[Check]:
    """The request, what is cut off a reply, and how the rest is read."""
    request = golden.spec.get("request", {})
    if "messages" in request:
        yield compare_values("request.messages", build_messages(request["messages"][-1]["content"]), request["messages"])
    if "chat_template_arguments" in request:
        yield compare_values("request.chat_template", CHAT_TEMPLATE_ARGUMENTS, request["chat_template_arguments"])
    for i, case in enumerate(golden.spec["cases"]):
        name = f"case{i}"
        if "decoded_ids" in case:
            for reply in _replies(case):
                yield compare_values(f"{name}.decoded_ids", cut_thinking(reply), case["decoded_ids"])
        yield _check_reply(name, case)


def _replies(case: dict) -> list[list[int]]:
    """Generated ids that must be cut to the recorded ones: without thinking as they are, else after one or two end marks."""
    kept = case["decoded_ids"]
    if not case.get("kind", "").startswith("thinking"):
        return [kept]
    return [[7, 8, _THINK_END, *kept], [_THINK_END, 9, _THINK_END, *kept]]


def _check_reply(name: str, case: dict) -> Check:
    user, raw = case["user"], case["raw"]
    if "error" not in case:
        result = parse_reply_strict(raw, user)
        ordered = list(result) == list(EMOTIONS) == list(case["result"])
        check = compare_values(f"{name}.result", result, case["result"])
        return check if ordered else Check(check.name, math.inf, 0.0, False, f"order {list(result)}")
    try:
        got = repr(parse_reply_strict(raw, user))
    except ValueError:
        calm = {emotion: float(emotion == "calm") for emotion in EMOTIONS}
        return compare_values(f"{name}.error", parse_reply(raw, user), calm)
    return Check(f"{name}.error", math.inf, 0.0, False, f"the reference raises {case['error']}, got {got}")
