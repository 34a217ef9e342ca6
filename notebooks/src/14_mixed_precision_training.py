# %% [markdown]
# # 14 Training in mixed precision
#
# **Question: why does training need float32 where inference does not, and how was the small voice made?**
#
# This lesson trains a miniature of the voice's language model on a made-up language, in seconds, with the code of the real recipe (`indextts.training`).

# %%
from widgets.lessons import bars, lines, predict, recorded
from widgets.lessons.mixed_training import (
    gradient_sizes,
    lost_percent,
    scale_history,
    train,
)

# %% [markdown]
# ## Predict
#
# In mixed precision, weights and optimiser stay in float32 and matrix products run in 16 bits.

# %%
guess = predict(
    "How much larger is the loss after 80 steps when the products run in bf16? (1 means equal.)",
    [0.5, 1, 1.5, 2, 5],
    "x",
)
guess

# %% [markdown]
# ## Measure

# %%
curves = {precision: train(precision) for precision in ("fp32", "bf16")}
guess.measured(curves["bf16"].last / curves["fp32"].last)

# %%
steps = list(range(1, len(curves["fp32"].losses) + 1))
lines(
    {name: (steps, curve.losses) for name, curve in curves.items()},
    title="A miniature GPT on a made-up language",
    x="step",
    y="loss (nats a code)",
    dots=False,
)

# %% [markdown]
# ## Where fp16 loses
#
# Gradients are small numbers. fp16 knows none below 6e-8, bf16 reaches down as far as float32. The more a loss averages over, the smaller the gradients:

# %%
sizes = gradient_sizes()
factors = [1, 10, 100, 1000, 10000]
loss_scales = {"loss as it is": 1.0, "loss times 1024": 2.0**10, "loss times 16384": 2.0**14}
lines(
    {
        name: (factors, [lost_percent(sizes, scale, factor) for factor in factors])
        for name, scale in loss_scales.items()
    },
    title="Gradients that fp16 rounds to zero",
    x="gradients smaller by this factor",
    y="percent",
    log_x=True,
)

# %% [markdown]
# Multiplying the loss multiplies every gradient; after the backward pass they are divided again, in float32. The right factor is found on the way: halved when a gradient overflows (that step is skipped), doubled after a long time without.

# %%
history = scale_history([12, 13, 40])
lines(
    {"scale": (list(range(1, 61)), history)},
    title="Dynamic loss scale with overflows at steps 13, 14 and 41",
    x="step",
    y="factor on the loss",
    log_y=True,
    dots=False,
)

# %% [markdown]
# ## Why weights stay in float32
#
# An update is often a thousandth of its weight. bf16 has steps of 0.8 % around a number, so such an update is rounded away, every time:

# %%
import torch

weight = {"fp32": torch.tensor(1.0), "bf16": torch.tensor(1.0, dtype=torch.bfloat16)}
for _ in range(1000):
    weight = {
        name: value + torch.tensor(0.001, dtype=value.dtype) for name, value in weight.items()
    }
bars(
    {"weight": {name: float(value) for name, value in weight.items()}},
    title="1.0 after 1000 updates of 0.001 (2.0 is right)",
    unit="value",
)

# %% [markdown]
# ## How the small voice was made
#
# Every part is trained by this package, from speech that synthesisers made, so that no recording of a person is involved:
#
# | stage | learns | from |
# |---|---|---|
# | encoder | semantic features of speech | phones and speakers of the synthetic corpus |
# | codec | codes: features to one of 512 names, 50 a second | the encoder's features |
# | speaker | a style vector | which speaker it is |
# | gpt | codes from text | codes of the corpus, other utterances as voice and manner |
# | s2mel | mels from codes | the corpus, by flow matching |
# | vocoder | waves from mels | the corpus, with discriminators |
#
# The whole run is one command; `python -m indextts.training --help` lists the stages, and `--precision bf16` or `fp16` chooses the format (fp16 with the dynamic scale shown above). The voice that comes with the package was trained in bf16, its vocoder in fp16. All of it comes from one run of 26 minutes on two GPUs:

# %%
made = recorded("training")
lines(
    {stage: made.curve("seconds", "value", stage=stage) for stage in ("encoder", "codec", "gpt")},
    title="Phones (encoder, codec) and codes (gpt) that are right",
    x="seconds of training",
    y="share",
    dots=False,
)

# %%
losses = {"flow (s2mel)": "s2mel", "mel after the vocoder": "vocoder"}
lines(
    {name: made.curve("seconds", "value", stage=stage) for name, stage in losses.items()},
    title="What is left to learn",
    x="seconds of training",
    y="mean error",
    log_y=True,
    dots=False,
)

# %% [markdown]
# It was the seventh run. What went wrong in those before is lesson 15.

# %% [markdown]
# ## Conclude
#
# - **bf16 trains like float32** as long as weights and optimiser stay in float32: its range is the same, and the noise of its rounding is smaller than that of the batches.
# - **fp16 needs a loss scale**, or small gradients vanish without a word.
# - The optimisation guide's chapter "Mixed Precision Training" is about inference. There is no loss there and no gradient, and that is why 16-bit *weights* are fine in inference.
#
# **When it does not help:** tiny models like this miniature, which are bound by starting operations; CPUs without 16-bit products; and losses that are differences of large numbers, which belong in float32 anyway.
#
# ## Exercises
#
# **1.** Let the bf16 weight of the last plot grow by 0.01 instead of 0.001. Where does it end?
#
# <details><summary>Answer</summary>
#
# It moves, since 0.01 is more than half a step at 1 (0.0078 / 2), but each update is rounded to 0.0078 or so; and from 2 on, where steps are twice as wide, updates become 0.0156 and it overshoots. From 4 on steps are 0.031, 0.01 is less than half of it, and the weight stays at 4.
#
# </details>
#
# **2.** Why is the overflowing step skipped instead of clipped?
#
# <details><summary>Answer</summary>
#
# An infinite gradient has no direction left that clipping could keep. And after the factor is halved, the next step is good: a skipped step costs one batch.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert curves["fp32"].last < 0.7 * curves["fp32"].losses[0], "the miniature must learn"
assert 0.7 < curves["bf16"].last / curves["fp32"].last < 1.4, "bf16 must train like fp32"
assert lost_percent(sizes, 1, 10000) > lost_percent(sizes, 2.0**14, 10000), (
    "scaling the loss must save gradients"
)
assert history[12] < history[11] and float(weight["bf16"]) == 1.0
