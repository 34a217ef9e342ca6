# %% [markdown]
# # 03 Precision
#
# **Question: what do 16-bit numbers win, what do they cost, and when do they not help?**

# %%
from widgets.lessons import bars, listen, open_engine, panels, predict, recorded, speak, table
from widgets.lessons.precision import compare_precisions, format_table, product_errors

tts = open_engine("timing")

# %% [markdown]
# A floating-point number has exponent bits, which set its range, and fraction bits, which set its resolution.

# %%
table(
    format_table(),
    "TF32 is a way to multiply: numbers stay 32 bits wide in memory, and tensor "
    "cores round the factors.",
)

# %% [markdown]
# What rounding the factors does to a matrix product, when the sums stay in float32:

# %%
errors = product_errors()
bars(
    {"error": errors},
    title="Relative error of a matrix product",
    unit="relative error (rms)",
    log=True,
)

# %% [markdown]
# bf16 has the range of float32 and the coarsest steps; fp16 has finer steps and overflows at 65 504. Where only the *error* counts, fp16 is better; where *anything at all* must come out of any weights, bf16 is safer.
#
# ## Predict
#
# The optimisation guide promises 1.5 to 2.5x for 16 bits.

# %%
guess = predict(
    "By which factor does a whole call become faster in 16 bits on this machine? "
    "(Below 1 is slower.)",
    [0.5, 0.75, 1, 1.5, 2, 3],
    "x",
)
guess

# %% [markdown]
# ## Measure
#
# The same engine in each precision that this device has. The number of codes is forced, so that all make the same amount of sound.

# %%
runs = compare_precisions(tts)
table(
    [vars(run) for run in runs.values()],
    "latent_error: of the GPT's latents against fp32. equal_codes: of 40 greedy "
    "codes, those before the first that differs.",
)

# %%
guess.measured(runs["fp32"].total_s / runs["bf16"].total_s)

# %%
figures = recorded("how_fast")
there = {f"{row['path']}, {row['precision']}": row["total_s"] for row in figures.where(beams=3)}
panels(
    {"here": {name: run.total_s for name, run in runs.items()}, "one H200, release size": there},
    title="Seconds for a call",
    unit="s",
    height=400,
)

# %%
figures.table("path", "precision", "beams", "gpt_s", "s2mel_s", "total_s", "rtf")

# %% [markdown]
# ## By ear
#
# The same seed in fp32 and bf16. Codes are drawn at random, so a tiny difference of a probability can turn into another code, and from there on the two go separate ways. They are two performances, not a good and a bad one.

# %%
first = speak(tts, label="fp32")
tts.set_precision("bf16")
second = speak(tts, label="bf16")
listen(first, second)

# %% [markdown]
# For a blind comparison, use the A/B panel: `widgets.ListeningPanel`.
#
# ## Conclude
#
# **The guide's claims, checked on the H200:**
#
# | claim | measured | verdict |
# |---|---|---|
# | 16 bits: 1.5 to 2.5x | public pipeline 4.46 s to 4.57 s: **0.98x**. Plain path 2.73 s to 2.86 s: **0.95x**. Accelerated path 1.79 s to 0.65 s: **2.7x**, and to 0.20 s with the kernels that only 16 bits have | only once the launches are out of the way |
# | TF32: 1.2 to 1.4x | accelerated path 1.79 s to 1.31 s: **1.37x** | holds, at the top of the range |
#
# - 16 bits halve the bytes of the weights. That helps exactly where reading weights is what takes the time. In an eager decode loop the GPU waits for the host (lesson 05), and halving the bytes changes nothing.
# - The engine keeps residual stream, norms, softmax and logits in float32 in every mode. That costs little and keeps the error of the latents small.
#
# **When it does not help:** on a CPU without 16-bit arithmetic, in a launch-bound loop, for tiny networks. The measurement above shows which of these your machine is.
#
# ## Exercises
#
# **1.** Why does the GPT's memory halve, but not that of the whole engine?
#
# <details><summary>Answer</summary>
#
# Only the linear layers and convolutions of the GPT and its conditioners are kept in 16 bits; norms and embeddings stay in float32, and so do S2Mel, the encoders and the vocoder in the 16-bit modes.
#
# </details>
#
# **2.** `equal_codes` compares greedy runs. Would it be larger or smaller with sampling and the same seed?
#
# <details><summary>Answer</summary>
#
# Usually larger at first: greedy choice flips wherever the two best candidates are nearly equal, while a random draw flips only where the drawn number falls between the two slightly different thresholds. After the first flip both go separate ways.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert errors["fp32"] < errors["fp16"] < errors["bf16"], "resolution decides the error"
assert abs(errors["tf32"] / errors["fp16"] - 1) < 0.1, "TF32 and fp16 have the same fraction bits"
assert runs["fp32"].latent_error == 0 and 0 < runs["bf16"].latent_error < 0.05
assert runs["bf16"].gpt_mb < 0.75 * runs["fp32"].gpt_mb
tts.close()
