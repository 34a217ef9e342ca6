# %% [markdown]
# # 06 torch.compile
#
# **Question: is a compiled network worth its start-up?**
#
# `torch.compile` traces a function, merges operations that pass over the same data, and generates code for this machine: C++ on a CPU, Triton on a GPU. That takes time, once for each function and shape.

# %%
from widgets.lessons import bars, lines, note, predict, recorded, table
from widgets.lessons.compiling import calls_to_pay, compile_block, saved_s, traced, traffic_mb

# %% [markdown]
# ## Predict
#
# On the H200, compiling the public pipeline's flow matching took 75 s. With it (and a fused vocoder kernel) a call of 5 s of speech took 4.47 s instead of 4.57 s.

# %%
guess = predict("After how many calls is that start-up paid back?", [1, 10, 75, 750, 7500], "calls")
guess

# %% [markdown]
# ## Measure

# %%
record = recorded("compile")
call = record.row(what="public pipeline, fp16, whole call")
pay = calls_to_pay(call["startup_s"], call["without_s"], call["with_s"])
guess.measured(pay, "on the H200")

# %%
calls = [1, 100, 200, 400, 800, 1600]
saved = [saved_s(count, call["startup_s"], call["without_s"], call["with_s"]) for count in calls]
lines(
    {"saved": (calls, saved)},
    title="One H200: time saved by compiling, start-up included",
    x="calls",
    y="s",
    marks={"paid back": 0},
)

# %%
record

# %% [markdown]
# ## What the compiler sees
#
# Around its matrix products, flow matching normalises, scales, shifts and gates. Eagerly, each operation reads its input from memory and writes its output; merged, the data is read and written once.

# %%
trace = traced()
table(
    [{"operation": name, "times": times} for name, times in trace.most_common()],
    "What torch.compile traced of one such block",
)

# %%
eager_mb, fused_mb = traffic_mb()
bars(
    {"block of 800 frames": {"each operation alone": eager_mb, "merged": fused_mb}},
    title="Memory traffic of the block",
    unit="MB",
)

# %% [markdown]
# ## On this machine
#
# Compiling for real needs a GPU, or on a CPU a C++ compiler and about half a minute. Set `FOR_REAL = True` to do it here.

# %%
import torch

FOR_REAL = torch.cuda.is_available()
result = compile_block() if FOR_REAL else None
note(result.words if result else "Not compiled on this CPU in this run.")

# %% [markdown]
# ## Conclude
#
# - **The guide's claim** is 10 to 20 % from compiling S2Mel. Measured on the H200 in fp16: the S2Mel stage 0.35 s to 0.23 s (1.5x, with a fused vocoder kernel at the same time), the whole call **1.02x**, since S2Mel is 8 % of it. Start-up 75 s: paid back after some 750 calls.
# - On this engine's own decode step compiling made it slower: 2.2 ms instead of 1.7 (1 beam, bf16, in a CUDA graph). The graph had already removed the launches, and the compiler's kernels read weights no faster than the library's.
# - It is therefore a switch, `use_torch_compile`, and off by default. It takes the place of the fast solver, which reaches more without a start-up.
#
# **When it does not help:** one-off calls, shapes that change with every call (each may compile again), and wherever matrix products dominate: they call the same library before and after.
#
# ## Exercises
#
# **1.** A service makes 10 000 calls a day and restarts once a day. What does compiling save it, with the figures above?
#
# <details><summary>Answer</summary>
#
# 10 000 x 0.10 s - 75 s = 925 s of 45 700 s: 2 %. Whether that is worth a dependency on a compiler at run time is a question of taste; the first 750 callers of the day wait longer for it.
#
# </details>
#
# **2.** Compile a block with `dynamic=False` and call it with two lengths. What happens at the second?
#
# <details><summary>Answer</summary>
#
# It is compiled again, for the new shape. After a few shapes torch gives up and runs eagerly. Rounding lengths up to a few sizes, as the engine does for its graphs, bounds the number of shapes.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert 500 < pay < 1000
assert calls_to_pay(10, 1.0, 1.0) == float("inf"), "no gain is never paid back"
assert sum(trace.values()) >= 7 and fused_mb < eager_mb / 3
assert result is None or result.compiled_s is None or result.largest_difference < 1e-4, (
    "compiling must not change the result"
)
