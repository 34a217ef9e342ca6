# %% [markdown]
# # 13 Steps, beams and guidance
#
# **Question: what do fewer steps, fewer beams and no guidance save, and who would hear it?**
#
# Unlike all switches so far, these change the result. Each trades quality for time, so each needs a measure *and* an ear.

# %%
from widgets.lessons import bars, lines, listen, open_engine, predict, recorded, table
from widgets.lessons.quality import beam_costs, climb, guidance_costs
from widgets.lessons.walk import Walk

tts = open_engine()
walk = Walk(tts, "The harbour was quiet when the ferry came in.")
codes = walk.codes()
latents = walk.latents(codes)

# %% [markdown]
# ## Predict
#
# Flow matching goes from noise to mel in Euler steps. The same codes and the same noise are solved with more and more steps, and each result is compared with that of 64 steps.

# %%
guess = predict(
    "From 4 steps to 16: by which factor does the distance to the fine solution shrink?",
    [1, 2, 4, 16],
    "x",
)
guess

# %% [markdown]
# ## Measure
#
# ### Steps

# %%
ladder = climb(walk, codes, latents, [1, 2, 4, 8, 16, 25])
shrink = ladder.distance_db[ladder.steps.index(4)] / ladder.distance_db[ladder.steps.index(16)]
guess.measured(shrink)

# %%
lines(
    {"distance": (ladder.steps, ladder.distance_db)},
    title="Distance to the solution with 64 steps",
    x="Euler steps",
    y="log-mel distance (dB)",
    log_x=True,
    log_y=True,
)

# %%
lines(
    {"solve": (ladder.steps, [1e3 * s for s in ladder.seconds])},
    title="Time of the solve on this machine",
    x="Euler steps",
    y="ms",
)

# %% [markdown]
# Time grows in proportion. For a method of first order, twice the steps mean half the error: each doubling buys less that can be heard.
#
# **By ear:** 2 steps and 25 steps, the same codes and noise.

# %%
few, many = (walk.record(walk.wave(ladder.mels[count]), f"{count} steps") for count in (2, 25))
listen(few, many)

# %% [markdown]
# ### Guidance
#
# Classifier-free guidance runs the network twice, with and without the condition, and goes further in the direction of the difference.

# %%
guided = guidance_costs(walk, codes, latents, [0.0, 0.7, 1.5])
table(guided, "8 steps; 0 skips the second branch")

# %% [markdown]
# ### Beams
#
# Beams keep several continuations and choose the most probable in the end.

# %%
cost = beam_costs(tts, [1, 2, 3])
bars(
    {"GPT": {f"{count} beam{'s' if count > 1 else ''}": ms for count, ms in cost.items()}},
    title="GPT, for each code, on this machine",
    unit="ms",
)

# %%
recorded("how_fast").table(
    "path", "precision", "beams", "gpt_s", "total_s", path="accelerated", precision="bf16"
)

# %% [markdown]
# ## Conclude
#
# - **Steps:** the solver's time is steps times one evaluation. On the H200 25 steps take 0.10 s in TF32 for 5 s of speech, so there is little reason to save them there; on a CPU there is.
# - **Guidance** doubles the solver's arithmetic. 0.7 is the release's default.
# - **Beams** cost far less than their number: on the H200 3 beams took 0.15 s against 0.11 s with one, because the weights are read once for all of them.
# - A log-mel distance orders versions of the *same* performance. It cannot compare different codes: two good readings of a sentence are many decibels apart.
#
# **When it does not help:** where the stage is not what takes the time. Halving the steps of a stage with 10 % of the call saves 5 %, and it can be heard.
#
# For a real judgement, listen blind: `widgets.ListeningPanel` shuffles, matches loudness and counts votes.
#
# ## Exercises
#
# **1.** Solve with 4 steps and two different seeds. Is the distance between the two smaller or larger than between 4 and 64 steps?
#
# <details><summary>Answer</summary>
#
# Usually larger: other noise is another performance of the same codes. An error of the solver that is well below the spread between seeds is hard to notice.
#
# </details>
#
# **2.** Which of the three would you give up first for a faster answer on a laptop?
#
# <details><summary>Answer</summary>
#
# Steps down to about 8, then beams down to 1; guidance last, since without it the voice drifts from the reference. The small voice has exactly these defaults: 8 steps and one beam, with guidance 0.4.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert ladder.distance_db[0] > ladder.distance_db[3] > ladder.distance_db[-1], (
    "more steps come closer"
)
assert ladder.seconds[-1] > ladder.seconds[0]
assert guided[0]["distance to none (dB)"] == 0 < guided[-1]["distance to none (dB)"]
assert cost[3] < 3 * cost[1] * 1.5, "beams share the work"
tts.close()
