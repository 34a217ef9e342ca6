# %% [markdown]
# # 14 Training in mixed precision
#
# **Question: why does training need float32 where inference does not, and how was the small voice made?**
#
# This lesson trains a miniature of the voice's language model on a made-up language, in seconds, with the code of the real recipe (`indextts.training`).

# %%
from widgets.lessons import bars, lines, note, open_engine, predict, recorded
from widgets.lessons.mixed_training import (
    gradient_sizes,
    lost_percent,
    scale_history,
    train,
    vocoder_buzz,
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
# The whole run is one command; `python -m indextts.training --help` lists the stages, and `--precision bf16` or `fp16` chooses the format (fp16 with the dynamic scale shown above). The voice that comes with the package was trained in bf16, its vocoder in fp16. It comes from the fourth run of 26.5 minutes on two GPUs, its vocoder from the third:

# %%
made = recorded("training")


def curve(stage, scale=1):
    rows = made.where(stage=stage)
    return [row["seconds"] for row in rows], [scale * row["value"] for row in rows]


# %%
lines(
    {stage: curve(stage, 100) for stage in ("encoder", "codec", "gpt")},
    title="Phones (encoder, codec) and codes (gpt) that are right",
    x="seconds of training",
    y="percent",
    dots=False,
)

# %%
lines(
    {
        "flow (s2mel)": curve("s2mel"),
        "flow, first run": curve("s2mel, first run"),
        "mel after the vocoder": curve("vocoder"),
    },
    title="What is left to learn",
    x="seconds of training",
    y="mean error",
    log_y=True,
    dots=False,
)

# %% [markdown]
# The first run's flow matching ran away: after 22,600 steps, within a hundred steps and without a warning, and it did not come back by itself.
#
# ## Why it ran away
#
# The next run did the same at a lower rate, and this time its weights were kept. (Those of the first are gone; that it had the same cause is likely, not known.) Nothing limits an attention's logits: a layer can sharpen its attention by making queries and keys longer, and when it is as sharp as can be, longer ones cost nothing. How long they are in each layer, at three steps:

# %%
growth = recorded("attention_growth")


def logits(layer):
    rows = growth.where(measure=f"layer {layer}")
    return [row["step"] for row in rows], [row["value"] for row in rows]


# %%
lines(
    {f"layer {layer}": logits(layer) for layer in range(1, 8)},
    title="What a logit is when query and key agree",
    x="training step",
    y="size",
    log_y=True,
)

# %%
norms = growth.where(measure="gradient_norm")
note(
    "The norm of all gradients: "
    + ", ".join(f"**{row['value']:.3g}** at step {row['step']:,}" for row in norms)
    + "."
)

# %% [markdown]
# A softmax over logits of millions has gradients of any size. Clipping divides them all by their norm, which leaves next to nothing of the others, and no learning rate helps: the loss rose at a sixth of it too. (In float32 on a CPU, trained on from the last of these weights, the norm was infinite, which leaves nothing at all, and the loss rose as well.) Training now pays for logits above 40 (`indextts.training.sharpness`), which few healthy layers reach. Besides, the trainer goes back to weights of before when the loss is one and a half times the usual twice in a row. That worked (1.56 to 0.56), and was no cure: the weights of before were ill already.

# %%
sharpest, norms = (
    growth.where(measure=f"{name}, paid for") for name in ("sharpest", "gradient_norm")
)
note(
    f"The next run, which pays for them, at the same peak rate as the first: logits of at most **{max(r['value'] for r in sharpest):.0f}** "
    f"in {sharpest[-1]['step']:,} steps, and a norm of **{norms[-1]['value']:.2f}** in the end."
)

# %% [markdown]
# ## When the loss is fine and a part is deaf
#
# The language model is told by a reference clip who speaks and in which manner. In one run what it was told was the same for every clip, to nine decimals; in the next one what it was told of the manner was. Both times its accuracy was the best so far: a model that has begun a sentence can go on in the voice that it began in, whoever's it is. Three linear heads that ask the conditioning who speaks, in which manner and how slowly did not help at first. Here they alone teach the conditioning, as in the first steps of a run:

# %%
deaf = recorded("deaf_conditioning")


def conditioning(recipe, measure):
    rows = deaf.where(recipe=recipe, measure=measure)
    return [row["step"] for row in rows], [row["value"] for row in rows]


# %%
lines(
    {
        f"{part}, {recipe}": conditioning(recipe, f"spread of the {part}")
        for recipe in ("before", "now")
        for part in ("voice", "manner")
    },
    title="What of the conditioning tells the clips of a batch apart",
    x="training step",
    y="share of its size",
)

# %%
before, now = (conditioning(recipe, "voice")[1][-1] for recipe in ("before", "now"))
note(
    f"Who speaks, after {deaf.rows[-1]['step']} steps: **{before:.1f}** nats before, **{now:.1f}** now (6.3 is a guess)."
)

# %% [markdown]
# The batches did it. A recorded step has few shapes, so a batch had texts of one length and codes of one length: all of it was spoken about equally fast. Whatever heard tempo was pushed the same way by every row, and another way by the next batch. That moves what all clips have in common, and soon nothing else is left. Now only text and codes *together* have one length, and slow and fast speech share a batch; the heads hear no common part at all; and too small a spread costs something by itself.

# %%
spread = recorded("training").where(stage="gpt, spread")
note(
    "A whole run with all of this, the fourth: after "
    f"{spread[-1]['step']:,} steps **{spread[-1]['value']:.2f}** of what it is told of voice and manner tells clips apart."
)

# %% [markdown]
# ## When it hears three tempos
#
# What it hears of the tempo can be asked with clips that are spoken more slowly, step by step. The sixth run's answer:

# %%
response = recorded("tempo_response")


def answers(voice):
    rows = response.where(voice=voice)
    return [row["clip"] for row in rows], [row["clone"] for row in rows]


# %%
lines(
    {v: answers(v) for v in ("flite-slt", "flite-rms", "rhvoice-bdl")},
    title="Length of speech, against the synthesiser's usual one",
    x="the clip's",
    y="the clones'",
)

# %% [markdown]
# A staircase: slow, usual and fast, as the training speech was made, with gaps between. A voice between two stairs is cloned too slowly or too fast. The three rates touch now; and a sequence, which used to be conditioned by any clip of the same of the three, is now by the one of six that comes nearest to it in tempo and pauses (`indextts.training.coding`). Whether the stairs go with that, the next run has to show.

# %% [markdown]
# ## When the first steps decide
#
# The same recipe, another seed, and the vocoder was half as good, from the first hundred steps to the end:

# %%
lines(
    {
        "seed 103": curve("vocoder"),
        "seed 104": curve("vocoder, seed 104"),
    },
    title="Mel after the vocoder, two runs of one recipe",
    x="seconds of training",
    y="mean error",
    log_y=True,
    dots=False,
)

# %% [markdown]
# BigVGAN's activation, x + sin(ax)² / b, is nearly a straight line where x is small. Log-mels are large, 6 on average, and with ordinary first weights so is all that follows. Over such a range the sine turns several times, and which way a gradient points is chance. Vocoders that turned out well have made everything small (0.3 to 0.8 enters the stages); this one never did (1.5 to 2.5). What if the first layer starts at a tenth?

# %%
start = recorded("vocoder_start")


def first_steps(factor, seed=104):
    rows = start.where(start=factor, seed=seed)
    return [row["step"] for row in rows], [row["mel"] for row in rows]


# %%
lines(
    {
        "as it was": first_steps(1.0),
        "a tenth": first_steps(0.1),
        "a thirtieth": first_steps(0.03),
        "a tenth, seed 103": first_steps(0.1, seed=103),
    },
    title="The first steps, on a CPU",
    x="training step",
    y="mean error of the mel",
)

# %% [markdown]
# It gets as far in a third of the steps, and neither the seed nor the exact factor matters any more. The recipe starts there now, and on a GPU it holds: 0.78 after 2,000 steps, where the bad run had 1.4 after 4,000.
#
# ## When one step is too long
#
# That run, the sixth, had a good vocoder after fifteen minutes, and a broken one in the end:

# %%
lines(
    {
        "seed 103": curve("vocoder"),
        "seed 106": curve("vocoder, seed 106"),
    },
    title="Mel after the vocoder: the sixth run lost what it had learnt",
    x="seconds of training",
    y="mean error",
    log_y=True,
    dots=False,
)

# %% [markdown]
# Two dozen times the error jumped, and mostly came back within a hundred steps. At the last jump the learning rate had fallen so far that the way back was too long. What can a single step do? Here is a vocoder from before that jump, moved by all that Adam makes of the gradient of one ordinary batch:

# %%
centring = recorded("vocoder_centring")
moved = centring.where(kind="one step")
bars(
    {
        "half of the batches are below": {r["moved"]: r["median"] for r in moved},
        "the worst of twelve": {r["moved"]: r["worst"] for r in moved},
    },
    title=f"Error of the mel after one step ({moved[0]['before']} before it)",
    unit="mean error",
)

# %% [markdown]
# The first layer alone does as much harm as all others. It reads seven frames of 80 bands, and log-mels are about -6 in all of them at once: 560 inputs that say the same. One learning rate more in each weight, 3e-4, is 1.0 in the output, more than the sine after it has room for. So steps are made now as if the mean had been taken away from the inputs (`indextts.training.centring`): the same layer with the same weights, other steps. From nothing:


# %%
def early(made):
    rows = centring.where(kind="first steps", made=made)
    return [row["step"] for row in rows], [row["mel"] for row in rows]


lines(
    {made: early(made) for made in ("plain", "centred")},
    title="The first steps again, both from a tenth",
    x="training step",
    y="mean error of the mel",
)

# %% [markdown]
# Whoever standardises inputs has this for nothing; a release's layout has no place for it. Two nets are below: a tensor's gradient may be twice as long as usual and no more, and a vocoder whose error stays raised goes back to weights of before, with its judges. A whole run with all of this has not been made yet.

# %% [markdown]
# ## When the loss is fine and the sound is not
#
# The error of the first voice's vocoder fell smoothly, and the voice buzzed all the same. A vocoder can get every spectrum nearly right with a wave that is the same in each frame, 86 times a second. Its discriminators are there to hear that, and they could not: they had 12 channels, and looked at spectrograms whose steps were the frames themselves. With 32 channels and other steps the buzz was gone after two minutes:

# %%
judges = recorded("vocoder_judges")
bars(
    {"buzz": {row["after"]: row["buzz"] for row in judges.rows}},
    title="From 2 to 5 kHz: how alike a frame and the next one are",
    unit="correlation",
)

# %%
with open_engine() as tts:
    spoken, sung = vocoder_buzz(tts)
note(
    f"The default voice's clip: **{spoken:.2f}**. "
    f"Its mel, made to sound by the vocoder that is installed here: **{sung:.2f}**."
)

# %% [markdown]
# ## Conclude
#
# - **bf16 trains like float32** as long as weights and optimiser stay in float32: its range is the same, and the noise of its rounding is smaller than that of the batches.
# - **fp16 needs a loss scale**, or small gradients vanish without a word.
# - **An adversarial loss is worth what its discriminators can hear**, and does not say what that is: those that heard nothing and those that hear everything both ended at 3.5 (4 is chance), the former facing a bad vocoder and the latter a better one. Listen, and measure what is heard.
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
assert abs(spoken) < 0.2, "speech is not the same in every frame"
