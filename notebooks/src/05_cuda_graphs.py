# %% [markdown]
# # 05 CUDA graphs
#
# **Question: why is the GPU idle most of the time while it decodes, and what does a graph change?**
#
# A decode step makes one code. In Python it is a few hundred small operations, and the host has to start each of them. If starting takes longer than computing, the GPU waits: the loop is **launch-bound**.

# %%
from widgets.lessons import bars, lines, note, open_engine, predict, recorded, table
from widgets.lessons.launches import (
    decode_step_operations,
    paths_ms,
    stack_operations,
    step_ms_by_width,
)

# %% [markdown]
# ## Predict

# %%
guess = predict(
    "How many operations does the host start for one code, with 24 layers and before any sampling?",
    [24, 75, 300, 1200],
)
guess

# %% [markdown]
# ## Measure

# %%
counted = decode_step_operations()
guess.measured(counted.total, "in the plain decode step")

# %%
table(
    [{"operation": name, "times": times} for name, times in counted.names.most_common(8)],
    "Operations of one plain decode step, views left out",
)

# %% [markdown]
# On a GPU each is at least one kernel, and the host needs some microseconds to start it (5 is a rule of thumb, without what Python does in between). Sampling and beams come on top.
#
# The same can be seen on any machine: let the network become narrower and the step gets no faster below some width. What is left there is not arithmetic.

# %%
widths = [32, 64, 128, 256, 512]
ms = step_ms_by_width(widths)
overhead_us = 1e3 * ms[0] / stack_operations()
lines(
    {"step": (widths, ms)},
    title="A decode step of a 4-layer GPT by width",
    x="width",
    y="ms",
    log_x=True,
    log_y=True,
    marks={"starting operations": ms[0]},
)

# %%
note(
    f"The narrowest network has {stack_operations()} operations and takes {ms[0]:.2f} "
    f"ms: about **{overhead_us:.0f} microseconds for an operation that computes "
    f"nothing**. For the {counted.total} operations above, that makes "
    f"{counted.total * overhead_us / 1e3:.1f} ms a code."
)

# %% [markdown]
# ## What a graph does
#
# A CUDA graph is a recording: the host runs the step once, the driver keeps all launches with their addresses, and from then on one call replays them all. For that, nothing in a step may depend on the host: buffers have fixed addresses and sizes (a **static** key-value cache), codes are drawn on the device, and the end is looked for only every few steps.

# %%
tts = open_engine("timing")
paths = paths_ms(tts, codes=40)
bars({"GPT": paths}, title="GPT, for each code, on this machine", unit="ms")

# %%
if tts.cuda_graphs_available:
    step = note("This machine can record graphs: the last bar is one replay a step.")
else:
    step = note(
        "**This machine cannot record CUDA graphs**, so the graph's bar is missing. The "
        "static cache runs here as well, launch by launch; the recorded figures below "
        "show what the graph adds."
    )
step

# %%
climbed, step_record = recorded("ladder_h200"), recorded("decode_step")
per_code = {
    row["label"]: 1e3 * row["gpt_s"] / 250
    for row in climbed.where(beams=3)
    if "vocoder" not in row["label"]
}
bars(
    {"one H200": per_code},
    title="From 12 ms to 0.6 ms for a code, 3 beams, release size",
    unit="ms",
    height=420,
)

# %% [markdown]
# The whole GPT stage divided by 250 codes, one optimisation added after the other. In a graph no host is in the way any more, and yet the step reads its weights at a quarter of what the memory can deliver: each of its kernels begins with an idle device and ends with one. The last bar is a step whose 24 layers are **one kernel**. Each block stays on its multiprocessor from the first layer to the last, blocks hand each other their numbers through the cache without ever ending, and one warp of each does nothing but send for the next weights.

# %%
step_record

# %% [markdown]
# ## Conclude
#
# - In eager mode the H200 takes 9 to 17 ms for a code (its host decides) whose weights it could read in 0.23 ms. Half precision changes nothing there (lesson 03).
# - After launches, what is left is what happens between kernels. One kernel for all layers took 2.9 to 3.4 times less than five a layer.
# - Recording the **decode step** is what counts. From the plain path to the accelerated one in bf16 the stage became 4.5x as fast by it (9.9 ms to 2.2 ms a code).
# - **The guide's claim** of 1.1 to 1.3x is about graphs of the vocoder. On the H200 the vocoder takes 0.07 s of 1.79 s: if it were free, the call would be 1.04x as fast. The guide is right that its graphs bring little, and the reason it gives, the solver, is not an obstacle: Euler steps can be recorded one by one.
#
# **When it does not help:** large batches and long sequences, whose kernels outlast their launches; lengths that never repeat, since each shape needs a recording of its own (the engine rounds lengths up to a few sizes); one-off calls, which pay for the recording. And graphs hold memory: on the H200 the peak in float32 rises from 6.3 to 6.5 GB.
#
# ## Exercises
#
# **1.** With 16 sequences at once a step takes 2.16 ms instead of 1.57 ms (3 sequences). Is the step with 3 launch-bound, inside a graph?
#
# <details><summary>Answer</summary>
#
# No host is involved any more, but something similar is left: hundreds of kernels too small to fill the GPU. More rows cost little because the kernels were not busy. What helps now are fewer and larger kernels: fusing.
#
# </details>
#
# **2.** Why must sampling move into the graph too?
#
# <details><summary>Answer</summary>
#
# If the host draws the code, it has to wait for the logits of every step and then upload the code: the queue runs dry each time. With the draw on the device the host can queue steps ahead; it looks for stop codes every fourth step and discards what was made beyond.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert 250 < counted.total < 400 and counted.names["addmm"] == 97, (
    "4 products in each of 24 layers, and the code head"
)
assert ms[-1] > ms[0] or tts.device.type != "cpu", "a wider network computes more"
assert per_code["+ one kernel for a decode step"] < 0.5 * per_code["+ fused kernels"]
assert paths.keys() >= {"plain path", "static cache"}
tts.close()
