# %% [markdown]
# # 15 When training goes wrong
#
# **Question: a loss runs away, or falls while something is broken: what was it, and what would have told?**
#
# Seven runs have been made for the small voice, and only the last went well from end to end. This lesson has the curves, and looks into the weights.

# %%
from widgets.lessons import bars, lines, note, open_engine, predict, recorded
from widgets.lessons.training_faults import moved_outputs, vocoder_buzz

made = recorded("training")

# %% [markdown]
# ## Predict
#
# A vocoder's first layer reads seven frames of 80 log-mels, which are about -6 on average. Adam moves each weight by about one learning rate a step, here 3e-4.

# %%
guess = predict(
    "How far does an output of that layer move if all its 560 weights grow by 3e-4?",
    [0.0003, 0.01, 0.1, 1, 10],
    "",
)
guess

# %% [markdown]
# ## Measure
#
# The clip of the default voice, as it is and with each band's mean taken away:

# %%
with open_engine() as tts:
    moved = moved_outputs(tts)
    spoken, sung = vocoder_buzz(tts)
bars({"move": moved}, title="How far one step moves the first layer's output", unit="output")

# %%
guess.measured(moved["plain"])

# %% [markdown]
# What follows is a sine of that output. Keep this in mind for "When one step is too long".
#
# ## When attention sharpens without end
#
# The first run's flow matching ran away: after 22,600 steps, within a hundred steps and without a warning, and it did not come back by itself.

# %%
lines(
    {
        "first run": made.curve("seconds", "value", stage="s2mel, first run"),
        "seventh run": made.curve("seconds", "value", stage="s2mel"),
    },
    title="Loss of flow matching",
    x="seconds of training",
    y="mean error",
    log_y=True,
    dots=False,
)

# %% [markdown]
# The next run did the same at a lower rate, and this time its weights were kept. (Those of the first are gone; that it had the same cause is likely, not known.) Nothing limits an attention's logits: a layer can sharpen its attention by making queries and keys longer, and when it is as sharp as can be, longer ones cost nothing. How long they are in each layer, at three steps:

# %%
growth = recorded("attention_growth")

# %%
lines(
    {
        f"layer {layer}": growth.curve("step", "value", measure=f"layer {layer}")
        for layer in range(1, 8)
    },
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

# %%
lines(
    {
        f"{part}, {recipe}": deaf.curve(
            "step", "value", recipe=recipe, measure=f"spread of the {part}"
        )
        for recipe in ("before", "now")
        for part in ("voice", "manner")
    },
    title="What of the conditioning tells the clips of a batch apart",
    x="training step",
    y="share of its size",
)

# %%
before, now = (
    deaf.where(recipe=recipe, measure="voice")[-1]["value"] for recipe in ("before", "now")
)
note(
    f"Who speaks, after {deaf.rows[-1]['step']} steps: **{before:.1f}** nats before, **{now:.1f}** now (6.3 is a guess)."
)

# %% [markdown]
# The batches did it. A recorded step has few shapes, so a batch had texts of one length and codes of one length: all of it was spoken about equally fast. Whatever heard tempo was pushed the same way by every row, and another way by the next batch. That moves what all clips have in common, and soon nothing else is left. Now only text and codes *together* have one length, and slow and fast speech share a batch; the heads hear no common part at all; and too small a spread costs something by itself.

# %%
spread = made.where(stage="gpt, spread")
note(
    "The seventh run, with all of this: after "
    f"{spread[-1]['step']:,} steps **{spread[-1]['value']:.2f}** of what it is told of voice and manner tells clips apart."
)

# %% [markdown]
# ## When it hears three tempos
#
# What it hears of the tempo can be asked with clips that are spoken more slowly, step by step. The sixth run's answer:

# %%
response = recorded("tempo_response")

# %%
lines(
    {
        v: response.curve("clip", "clone", run="sixth", voice=v)
        for v in ("flite-slt", "flite-rms", "rhvoice-bdl")
    },
    title="Length of speech, against the synthesiser's usual one",
    x="the clip's",
    y="the clones'",
)

# %% [markdown]
# A staircase: slow, usual and fast, as the training speech was made, with gaps between. A voice between two stairs is cloned too slowly or too fast. The three rates touch now; and a sequence, which used to be conditioned by any clip of the same of the three, is now by the one of six that comes nearest to it in tempo and pauses (`indextts.training.coding`). The next run:

# %%
lines(
    {
        v: response.curve("clip", "clone", run="seventh", voice=v)
        for v in ("flite-slt", "flite-rms", "rhvoice-bdl")
    },
    title="The same after the change",
    x="the clip's",
    y="the clones'",
)

# %% [markdown]
# The middle stair has become a ramp, and the outer ones have not. A change that was right and not enough: it is in the recipe, and the limit is in the voice's card.

# %% [markdown]
# ## When the first steps decide
#
# The same recipe, another seed, and the vocoder was half as good, from the first hundred steps to the end:

# %%
lines(
    {
        "seed 103": made.curve("seconds", "value", stage="vocoder, seed 103"),
        "seed 104": made.curve("seconds", "value", stage="vocoder, seed 104"),
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

# %%
lines(
    {
        "as it was": start.curve("step", "mel", start=1.0, seed=104),
        "a tenth": start.curve("step", "mel", start=0.1, seed=104),
        "a thirtieth": start.curve("step", "mel", start=0.03, seed=104),
        "a tenth, seed 103": start.curve("step", "mel", start=0.1, seed=103),
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
        "seed 103": made.curve("seconds", "value", stage="vocoder, seed 103"),
        "seed 106": made.curve("seconds", "value", stage="vocoder, seed 106"),
    },
    title="Mel after the vocoder: the sixth run lost what it had learnt",
    x="seconds of training",
    y="mean error",
    log_y=True,
    dots=False,
)

# %% [markdown]
# Two dozen times the error jumped, and mostly came back within a hundred steps. At the last jump the learning rate had fallen so far that the way back was too long. What threw it off is not known for certain; but what can a single step do? Here is a vocoder from before that jump, moved by all that Adam makes of the gradient of one ordinary batch:

# %%
centring = recorded("vocoder_centring")
single = centring.where(kind="one step")
bars(
    {
        "half of the batches are below": {r["moved"]: r["median"] for r in single},
        "the worst of twelve": {r["moved"]: r["worst"] for r in single},
    },
    title=f"Error of the mel after one step ({single[0]['before']} before it)",
    unit="mean error",
)

# %% [markdown]
# The first layer alone does as much harm as all others. It reads seven frames of 80 bands, and log-mels are about -6 in all of them at once: 560 inputs that say the same. One learning rate more in each weight, 3e-4, is 1.0 in the output, more than the sine after it has room for. So steps are made now as if the mean had been taken away from the inputs (`indextts.training.centring`): the same layer with the same weights, other steps. From nothing:


# %%
lines(
    {name: centring.curve("step", "mel", made=name) for name in ("plain", "centred")},
    title="The first steps again, both from a tenth",
    x="training step",
    y="mean error of the mel",
)

# %% [markdown]
# Whoever standardises inputs has this for nothing; a release's layout has no place for it. Two nets are below: a tensor's gradient may be twice as long as usual and no more, and a vocoder whose error stays raised goes back to weights of before, with its judges. The next run, the seventh, had all three:

# %%
lines(
    {
        "seed 103, plain": made.curve("seconds", "value", stage="vocoder, seed 103"),
        "seed 107, centred": made.curve("seconds", "value", stage="vocoder"),
    },
    title="Mel after the vocoder",
    x="seconds of training",
    y="mean error",
    log_y=True,
    dots=False,
)

# %%
best = {seed: made.where(stage=f"vocoder{seed}")[-1] for seed in ("", ", seed 103")}
note(
    f"No jump in {best['']['step']:,} steps, and **{best['']['value']:.3f}** in the end; "
    f"seed 103 ended at {best[', seed 103']['value']:.3f}."
)

# %% [markdown]
# That shows the cure, not the cause. The sixth run differed in one more thing: parts of the vocoder's step ran side by side on the GPU. That saved a quarter of its time, and whether its gradients were always those of the plain path was never shown. What cannot be shown to be equal is not in the recipe any more.

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
note(
    f"The default voice's clip: **{spoken:.2f}**. "
    f"Its mel, made to sound by the vocoder that is installed here: **{sung:.2f}**."
)

# %% [markdown]
# ## Conclude
#
# - **Look at what enters a layer, not only at the loss.** Logits, the spread of a conditioning, the mean of an input: each told early what the loss told late or never.
# - **Weights of before, kept, are worth more than an explanation after.** Two causes were found only because a part from before the fall had been saved.
# - **An adversarial loss is worth what its discriminators can hear**, and does not say what that is: those that heard nothing and those that hear everything both ended at 3.5 (4 is chance), the former facing a bad vocoder and the latter a better one. Listen, and measure what is heard.
# - **What training never showed, a model does not hear:** between two tempos it chooses one.
#
# **When it does not help:** these are a small network's troubles, at learning rates that a large one would not be given; a pretrained release is past all of them.
#
# ## Exercises
#
# **1.** How far does an output move if the bands' mean were -6 and their inputs did not vary at all?
#
# <details><summary>Answer</summary>
#
# Plain by 560 * 6 * 3e-4 = 1.0; centred not at all.
#
# </details>
#
# **2.** Why does a smaller learning rate for the first layer not do the same as centring?
#
# <details><summary>Answer</summary>
#
# It makes every step of that layer shorter, also those that would tell one mel from another. Centring takes away what all mels have in common, and leaves the rest of the step as long as it was.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert moved["centred"] < 0.5 * moved["plain"], "log-mels are far from zero"
assert abs(spoken) < 0.2, "speech is not the same in every frame"
