# %% [markdown]
# # 11 Profiling
#
# **Question: which operations take the time and the memory, and how do I see it without fooling myself?**
#
# Telemetry (lesson 08) names the stage. A profiler names the operation.

# %%
from widgets.lessons import bars, note, open_engine, panels, predict, speak, table
from widgets.lessons.profiling import families, profile_call

tts = open_engine("timing")

# %% [markdown]
# ## Predict

# %%
guess = predict(
    "Which kind of operation takes the most time of a call here?",
    ["matrix products", "convolutions", "attention", "norms", "copies and views", "all else"],
)
guess

# %% [markdown]
# ## Measure
#
# `profile_call` runs one warm call under `torch.profiler`. It starts the profiler in the engine's own thread: operations are recorded in the thread that profiles, and the engine does not work in the notebook's. A profiler around `tts.infer` in a cell would see a call that does nothing but wait.

# %%
profiled = profile_call(tts, max_mel_tokens=25)
kinds = families(profiled)
guess.measured(max(kinds, key=kinds.get))

# %%
bars({"share": kinds}, title=f"Self time by kind of operation ({profiled.device})", unit="percent")

# %%
table(profiled.top(8), f"Slowest operations of {sum(profiled.calls.values())} calls")

# %% [markdown]
# **Self time** is what an operation spends itself, without those it calls; these times may be added up. The last column separates two kinds of trouble: few slow calls (arithmetic, or memory) and very many fast ones (starting them is the cost, lesson 05).
#
# Watching costs time as well:

# %%
plain = min(speak(tts, max_mel_tokens=25).total_s for _ in range(2))
panels(
    {"ms": {"unwatched": 1e3 * plain, "under the profiler": profiled.wall_ms}},
    title="The same call",
    unit="ms",
)

# %%
note(
    f"Under the profiler the call took **{profiled.wall_ms / (1e3 * plain):.2f}x** as "
    "long. Take shares from a profile, and times from telemetry."
)

# %% [markdown]
# ## The other tools
#
# One command writes a trace and a table, and on a GPU a memory snapshot:
#
# ```bash
# indextts bench --random-weights --size release --profile profile/
# ```
#
# - `profile/trace.json`: open in [Perfetto](https://ui.perfetto.dev). Gaps in the GPU's row are launches that came too late.
# - `profile/memory.pickle`: open at pytorch.org/memory_viz. Shows what was allocated when, and by which line. Needs a GPU.
#
# On the GPU, NVIDIA's own tools see more than torch does:
#
# ```bash
# # the whole timeline: launches, kernels, copies, gaps
# nsys profile -t cuda,nvtx,osrt -o timeline indextts bench --random-weights --size release --runs 1
# nsys stats timeline.nsys-rep
#
# # a few kernels in depth: achieved bandwidth, occupancy
# ncu --set full --launch-skip 2000 --launch-count 20 -o kernels indextts bench --random-weights --size release --runs 1
# ```
#
# With CUDA graphs, add `--cuda-graph-trace=node` to nsys, or a replayed step is a single bar. `ncu` replays each kernel many times: never take the duration of such a run for anything.
#
# ## Conclude
#
# - Start with shares of stages, then operations, then kernels. Most questions are answered before Nsight is needed.
# - The guide's recipe, `profile(activities=[ProfilerActivity.CUDA])` around `tts.infer`, finds the GPU's kernels from any thread, but no CPU operations; and it finds nothing on a machine without a GPU.
#
# **When it does not help:** a profile of a cold call shows loading and warming up; a profile of forced short runs shows fixed costs. Profile what your users wait for.
#
# ## Exercises
#
# **1.** Profile with `num_beams=3`. Which operations are called more often, and which just take longer?
#
# <details><summary>Answer</summary>
#
# Products and attention of a decode step take rows for three sequences, with the same number of calls. Choosing and reordering beams adds operations of its own (`index_select`, `topk`).
#
# </details>
#
# **2.** An operation has 40 % of the self time, called 12 000 times at 6 microseconds. Is it worth a faster kernel?
#
# <details><summary>Answer</summary>
#
# Hardly: at 6 microseconds the time is the cost of starting it. Fewer calls are what is wanted, by fusing, by a graph, or by larger batches.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert abs(sum(kinds.values()) - 100) < 1e-6, "shares add up"
assert sum(profiled.calls.values()) > 1000, (
    "a call is thousands of operations; fewer mean that the wrong thread was watched"
)
assert kinds.get("matrix products", 0) + kinds.get("convolutions", 0) > 20, (
    "products and convolutions are where the arithmetic is"
)
tts.close()
