# %% [markdown]
# # 12 Benchmarking well
#
# **Question: how do I find out whether a change made anything faster, without fooling myself?**

# %%
from widgets.lessons import bars, lines, note, open_engine, predict, recorded, spread, table
from widgets.lessons.benchmarks import (
    by_seed,
    compare_paths,
    first_calls,
    ratio_interval,
    same_thing_twice,
)

tts = open_engine("timing")

# %% [markdown]
# ## Trap 1: the first calls
#
# Files are read, libraries start, kernels are chosen, caches fill, graphs are recorded. None of that repeats.

# %%
warming = first_calls(tts, 4)
lines(
    {"call": (list(range(1, 5)), warming)},
    title="The first calls of a fresh engine, 25 codes each",
    x="call",
    y="s",
    log_y=True,
)

# %% [markdown]
# ## Predict
#
# Now the engine is warm. The *same* call is measured four times, and then four times again, as if it were another configuration.

# %%
guess = predict("How far apart are the two medians?", [0.1, 1, 5, 20], "%")
guess

# %% [markdown]
# ## Measure

# %%
first, second = same_thing_twice(tts, 4)
middle = [sorted(values)[len(values) // 2] for values in (first, second)]
guess.measured(100 * abs(middle[0] / middle[1] - 1) + 1e-3)

# %%
spread(
    {"configuration A": first, "configuration A again": second},
    title="The same thing, measured twice",
    unit="s",
)

# %% [markdown]
# Any difference smaller than that is noise. Such an A/A test costs a minute and saves days.
#
# ## Trap 2: runs that do different work
#
# With sampling, the length of the result is up to chance. Time follows the codes, so the mean over a few seeds says more about the seeds.

# %%
free = by_seed(tts, [1, 2, 3])
table(
    [
        {"seed": seed, "codes": codes, "seconds": seconds, "ms a code": 1e3 * seconds / codes}
        for seed, (codes, seconds) in enumerate(free, 1)
    ],
    "The same sentence with three seeds",
)

# %% [markdown]
# `tts.infer_forced(codes, ...)` makes exactly so many codes; `indextts bench` uses it. (An untrained network never stops by itself, so with random weights all rows look alike.)
#
# ## Trap 3: an asynchronous device
#
# On a GPU a call returns when its work is *queued*. A clock stopped too early measures Python. `timed` in these lessons waits for the device before and after; telemetry uses events on the device itself.
#
# ## Trap 4: a machine that drifts
#
# Clocks change with temperature, and other processes come and go. If A runs first and B second, B gets the warmer machine. Take turns: A B A B.
#
# ## The comparative benchmark
#
# Plain path against accelerated path, in turns, codes forced, with an interval for the ratio (bootstrap: how much would the ratio vary if these runs were drawn again?).

# %%
paths = compare_paths(tts, 4)
spread(
    {name: timing.seconds for name, timing in paths.items()},
    title="Plain and accelerated path on this machine, in turns",
    unit="s",
)

# %%
low, ratio, high = ratio_interval(paths["plain"], paths["accelerated"])
verdict = "faster" if low > 1 else "slower" if high < 1 else "not told apart by these runs"
note(
    f"Accelerated against plain: **{ratio:.2f}x** (95 % interval {low:.2f} to "
    f"{high:.2f}): {verdict}."
)

# %% [markdown]
# Recorded on the H200, by the same method, with the commands to repeat it:

# %%
record = recorded("how_fast")
bars(
    {"RTF": {f"{row['path']}, {row['precision']}": row["rtf"] for row in record.where(beams=3)}},
    title="One H200, release size, 3 beams",
    unit="RTF (lower is faster)",
    height=400,
)

# %%
record

# %% [markdown]
# And a ladder, one optimisation added after the other, with an example of trap 4 in it: the caption says what the machine did besides.

# %%
recorded("ladder_h200").table(
    "label", "beams", "batch", "total_s", "gpt_s", "s2mel_s", "bigvgan_s", "rtf"
)

# %% [markdown]
# ## Conclude
#
# - Warm up, force the amount of work, take turns, wait for the device, and give the spread beside the middle.
# - **Median** for what users will see, **minimum** for what the code can do, mean for neither: a single hiccup moves it.
# - A figure without machine, settings and command is a rumour. `indextts bench --ladder --json FILE` adds one optimisation after the other and writes all three beside its figures.
# - The guide's standard benchmark warms up three times and gives mean, deviation, minimum and maximum: good. It leaves the length to chance and times one configuration after the other: traps 2 and 4.
#
# **When it does not help:** a benchmark answers the question that it was built for. Throughput of batches says nothing about the first sound, and random weights say nothing about quality.
#
# ## Exercises
#
# **1.** Run the A/A test while something else works on the machine. What happens to the medians, and what to the minima?
#
# <details><summary>Answer</summary>
#
# The medians move apart; the minima much less, if the disturbance leaves gaps. That is why the minimum is good for comparing code, and why it promises too much to users.
#
# </details>
#
# **2.** You need to see a difference of 2 % where single runs vary by 10 %. About how many runs?
#
# <details><summary>Answer</summary>
#
# The error of a mean falls with the square root of the number of runs: 10 % / sqrt(n) must be well below 2 %, so n = 25 gives 2 %, n = 100 gives 1 %. A quieter machine is cheaper.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert warming[0] > min(warming), "the first call is never the best one"
assert low <= ratio <= high
assert all(codes > 0 for codes, _ in free)
assert min(first + second) < warming[0], "a warm call is faster than the first"
tts.close()
