# %% [markdown]
# # 07 Caches and memory
#
# **Question: what does the engine keep between calls, what does that save, and when does memory run out?**
#
# Kept are what a reference voice contributes (features, style, mel), the buffers for keys and values, and recorded graphs. Voices are known by their content, not by their file's name.

# %%
from widgets.lessons import bars, lines, note, open_engine, predict, recorded, table
from widgets.lessons.caches import cache_limits, key_value_mb, made_up_voices, visit, would_fit

tts = open_engine("timing")
voices = made_up_voices(3)

# %% [markdown]
# ## Predict

# %%
guess = predict(
    "A voice of 3 s is read for the second time. How many times faster is that than "
    "the first time?",
    [1, 3, 30, 300, 3000],
    "x",
)
guess

# %% [markdown]
# ## Measure
#
# Three voices in the order A B A C A B.

# %%
calls = visit(tts, voices, [0, 1, 0, 2, 0, 1])
table(calls)

# %%
seconds = {
    known: [row["reading the voice (s)"] for row in calls[1:] if row["known"] == known]
    for known in (False, True)
}
guess.measured(min(seconds[False]) / max(min(seconds[True]), 1e-6))

# %%
one_voice = calls[0]["cached voices (MB)"]
parts = tts.reference_cache.sizes_mb() | {
    "buffers and graphs": tts.cache_memory_mb - tts.reference_cache.memory_mb
}
bars({"MB": parts}, title="What is kept now", unit="MB")

# %% [markdown]
# ## A limit, and what goes first
#
# `MAX_CACHE_SIZE_MB` and `CACHE_CHECK_INTERVAL` may be changed at any time. Here the limit is set so that two voices fit beside the buffers, and every call looks.

# %%
tts.clear_caches()
visit(tts, voices, [0])
limit = tts.cache_memory_mb + 1.5 * tts.reference_cache.memory_mb
with cache_limits(limit):
    tight = visit(tts, voices, [0, 1, 2, 0, 1, 2])
table(tight)

# %%
held = ([row["call"] for row in tight], [row["cached voices (MB)"] for row in tight])
lines(
    {"voices": held},
    title="The cache is checked before a call; a call may go over the limit",
    x="call",
    y="MB",
    marks={"room for voices": 2.5 * one_voice},
)

# %% [markdown]
# The least recently used voice goes first. Asking for three voices in turn with room for two is the worst case: each voice is thrown out just before it is needed again.
#
# ## Will the next call fit?
#
# `predict_oom_risk` adds what the next call is known to need to what is in use, and compares it with a threshold. Without a GPU there is nothing to run out of, and it says so:

# %%
from indextts.utils.resource_monitor import (
    get_process_memory_mb,
    get_vram_summary,
    predict_oom_risk,
)

used, total, percent = get_vram_summary()
note(
    f"GPU memory: {used:.0f} of {total:.0f} MB. Risk for the next call: "
    f"{'**yes**' if predict_oom_risk() else 'no'}. This process holds "
    f"{get_process_memory_mb():.0f} MB of RAM."
)

# %% [markdown]
# The same rule with figures of one's own: a card of 8 GB, and the peaks recorded on the H200.

# %%
peaks = recorded("memory")
table(
    would_fit(peaks.rows, total_mb=8 * 1024, used_mb=600),
    "A card of 8 GB of which 600 MB are taken by the desktop and the driver. " + peaks.caption,
)

# %% [markdown]
# And keys and values, from the release's shapes alone:

# %%
from indextts.config import GPTConfig

lengths = [128, 256, 512, 1024, 1815]
sizes = {
    f"{n} sequences": (lengths, [key_value_mb(GPTConfig(), length, n) for length in lengths])
    for n in (1, 3, 16, 48)
}
lines(sizes, title="Keys and values of the release in 16 bits", x="positions", y="MB", log_y=True)

# %% [markdown]
# ## Conclude
#
# - Reading a voice is paid once for each clip. A service with a few voices never pays it again.
# - The limit counts prompts, buffers and graphs together. In float32 the plain path needs 6.3 GB on the H200 and the accelerated one 6.5 GB: **speed is paid for in memory**, and 16 bits (4.8 GB) pay it back. The guide's "8 to 12 GB recommended" fits that.
# - Predicting is adding: used, plus the last call's peak above what stays. A longer text or more beams than ever before can still surprise it.
#
# **When it does not help:** a new voice for every call (only memory is spent), and a limit so tight that voices are read again and again. `CACHE_CHECK_INTERVAL` larger than 1 saves nothing that can be measured; it is there because the guide has it.
#
# ## Exercises
#
# **1.** The same clip under two file names: one entry or two? And the clip with one sample changed?
#
# <details><summary>Answer</summary>
#
# One, since the key is made of the samples and the rate. With a changed sample it is another clip, and two.
#
# </details>
#
# **2.** How many sequences of 1 024 positions fit into 10 GB of keys and values?
#
# <details><summary>Answer</summary>
#
# One takes 120 MB (2 x 24 layers x 1280 x 1024 x 2 bytes), so about 85. Beams are sequences too: 28 sentences with 3 beams. With one beam, or with the prefix shared between beams, more.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert [row["known"] for row in calls] == [False, False, True, False, True, True], (
    "a voice is read once"
)
assert min(seconds[True]) < min(seconds[False]) / 5, "a known voice must be much faster"
assert tight[-1]["evicted so far"] > calls[-1]["evicted so far"], "the limit must evict"
assert abs(key_value_mb(GPTConfig(), 1024) - 120) < 1
tts.close()
