# %% [markdown]
# # 10 Many GPUs
#
# **Question: how much do more GPUs bring, and what do they not bring?**
#
# Speech requests are independent, so the plan is simple: one whole engine for each GPU, and each request to one of them. `WorkerPool` does this in one process, on the GPUs of a machine, or on a cluster through Ray.

# %%
from widgets.lessons import SENTENCE, bars, lines, open_engine, predict, table
from widgets.lessons.engine import quiet_limits
from widgets.lessons.scheduling import makespan, sentence_seconds, waiting_curve

# %% [markdown]
# ## Predict
#
# 24 requests of very different length, four GPUs, each request to whichever worker is free first.

# %%
guess = predict("How many times faster than one GPU are all 24 done?", [1.5, 2.5, 3.3, 3.8, 4], "x")
guess

# %% [markdown]
# ## Measure
#
# This is arithmetic, the same on any machine: the requests' lengths are drawn from a skewed distribution, as lengths of texts are.

# %%
work = sentence_seconds(24)
workers = [1, 2, 3, 4, 6, 8, 12]
gains = {
    policy: (workers, [sum(work) / makespan(work, n, policy) for n in workers])
    for policy in ("least loaded", "round robin")
}
guess.measured(gains["least loaded"][1][workers.index(4)], "in the simulation")

# %%
lines(
    {**gains, "ideal": (workers, workers)},
    title="24 requests of uneven length",
    x="workers",
    y="speed-up",
)

# %% [markdown]
# Dealing requests out in turn (round robin) leaves workers idle behind a long request. And with many workers the longest single request sets the end: no number of GPUs makes one sentence faster.
#
# ## How long callers wait
#
# Requests that arrive at random queue up long before the workers are full.

# %%
loads = [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
lines(
    {
        f"{n} workers" if n > 1 else "1 worker": (loads, waiting_curve(n, loads))
        for n in (1, 2, 4, 8)
    },
    title="Waiting before a request starts, 95th percentile",
    x="load (share of the workers' time asked for)",
    y="s",
    log_y=True,
)

# %% [markdown]
# ## The pool itself
#
# Without Ray and without GPUs it runs in this process, with the same interface: results come in order, and progress, cancellation and statistics work alike.

# %%
from indextts.parallel import WorkerPool

tts = open_engine()
requests = [
    {"spk_audio_prompt": tts.default_voice(), "text": text, "seed": 1}
    for text in (SENTENCE, "It was late.", "Rain all day.")
]
with quiet_limits(tts), WorkerPool(engine=tts) as pool:
    results = list(pool.map(requests))
    stats = pool.stats()

# %%
sound = [len(samples) / rate for rate, samples in results]
named = dict(zip([request["text"] for request in requests], sound, strict=True))
bars({"sound": named}, title="Results, in the order of the requests", unit="s of sound")

# %%
table(
    [
        {"figure": name, "value": value}
        for name, value in stats.items()
        if isinstance(value, (int, float, str))
    ],
    "pool.stats()",
)

# %% [markdown]
# With several GPUs, `WorkerPool("auto")` starts one engine on each (`pip install -e '.[cluster]'`). No recorded figures stand here: **several GPUs have not been measured**; the pool is tested with several CPU workers.
#
# ## Conclude
#
# - More GPUs bring **throughput**, nearly in proportion as long as requests outnumber workers by far.
# - They do not bring **latency**: one sentence takes as long as before. For that, use the other lessons.
# - Give each request to the worker that is free first, and do not plan for more than about 70 % load if waiting matters.
#
# **When it does not help:** one long text with a single voice gains only as far as its segments are spread; a GPU that a single request leaves idle gains more from batches (lesson 09), which cost no hardware.
#
# ## Exercises
#
# **1.** Sort the 24 requests, longest first, and look at `makespan(sorted(work, reverse=True), 8)`. Better or worse?
#
# <details><summary>Answer</summary>
#
# Better: long requests start early and short ones fill the gaps at the end. It needs all requests to be known beforehand, as with a book, and not with callers.
#
# </details>
#
# **2.** Eight GPUs in one queue, or two queues of four? Compare `waiting_curve(8, [0.8])` with `waiting_curve(4, [0.8])`.
#
# <details><summary>Answer</summary>
#
# One queue: the chance that all eight are busy while somebody waits is smaller than that all of four are. Splitting callers between separate groups always costs waiting time at the same load.
#
# </details>

# %% [markdown]
# ## What must hold

# %%
assert abs(makespan(work, 1) - sum(work)) < 1e-9
assert all(
    free <= dealt + 1e-9
    for free, dealt in zip(
        [makespan(work, n) for n in (2, 4)],
        [makespan(work, n, "round robin") for n in (2, 4)],
        strict=True,
    )
)
assert makespan(work, 100) == max(work), "one request is never split"
assert len(results) == 3 and all(samples.any() for _, samples in results)
tts.close()
