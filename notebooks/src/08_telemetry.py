# %% [markdown]
# # 08 Telemetry, RTF, and finding the bottleneck
#
# **Question: where does the time go, and which stage is worth making faster?**
#
# Every call leaves a record: `tts.last_telemetry`. Stage times are device times, so that work that is only queued is not counted as done, and the parts add up to the total.

# %%
from indextts.engine.hints import find_hints
from widgets.lessons import bars, lines, open_engine, predict, recorded, speak, table
from widgets.lessons.engine import sentence_limit
from widgets.lessons.stages import amdahl, recorded_shares, stage_seconds, stage_shares

tts = open_engine("timing")

# %% [markdown]
# ## Predict

# %%
guess = predict(
    "Which stage takes the largest part of a warm call here?", ["GPT", "S2Mel", "BigVGAN", "other"]
)
guess

# %% [markdown]
# ## Measure

# %%
speak(tts)  # the first call also loads and prepares; it is not the one to judge
run = speak(tts, label="warm call")
shares = stage_shares(stage_seconds(run.telemetry))
guess.measured(max(shares, key=shares.get))

# %%
table(
    [
        {"stage": name, "seconds": value, "percent": shares[name]}
        for name, value in stage_seconds(run.telemetry).items()
    ],
    f"total {run.total_s:.3f} s for {run.audio_s:.2f} s of sound: RTF {run.rtf:.2f}",
)

# %%
figures = recorded("how_fast")
picked = {
    "public, fp32": figures.row(path="public", precision="fp32"),
    "accelerated, bf16": figures.row(path="accelerated", precision="bf16", beams=3),
}
bars(
    {"here": shares, **{f"H200, {name}": recorded_shares(row) for name, row in picked.items()}},
    title="Share of each stage",
    unit="percent of the call",
)

# %% [markdown]
# The optimisation guide expects the GPT at 40 to 50 %, S2Mel at 30 to 40 %, the vocoder at 15 to 25 %. Measured on the H200, the public pipeline spends 86 % of its time in the GPT. (Its row has no vocoder time of its own; that is part of "other" there.)

# %%
table(
    [{"finding": hint.text, "advice": hint.advice} for hint in find_hints(run.telemetry)],
    "find_hints(run.telemetry): the guide's rules, applied to this call",
)

# %% [markdown]
# ## What would a faster stage bring?
#
# A stage with the share *p* of the time, made *s* times as fast, makes the whole 1 / (1 - p + p / s) times as fast (Amdahl's law).

# %%
factors = [1, 1.5, 2, 3, 5, 10, 30]
curves = {
    name: (factors, [amdahl(share, factor) for factor in factors])
    for name, share in shares.items()
    if name != "other"
}
lines(
    curves,
    title="If only this stage were faster",
    x="speed-up of the stage",
    y="speed-up of the call",
    log_x=True,
)

# %% [markdown]
# ## When does the first sound come?
#
# Several sentences can be rendered together (lesson 09), or be handed over one by one as they are made. What counts for a listener is `first_audio_s`.

# %%
text = "It was late. The lamps went out. Somewhere a door fell shut."
limit = {"max_text_tokens_per_segment": sentence_limit(tts, text)}
whole = speak(tts, text, **limit).telemetry
streamed = speak(tts, text, on_piece=lambda piece: None, **limit).telemetry

# %%
waiting = {"together": whole.first_audio_s, "streamed": streamed.first_audio_s}
ending = {"together": whole.total_s, "streamed": streamed.total_s}
bars({"first sound": waiting, "all of it": ending}, title="Three sentences", unit="s")

# %% [markdown]
# ## Conclude
#
# - Look at shares before you make anything faster. What takes 6 % of the time can win 6 % at the most.
# - Shares belong to a machine and its settings. What is a bottleneck on a GPU need not be one on a CPU, and each optimisation moves it: in the accelerated bf16 row, S2Mel has become the second large part.
# - RTF tells throughput, `first_audio_s` tells waiting. They are different things to optimise: sentences rendered together end sooner, streamed ones begin sooner.
#
# **When it does not help:** if "other" is large, the stages are the wrong place to look: a new reference voice, files, the host's own work.
#
# ## Exercises
#
# **1.** On the H200 the public pipeline spends 3.85 of 4.46 s in the GPT. Flash attention is said to bring 1.3 to 1.8x. What must be true for the whole call to become 1.3x as fast?
#
# <details><summary>Answer</summary>
#
# The GPT alone would have to become 1.37x as fast: `amdahl(86.3, 1.37)` is 1.30. But attention is only a few percent of a decode step (lesson 04), so a faster attention cannot do it.
#
# </details>
#
# **2.** Call `speak(tts, spk_audio_prompt=...)` with a voice that the engine has not heard. Where does the extra time show?
#
# <details><summary>Answer</summary>
#
# In "other", and by itself in `prompt_s`: semantic features, style and mel of the clip are computed once and then cached. `speaker_cache_hit` says which kind of call it was.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
record = run.telemetry
assert (
    abs(record.gpt_s + record.s2mel_s + record.bigvgan_s + record.other_s - record.total_s) < 1e-6
), "the parts must add up"
assert abs(record.rtf - record.total_s / record.audio_s) < 1e-6
assert len(streamed.segments) == 3 and streamed.first_audio_s < 0.9 * streamed.total_s
assert abs(amdahl(86.3, 1.37) - 1.30) < 0.01
tts.close()
