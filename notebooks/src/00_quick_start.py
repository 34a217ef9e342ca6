# %% [markdown]
# # 00 Quick start
#
# **Question: how do I get from a text to a sound, and how fast is that here?**
#
# Three cells make a sound. After them comes the Lab, with everything in panels.

# %%
from widgets.lessons import bars, open_engine, play, predict, recorded, speak

tts = open_engine()

# %%
sound = speak(tts, "Good morning! The ferry comes in at a quarter to eight.", label="first try")

# %%
play(sound)

# %% [markdown]
# That was `tts.infer(voice, text)`. With your own voice it is
#
# ```python
# tts.infer("me.wav", "Good morning!", "morning.wav")   # writes a WAV and returns its path
# ```
#
# If this was noise, no trained voice is installed: `indextts download` fetches the release (about 8 GB, for a GPU).
#
# ## Predict
#
# The **real-time factor** (RTF) is the time a sound took to make, divided by its length. Below 1 it is made faster than it plays.

# %%
guess = predict(
    "The same sentence once more: the engine is warm now and knows the voice. Which RTF?",
    [0.1, 0.3, 1, 3, 10],
)
guess

# %% [markdown]
# ## Measure

# %%
again = speak(tts, "Good morning! The ferry comes in at a quarter to eight.", label="second try")
guess.measured(again.rtf)

# %%
bars(
    {
        run.label: {"total": run.total_s, "length of the sound": run.audio_s}
        for run in (sound, again)
    },
    title="The first call pays for everything that is made once",
    unit="seconds",
)

# %% [markdown]
# The same on one H200, with the release's size:

# %%
recorded("how_fast").table("path", "precision", "beams", "total_s", "rtf", path="accelerated")

# %% [markdown]
# ## Conclude
#
# - One call does it all: text, voice, sound. The second call is faster, since voice, grammar and kernels are ready.
# - The RTF says whether speech keeps up with a listener. It depends on the machine, the weights and the settings, so a figure without them means nothing.
#
# **When it does not help:** an RTF below 1 says nothing about when the *first* sound comes. For that, see `first_audio_s` in lesson 08.

# %% [markdown]
# ## What must hold

# %%
assert again.samples.any(), "the sound is silent"
assert (again.samples == sound.samples).all(), "the same seed must give the same sound"
assert again.telemetry.speaker_cache_hit, "the second call must know the voice"

# %% [markdown]
# ## The Lab
#
# Every switch of the following lessons as a panel. Nothing in it blocks the notebook.

# %%
from widgets import Lab

lab = Lab(tts)
lab

# %% [markdown]
# ## Exercises
#
# **1.** Give `speak` another `seed`. Does the text change? Does the length?
#
# <details><summary>Answer</summary>
#
# The words stay; rhythm and melody change, and with them the length. Codes are drawn at random, and the seed fixes the draws: the same seed gives the same samples, which is what makes comparisons possible.
#
# </details>
#
# **2.** Ask for a text of three sentences. Is its RTF higher or lower than that of one sentence?
#
# <details><summary>Answer</summary>
#
# About the same or lower. What is paid once a call (reading the voice, starting up) is spread over more sound. Time to the whole result still grows with its length.
#
# </details>
