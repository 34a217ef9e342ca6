# %% [markdown]
# # 01 What happens between text and sound
#
# **Question: which numbers carry the speech from the text to the loudspeaker, and where is most of the detail added?**
#
# Four networks pass the sentence on: a GPT turns text into codes, flow matching turns codes into a mel spectrogram, a vocoder turns that into a wave. A reference clip tells all of them whose voice it is.

# %%
from widgets.lessons import SENTENCE, bars, heat, lines, open_engine, play, predict, speak, table
from widgets.lessons.walk import Walk

tts = open_engine()
walk = Walk(tts, SENTENCE)

# %% [markdown]
# ## Predict
#
# One second of sound is 22 050 samples.

# %%
guess = predict(
    "The GPT hands on codes, whole numbers. How many samples does one code stand for?",
    [1, 20, 440, 22050],
    "samples",
)
guess

# %% [markdown]
# ## Text to tokens
#
# Text is normalised ("7:45" becomes words) and cut into pieces of a fixed vocabulary. Long text becomes several segments; each is spoken in one go.

# %%
table(
    [
        {"piece": piece, "id": number}
        for piece, number in zip(walk.segment.pieces, walk.segment.ids, strict=True)
    ][:12],
    f"The first of {len(walk.segment)} tokens of: {SENTENCE}",
)

# %% [markdown]
# ## Tokens to codes
#
# The GPT writes one code after the other, 50 for each second. A code names one of the sounds that the semantic codec knows; there is no order among the numbers.

# %%
codes = walk.codes()
seconds = [i / 50 for i in range(codes.shape[1])]
lines(
    {"code": (seconds, codes[0].tolist())},
    title="Semantic codes",
    x="time (s)",
    y="code (a name, not an amount)",
)

# %% [markdown]
# ## Codes to latents
#
# A second pass of the GPT reads the finished codes and gives, for each, a vector of what it knows there: a **latent**. Codes and latents together drive the next stage.

# %%
latents = walk.latents(codes)
heat(
    latents[0, :, :64].T,
    title="The first 64 of the latents' dimensions",
    x="time (s)",
    y="dimension",
    x_step=1 / 50,
)

# %% [markdown]
# ## Latents to mel
#
# Flow matching starts from noise and follows, in a few steps, a velocity that a network estimates. Its result is a mel spectrogram: 80 bands, 86 frames a second.

# %%
mel = walk.mel(codes, latents)
heat(
    mel[0], title="Mel spectrogram (log amplitude)", x="time (s)", y="mel band", x_step=256 / 22050
)

# %% [markdown]
# ## Mel to wave
#
# BigVGAN makes 256 samples of each frame.

# %%
wave = walk.wave(mel)
shown = wave[0, ::16].tolist()
lines(
    {"wave": ([16 * i / 22050 for i in range(len(shown))], shown)},
    title="Waveform (every 16th sample)",
    x="time (s)",
    y="amplitude",
    dots=False,
    height=220,
)

# %% [markdown]
# ## Measure

# %%
per_code = wave.shape[1] / codes.shape[1]
guess.measured(per_code)

# %%
length = wave.shape[1] / 22050
counts = {
    "tokens": len(walk.segment),
    "codes": codes.numel(),
    "mel values": mel.numel(),
    "samples": wave.numel(),
}
bars(
    {"numbers": {name: count / length for name, count in counts.items()}},
    title="Numbers for one second of speech",
    unit="per second",
    log=True,
)

# %% [markdown]
# And the sound of it:

# %%
play(walk.record(wave, SENTENCE))

# %% [markdown]
# ## Conclude
#
# - From a handful of tokens to 22 050 samples: each stage adds detail, and each works at a rate of its own. 50 codes a second, 86 frames a second, 256 samples a frame.
# - The GPT has to write codes one by one; the later stages make all frames at once. That is why the GPT is the slow one on a GPU, although it writes the fewest numbers (lesson 05).
# - What is said and how it flows is settled once the codes are there. The later stages give it a voice.
#
# **When it does not help:** rates tell nothing about cost. The GPT reads all of its weights for every single code; see lesson 02.
#
# ## Exercises
#
# **1.** Call `walk.mel(codes, latents, steps=1)` and listen to `walk.wave` of it. What is still right, what is lost?
#
# <details><summary>Answer</summary>
#
# Words and timing are right, since they are in the codes. The fine structure is blurred: one Euler step follows the first direction all the way. Lesson 13 measures how many steps are needed.
#
# </details>
#
# **2.** Why has the spectrogram 1.72 frames for each code?
#
# <details><summary>Answer</summary>
#
# Frames come 22050 / 256 = 86.13 times a second, codes 50 times: 86.13 / 50 = 1.72. `duration_factor` changes exactly this number, and so the speed of speech.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
sound = speak(tts, SENTENCE)
assert mel.shape[-1] == int(1.72 * codes.shape[1]), "frames for each code"
assert wave.shape[1] == 256 * mel.shape[-1], "samples for each frame"
assert abs(walk.record(wave, "").samples.astype(int) - sound.samples).max() <= 2, (
    "walking through the stages must give what infer gives"
)
tts.close()
