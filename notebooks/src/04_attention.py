# %% [markdown]
# # 04 Attention and flash-attn
#
# **Question: how much faster does a fused attention kernel make this system?**
#
# Attention compares every position with every other one. The *math* kernel writes the whole table of scores to memory and reads it again; a *fused* kernel (FlashAttention is the best known) works in tiles that never leave the chip. Both compute the same.

# %%
from indextts.utils.gpu_config import GPUConfig
from widgets.lessons import (
    attention,
    bars,
    lines,
    note,
    open_engine,
    predict,
    table,
)

there = "" if GPUConfig.check_flash_attention() else "not "
note(f"The package flash-attn is {there}installed here; this lesson uses torch's own fused kernel.")

# %% [markdown]
# ## Predict
#
# The optimisation guide promises 1.3 to 1.8x for flash attention.

# %%
guess = predict(
    "By which factor does a whole call become faster when the math kernel gives way "
    "to the fused one?",
    [0.9, 1, 1.1, 1.3, 1.8],
    "x",
)
guess

# %% [markdown]
# ## Measure
#
# First the kernel alone: whole sequences at once, as in flow matching and in the GPT's first pass.

# %%
lengths = [128, 256, 512, 1024, 2048]
whole = attention.times_ms(lengths)
lines(
    {name: (lengths, ms) for name, ms in whole.items()},
    title="Attention over a whole sequence, 4 heads",
    x="positions",
    y="ms",
    log_x=True,
    log_y=True,
)

# %%
note(
    "At 2048 positions and 20 heads the table of scores takes "
    f"**{attention.scores_mb(2048):.0f} MB** in float32, for every layer. Here the fused kernel "
    f"is **{whole['math'][-1] / whole['fused'][-1]:.1f}x** as fast."
)

# %% [markdown]
# Then a decode step: a single query over the cache. There is no table to speak of, and little to win.

# %%
contexts = [128, 256, 512, 1024]
step = attention.times_ms(contexts, decode=True, runs=9)
lines(
    {name: (contexts, ms) for name, ms in step.items()},
    title="Attention of one decode step, 4 heads",
    x="positions in the cache",
    y="ms",
)

# %% [markdown]
# And now the whole call:

# %%
tts = open_engine("timing")

seconds = attention.compare_kernels(tts)
guess.measured(seconds["math"].median / seconds["auto"].median)

# %%
bars(
    {"median": {name: timing.median for name, timing in seconds.items()}},
    title="A whole call",
    unit="s",
)

# %% [markdown]
# ## Why so little?
#
# A decode step of the release reads 965 MB of weights, and 0.12 MB for each position of context. Even an attention that costs nothing would leave the weights:

# %%
table(
    attention.share_table([100, 250, 500, 1000]),
    "Computed from the release's shapes; 500 positions are a sentence of eight seconds.",
)

# %% [markdown]
# ## Conclude
#
# - **For the release the guide's 1.3 to 1.8x cannot hold.** At 500 positions attention is 6 % of a decode step: if it were free, the step would be 1.06x as fast. In flow matching with 5 s of prompt and 5 s of speech (860 frames) it is 19 % of the arithmetic, and torch's own kernel is fused already.
# - What you measured above may be more: a small network has few weights to read, so attention is a larger part of it; and the comparison is with the math kernel, which nobody uses unless asked to.
# - The claim is about models with thousands of positions, where the table of scores is what takes time and memory. The first plot shows that world.
# - Nothing needs to be installed: `attention="auto"` takes torch's fused kernel where it fits. The separate package `flash-attn` was not measured here, since there was nothing left for it to win.
#
# **When it does not help:** single queries (decoding), short sequences, and masks or float32 that a fused kernel does not take; torch then falls back to another kernel without a word.
#
# ## Exercises
#
# **1.** From which context length on would attention be half of a decode step?
#
# <details><summary>Answer</summary>
#
# Where 122.9 kB times the length equals 965.5 MB: at about 7 900 positions, two and a half minutes of codes in one go. The model has positions for 1 815 codes.
#
# </details>
#
# **2.** Are the two kernels' results equal bit by bit?
#
# <details><summary>Answer</summary>
#
# No: they add in another order, so they differ by rounding, about 1e-6 in float32 (the check below). Neither is the more exact one by design.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
tolerance = 0.05 if tts.device.type == "cuda" else 1e-5  # the kernels run in 16 bits on a GPU
assert attention.kernel_difference() < tolerance, "both kernels compute the same"
assert 1 / (1 - attention.decode_share(500)["bytes"] / 100) < 1.1
assert 15 < attention.solver_share(860) < 25
assert whole["fused"][-1] < whole["math"][-1], "at 2048 positions the fused kernel must win"
tts.close()
