# %% [markdown]
# # 02 Your GPU and what suits it
#
# **Question: which settings suit this machine, and how fast could it be at best?**
#
# Two facts about a card decide most: which number formats its tensor cores have, and how fast its memory is.

# %%
from indextts.utils.gpu_config import GPUConfig
from widgets.lessons import bars, note, panels, predict, recorded, table, this_machine
from widgets.lessons.hardware import copy_bandwidth, decode_floor_ms, generations

GPUConfig.list_available_gpus()

# %% [markdown]
# What the engine chooses for each generation. This table is computed from the compute capability alone, so it shows on any machine.

# %%
table(generations(), "GPUConfig.get_optimal_settings")

# %% [markdown]
# And for this machine, applied to torch:

# %%
settings = GPUConfig.apply_optimal_settings()
table([{"setting": name, "value": value} for name, value in settings.items() if value != ""])

# %% [markdown]
# ## Predict
#
# To write one code, the release's GPT reads all of its weights once: 0.97 GB in 16 bits. Whatever a kernel does, memory has to deliver them.

# %%
guess = predict(
    "The fastest decode step that the memory of this machine allows, for the release in 16 bits?",
    [0.2, 1, 10, 100, 1000],
    "ms",
)
guess

# %% [markdown]
# ## Measure
#
# A large copy shows what memory can deliver.

# %%
bandwidth = copy_bandwidth()
floor_ms = decode_floor_ms(bandwidth)
guess.measured(floor_ms)

# %%
h200 = 1e12 * recorded("bandwidth").row(what="device-to-device copy")["tb_per_s"]
bars(
    {"floor": {this_machine(): floor_ms, "one H200": decode_floor_ms(h200)}},
    title="A decode step of the release takes at least",
    unit="ms",
    log=True,
)

# %% [markdown]
# How near to the floor is a real step? Recorded on the H200:

# %%
record = recorded("decode_step")
real = {row["step"]: row["ms"] for row in record.where(beams=1)}
panels(
    {"one H200, 16 bits, 1 beam": {"floor": decode_floor_ms(h200), **real}},
    title="Decode step against its floor",
    unit="ms",
)

# %%
record

# %%
real_time = 20 / floor_ms
note(
    "Speech needs 50 codes a second, one every 20 ms. At its floor this machine "
    f"could write codes for **{real_time:.1f}** listeners at once, the H200 for "
    f"{20 / decode_floor_ms(h200):.0f}."
)

# %% [markdown]
# ## Conclude
#
# - **Number formats by generation:** bf16 from Ampere (8.0) on, fp16 on Turing and Volta, neither before. TF32 from Ampere on.
# - **Memory speed sets the floor of decoding**, not arithmetic: a step multiplies each weight only once for every beam.
# - The distance between a real step and the floor is what is left to win. Lesson 05 is about the largest part of it.
#
# **When it does not help:** flow matching and the vocoder work on all frames at once and are bound by arithmetic. For them, tensor cores count (lesson 03). And sixteen segments at once read the weights once for all of them (lesson 09).
#
# ## Exercises
#
# **1.** Look up the memory bandwidth of your card. What would the floor be with weights of 8 bits?
#
# <details><summary>Answer</summary>
#
# Half of that in 16 bits: `decode_floor_ms(bandwidth, 965.5e6 / 2)`. Whether speech survives such weights is another question, and not one of speed.
#
# </details>
#
# **2.** A100 and RTX 3090 both count as Ampere. Ask `GPUConfig.get_optimal_settings((8, 0))` and `(8, 6)`: what differs?
#
# <details><summary>Answer</summary>
#
# Nothing: both have bf16, fp16, TF32 and flash attention. They differ in memory bandwidth (about 2 TB/s against 0.9) and so in their floors, which no table of features shows.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert len({row["architecture"] for row in generations()}) == 7, (
    "every generation of the guide has its row"
)
assert all(ms >= decode_floor_ms(h200) for ms in real.values()), (
    "no measured step may beat its floor"
)
assert bandwidth > 1e8, "a copy that slow was not measured properly"
