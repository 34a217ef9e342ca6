"""Goldens of generation: score stages, searches, recorded beam-sampling runs, beam bookkeeping alone, cutting of codes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from indextts.config import GPTConfig
from indextts.engine.beam_search import BeamState, Candidates, Hypothesis
from indextts.engine.generate import generate, remove_long_silence, trim_codes
from indextts.engine.sampling import SamplingParams, process_scores, score_stages
from indextts.models.gpt import UnifiedVoice
from indextts.models.length_regulator import target_frames
from tests.parity_kinds.common import Check, Golden, compare_values, runner
from tests.parity_kinds.gpt import Outputs, compare_all, load_model

# What Transformers takes for a generation argument that is not given; the goldens' calls of the library rely on it.
LIBRARY_DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "top_k": 50,
    "top_p": 1.0,
    "temperature": 1.0,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
}


def params_of(spec: dict[str, Any]) -> SamplingParams:
    """Sampling parameters of one recorded call."""
    names = {f.name for f in dataclasses.fields(SamplingParams)}
    given = LIBRARY_DEFAULTS | {name: value for name, value in spec.items() if name in names and value is not None}
    if "max_new" in spec:
        given["max_mel_tokens"] = spec["max_new"]
    return SamplingParams(**given, typical_sampling=spec.get("typical_mass") is not None)


class Prompts:
    """The golden's texts on its one voice, as prefixes."""

    def __init__(self, golden: Golden, model: UnifiedVoice) -> None:
        self.golden = golden
        self.model = model
        self.emotion = model.emotion_vector(golden["in.spk_feat"])
        self.conditioning = model.conditioning(model.speaker_latents(golden["in.spk_feat"]), self.emotion)

    def named(self, name: object) -> tuple[Tensor, Tensor]:
        """Prefix and mask of prompt 0, 1, .. or ``"batch"``."""
        key = f"in.text_{name}" if f"in.text_{name}" in self.golden else f"in.text{name}"
        return self.model.prefix(self.conditioning, self.golden[key])

    def matching(self, spec: dict[str, Any], first_logits: Tensor, beams: int) -> tuple[Tensor, Tensor]:
        """The prompt that a record names, else the one whose first logits ``(rows * beams, V)`` it holds."""
        if "prompt" in spec:
            return self.named(spec["prompt"])
        names = [name for name in self.golden.tensors if name.startswith("in.text")]
        prefixes = [self.model.prefix(self.conditioning, self.golden[name]) for name in names]
        fitting = [(prefix, mask) for prefix, mask in prefixes if prefix.shape[0] * beams == first_logits.shape[0]]
        return min(fitting, key=lambda pair: float((self.model.prefill(*pair)[0] - first_logits[::beams]).abs().max()))


@runner("sampling")
def run_sampling(golden: Golden) -> Iterator[Check]:
    """Score stages, deterministic searches, recorded samples."""
    model = load_model(golden)
    prompts = Prompts(golden, model)
    outputs: Outputs = {"out.emo_vec": prompts.emotion}
    yield from _processors(golden, outputs)
    for name, spec in golden.spec.get("generate", {}).items():
        result = generate(model, *prompts.named(spec["prompt"]), params_of(spec))
        outputs[f"out.gen.{name}"] = result.codes
        if "hypotheses" in spec:
            yield compare_values(f"{name}: hypotheses", _plain(result.hypotheses), spec["hypotheses"])
            yield compare_values(f"{name}: scores", result.scores, spec["sequence_scores"])
    for name, spec in golden.spec.get("beam_sample", {}).items():
        yield from _Trace(golden, prompts, name, spec).check(outputs)
    for name in sorted({match[1] for key in golden.tensors if (match := re.match(r"out\.(sample\w*)\.codes$", key))}):
        yield from _single_samples(golden, prompts, name, outputs)
    yield from compare_all(golden, outputs)


def _processors(golden: Golden, outputs: Outputs) -> Iterator[Check]:
    for name, spec in golden.spec.get("processors", {}).items():
        scores, ids = golden["in.proc.logits"], golden["in.proc.ids"]
        if spec["input"].startswith("log_softmax"):
            scores = scores.log_softmax(dim=-1)
        chain = score_stages(params_of(spec))
        names = [stage.replace("_", "") for stage, _ in chain]
        yield compare_values(f"proc.{name}: stages", names, spec["stages"])
        for index, (stage, (_, apply)) in enumerate(zip(names, chain, strict=True)):
            scores = apply(scores, ids)
            outputs[f"out.proc.{name}.{index}_{stage}"] = scores


class _Trace:
    """A recorded beam-sampling run, checked from its recorded state at every step."""

    def __init__(self, golden: Golden, prompts: Prompts, name: str, spec: dict[str, Any]) -> None:
        self.name = name
        self.spec = spec
        self.params = params_of(spec)
        place = f"out.trace.{name}."
        self.place = place
        self.recorded = {key.removeprefix(place): tensor for key, tensor in golden.tensors.items() if key.startswith(place)}
        self.steps = len(self.recorded["logits"])
        self.model = prompts.model
        self.stop = self.model.config.stop_mel_token
        self.prefix, self.mask = prompts.matching(spec, self.recorded["logits"][0], self.params.num_beams)
        self.rows = self.prefix.shape[0]
        self.row_of_beam = torch.arange(self.rows).repeat_interleave(self.params.num_beams)

    def check(self, outputs: Outputs) -> Iterator[Check]:
        logits, processed = self._scores()
        found: dict[str, Tensor] = {"logits": logits, "processed": processed}
        found |= self._draws()
        replayed, hypotheses, finished = self._replay()
        outputs |= {f"{self.place}{key}": tensor for key, tensor in (found | replayed).items()}
        if "hypotheses_per_step" in self.spec:
            yield compare_values(f"{self.name}: hypotheses per step", hypotheses, self.spec["hypotheses_per_step"])
        yield compare_values(f"{self.name}: hypotheses", finished, self.spec["hypotheses_final"])
        yield from self._counts()
        generator = torch.Generator().manual_seed(self.spec["torch_manual_seed"])
        result = generate(self.model, self.prefix, self.mask, self.params, generator=generator)
        yield compare_values(f"{self.name}: codes from the seed", result.codes.tolist(), self.recorded["codes"].tolist())
        yield compare_values(f"{self.name}: hypotheses from the seed", _plain(result.hypotheses), self.spec["hypotheses_final"])

    def _scores(self) -> tuple[Tensor, Tensor]:
        """Logits after the recorded ids and parents; processed scores of the recorded logits and ids."""
        ids, parents = self.recorded["ids"], self.recorded["next_beams"]
        placeholders = self.model.placeholder_ids(self.prefix)[self.row_of_beam]
        first, cache = self.model.prefill(self.prefix, self.mask)
        cache.reorder(self.row_of_beam)
        logits, processed = [first[self.row_of_beam]], []
        for step in range(self.steps):
            if step:
                cache.reorder(parents[step - 1])
                logits.append(self.model.decode_step(ids[step, :, step - 1], step, cache, self.mask[self.row_of_beam])[0])
            seen = torch.cat([placeholders, ids[step, :, :step]], dim=1)
            processed.append(process_scores(self.recorded["logits"][step].log_softmax(dim=-1), seen, self.params))
        return torch.stack(logits), torch.stack(processed)

    def _totals(self) -> Tensor:
        """Recorded scores of all continuations, ``(steps, rows, b V)``."""
        totals = self.recorded["processed"] + self.recorded["beam_scores"][:-1, :, None]
        return totals.unflatten(1, (self.rows, -1)).flatten(2)

    def _draws(self) -> dict[str, Tensor]:
        """The library's draw from the recorded seed, and what the recorded draw makes of the recorded scores.

        Entries of probability 0 complete a draw in an unspecified way, and the order of equal scores is unspecified: there the recorded
        values are taken over.
        """
        totals, draws = self._totals(), self.recorded["draws"]
        generator = torch.Generator().manual_seed(self.spec["torch_manual_seed"])
        drawn = torch.stack([torch.multinomial(scores.softmax(dim=-1), draws.shape[-1], generator=generator) for scores in totals])
        probabilities = totals.softmax(dim=-1)
        filler = (probabilities.gather(-1, drawn) == 0) & (probabilities.gather(-1, draws) == 0)
        vocabulary = self.model.config.number_mel_codes
        scores, order = totals.gather(-1, draws).sort(dim=-1, descending=True, stable=True)
        flat = draws.gather(-1, order)
        recorded = self.recorded["cand_beams"] * vocabulary + self.recorded["cand_tokens"]
        tied = (scores[..., :, None] == scores[..., None, :]) & (flat[..., :, None] == recorded[..., None, :])
        flat = torch.where(tied.any(dim=-2), recorded, flat)  # the recorded order, where it is one of equal scores
        return {
            "draws": torch.where(filler, draws, drawn),
            "cand_scores": scores,
            "cand_tokens": flat % vocabulary,
            "cand_beams": flat // vocabulary,
        }

    def _replay(self) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """The recorded candidates through the beam step."""
        state = BeamState(
            self.rows,
            self.params.num_beams,
            self.stop,
            self.params.max_mel_tokens,
            length_penalty=self.params.length_penalty,
            early_stopping=self.params.early_stopping,
        )
        found: dict[str, list[Tensor]] = {name: [] for name in ("ids", "next_tokens", "next_beams", "done")}
        beam_scores, hypotheses = [state.scores], []
        for step in range(self.steps):
            found["ids"].append(torch.nn.functional.pad(state.codes, (0, self.recorded["ids"].shape[-1] - step), value=-1))
            found["next_beams"].append(
                state.advance(Candidates(*(self.recorded[f"cand_{what}"][step] for what in ("scores", "tokens", "beams"))))
            )
            found["next_tokens"].append(state.codes[:, -1])
            found["done"].append(torch.tensor(state.done))
            beam_scores.append(state.scores)
            hypotheses.append([_plain_row(sorted(row, key=lambda h: -h.score)) for row in state.hypotheses])
        finished = state.finish()
        tensors = {name: torch.stack(steps) for name, steps in found.items()}
        tensors |= {"beam_scores": torch.stack(beam_scores), "codes": state.best_codes(finished)}
        return tensors, hypotheses, _plain(finished)

    def _counts(self) -> Iterator[Check]:
        if "finite_candidates_first_step" in self.spec:
            finite = int(torch.isfinite(self.recorded["cand_scores"][0]).sum())
            yield compare_values(f"{self.name}: finite candidates", finite, self.spec["finite_candidates_first_step"])
        if "nonzero_probabilities_per_step" in self.spec:
            counts = (self._totals().softmax(dim=-1) > 0).sum(dim=2).amin(dim=1).tolist()  # of the row that has fewest
            yield compare_values(f"{self.name}: live candidates", counts, self.spec["nonzero_probabilities_per_step"])


def _single_samples(golden: Golden, prompts: Prompts, name: str, outputs: Outputs) -> Iterator[Check]:
    """A recorded run of plain sampling: its arguments are ``infer``'s defaults with one beam unless the golden says otherwise."""
    codes, logits, processed = (golden[f"out.{name}.{what}"] for what in ("codes", "logits", "processed"))
    spec: dict[str, Any] = golden.spec.get(name, {})
    params = params_of(spec) if "top_k" in spec else SamplingParams(num_beams=1)
    params = dataclasses.replace(params, max_mel_tokens=codes.shape[1])
    stated = re.search(r"manual_seed\((\d+)\)", golden.spec["tensors"][f"out.{name}.codes"]["meaning"])
    seed = spec["torch_manual_seed"] if "torch_manual_seed" in spec else int(stated[1]) if stated else None
    prefix, mask = prompts.matching(spec, logits[0], 1)
    seen = prompts.model.placeholder_ids(prefix)
    first, cache = prompts.model.prefill(prefix, mask)
    found_logits, found_processed = [first], []
    for step in range(len(logits)):
        if step:
            found_logits.append(prompts.model.decode_step(codes[:, step - 1], step, cache, mask)[0])
        found_processed.append(process_scores(logits[step], torch.cat([seen, codes[:, :step]], dim=1), params))
    outputs[f"out.{name}.logits"] = torch.stack(found_logits)
    outputs[f"out.{name}.processed"] = torch.stack(found_processed)
    if seed is None:
        yield Check(f"{name}: seed", math.inf, 0.0, False, "the golden states no seed")
        return
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)[:, 0] for scores in processed]
    yield compare_values(f"{name}: draws from the seed", torch.stack(drawn, dim=1).tolist(), codes.tolist())
    outputs[f"out.{name}.codes"] = generate(prompts.model, prefix, mask, params, generator=torch.Generator().manual_seed(seed)).codes


@runner("beam_scorer")
def run_beam_scorer(golden: Golden) -> Iterator[Check]:
    """Scripted candidates through the beam step, no model."""
    for index, case in enumerate(golden.spec["cases"]):
        state = BeamState(
            case["batch"],
            case["num_beams"],
            case["stop"],
            case["max_length"] - case["prompt_len"],
            length_penalty=case["length_penalty"],
            early_stopping=case["early_stopping"],
        )
        steps = []
        for step in case["steps"]:
            parents = state.advance(Candidates(*(torch.tensor(_finite(step[key])) for key in ("cand_scores", "cand_tokens", "cand_beams"))))
            steps.append(
                {
                    "next_scores": state.scores.tolist(),
                    "next_tokens": state.codes[:, -1].tolist(),
                    "next_beams": parents.tolist(),
                    "done": list(state.done),
                    "hypotheses": _plain(state.hypotheses),
                }
            )
        expected = [{key: _finite(value) for key, value in step.items() if not key.startswith("cand_")} for step in case["steps"]]
        name = f"{index}: {case['batch']} x {case['num_beams']} beams, penalty {case['length_penalty']}, early {case['early_stopping']}"
        yield compare_values(f"{name}, steps", steps, expected)
        finished = state.finish()
        yield compare_values(f"{name}, sequences", state.best_codes(finished).tolist(), case["final_sequences"])
        yield compare_values(f"{name}, scores", [row[0].score for row in finished], _finite(case["final_scores"]))


@runner("code_trim")
def run_code_trim(golden: Golden) -> Iterator[Check]:
    """Cutting at the stop code, shortening of silence, codes to mel frames."""
    stop = golden.spec.get("stop_code", GPTConfig().stop_mel_token)
    for index, case in enumerate(golden.spec["cases"]):
        batched = isinstance(case["codes"][0], list)
        codes = torch.tensor(case["codes"] if batched else [case["codes"]])
        trimmed, lengths = trim_codes(codes, stop)
        found: dict[str, Any] = {
            "trim_2_0": trimmed.tolist() if batched else trimmed[0].tolist(),
            "code_len": lengths.tolist() if batched else int(lengths[0]),
            "target_frames": [target_frames(n) for n in lengths.tolist()] if batched else target_frames(int(lengths[0])),
        }
        shortened, lengths = remove_long_silence(codes, stop)
        found["remove_long_silence"] = {"codes": shortened.tolist() if batched else shortened[0].tolist(), "lengths": lengths.tolist()}
        for key in (key for key in case if key != "codes"):
            yield compare_values(f"case {index}: {key}", found[key], case[key])
    factor = golden.spec["length_factor"]
    table = {int(length): frames for length, frames in factor["table_every_50"].items()}
    yield compare_values("frames", {length: target_frames(length) for length in table}, table)
    differing = [length for length in range(max(table) + 1) if target_frames(length) != int(length * 1.72)]
    yield compare_values("float32 against float64", differing, factor["lengths_where_float32_differs_from_python"])


def _plain(rows: list[list[Hypothesis]]) -> list[Any]:
    """Hypotheses as the goldens write them."""
    return [_plain_row(row) for row in rows]


def _plain_row(row: list[Hypothesis]) -> list[Any]:
    return [[hypothesis.score, list(hypothesis.codes)] for hypothesis in row]


def _finite(values: Any) -> Any:
    """None (JSON has no infinity) to -inf, at any depth."""
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return -math.inf if values is None else values
