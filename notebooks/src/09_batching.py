# %% [markdown]
# # 09 Batching
#
# **Question: the optimisation guide says that the solver needs batch size 1. Why was that said, and what makes batches exact?**

# %%
from widgets.lessons import bars, lines, open_engine, panels, predict, recorded, table
from widgets.lessons.batching import TEXTS, padding_percent, solver_errors, together_and_alone

tts = open_engine("timing")

# %% [markdown]
# A batch is a rectangle. Sentences have different lengths, so the shorter ones are padded. To a network that has not been told, padding is sound: attention looks at it, convolutions mix it in, and the end of the short sentence changes.
#
# ## Predict
#
# Two samples, 60 and 100 frames, in one batch; the shorter one padded with zeros, and nobody told the solver.

# %%
guess = predict(
    "By how much does the shorter sample change, as a relative error?", [1e-6, 1e-4, 1e-2, 0.3]
)
guess

# %% [markdown]
# ## Measure

# %%
errors = solver_errors(tts)
guess.measured(errors["zeros, no lengths"])

# %%
bars(
    {"error": errors},
    title="The shorter sample in a batch, against the same sample alone",
    unit="relative error (rms)",
    log=True,
)

# %% [markdown]
# That is the reason behind "batch size 1": padded naively, the result is **wrong**, not just different in the last digit. Told the lengths, the solver is exact up to rounding. For that, every layer must respect them:
#
# - attention masks what lies beyond a sample's end,
# - convolutions see each sample's own edge (reflected where the release reflects it), not the padding,
# - the state is held at zero outside the sample,
# - and each sample has its own noise, drawn from its own seed, so that it does not matter who shares the batch.
#
# The GPT's side is easier: texts are padded on the left behind a mask.
#
# ## Whole calls
#
# Three requests with their own seeds, one by one and with `tts.infer_batch`:

# %%
times, seconds, differences = together_and_alone(tts)
table(
    [
        {"text": text, "largest difference (16-bit steps)": step}
        for text, step in zip(TEXTS, differences, strict=True)
    ]
)

# %%
rates = {name: seconds / timing.median for name, timing in times.items()}
record = recorded("throughput")
there = {f"{row['segments']} at once": row["audio_s_per_s"] for row in record.rows}
panels(
    {"here, 3 requests": rates, "one H200, release size": there},
    title="Seconds of sound made in one second",
    unit="s of sound per s",
)

# %%
record

# %% [markdown]
# ## Why a GPU likes batches
#
# A decode step reads all weights, whether for one sequence or for many. Recorded with library kernels in one graph:

# %%
probe = [row for row in recorded("graph_probe").rows if not row["compiled"]]
rows = [row["sequences"] for row in probe]
lines(
    {
        "step": (rows, [row["ms"] for row in probe]),
        "step, for each sequence": (rows, [row["ms"] / row["sequences"] for row in probe]),
    },
    title="One decode step on one H200",
    x="sequences at once",
    y="ms",
    log_y=True,
)

# %% [markdown]
# ## Who goes with whom
#
# Padding is work for nothing, so sentences of similar length go together. `group_sentences_by_length` lets a sentence be at most `tolerance` longer than the shortest of its batch.

# %%
lengths = [12, 15, 18, 24, 31, 33, 40, 58, 61, 90, 95, 120]
tolerances = [0, 0.1, 0.2, 0.5, 1, 2]
waste = [padding_percent(lengths, tolerance) for tolerance in tolerances]
table(
    [
        {"tolerance": tolerance, "padding (%)": percent, "batches": count}
        for tolerance, (percent, count) in zip(tolerances, waste, strict=True)
    ],
    f"Twelve sentences of {lengths} tokens, at most 4 in a batch",
)

# %% [markdown]
# ## Conclude
#
# - **The guide's constraint is not one of the architecture.** The solver can be batched exactly; it has to know the lengths. `infer_batch` renders many segments together, and `infer` does the same with a long text.
# - 16 times the sequences cost about twice the time for a decode step: from 3 to 48 sequences it went from 1.57 to 3.03 ms.
# - Decoding gains most. Solver and vocoder do real arithmetic for every frame, so they gain only as far as one sample left the GPU idle.
#
# **When it does not help:** on a CPU with few cores, which one sentence keeps busy already; for a single short sentence; and for the first sound of a stream, which waits for its companions.
#
# ## Exercises
#
# **1.** Why has each request a seed of its own in `infer_batch`, instead of one for the batch?
#
# <details><summary>Answer</summary>
#
# With one generator for all, a request's draws would depend on how many others are in the batch and on their lengths. With its own, it sounds the same in any company, and an error can be reproduced alone.
#
# </details>
#
# **2.** With tolerance 2 there are few batches and much padding. When is that still right?
#
# <details><summary>Answer</summary>
#
# In decoding, where a step costs nearly the same for any number of rows: fewer batches mean fewer steps in all. The engine therefore groups generously for the GPT and again, strictly, for the solver.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert errors["zeros, no lengths"] > 1e-3, "naive padding must be seen to be wrong"
assert errors["zeros, with lengths"] < 1e-4, "with lengths a batch is exact up to rounding"
assert max(differences) <= 16 or tts.device.type != "cpu", "together must sound as alone"
assert [percent for percent, _ in waste] == sorted(percent for percent, _ in waste)
tts.close()
