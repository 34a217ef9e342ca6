"""The fast way to generate codes: every buffer allocated beforehand, a whole decode step on the device, replayed as one CUDA graph.

Why the plain loop of :mod:`indextts.engine.generate` starves a GPU: a step is some 500 kernels of a few microseconds each, the host needs
longer to launch them than the device to run them, and it waits in every step to learn what was drawn before it can prepare the next one.
Here a step depends on nothing but device memory::

    choose codes from the logits  ->  fork the beams  ->  feed the codes, 24 layers  ->  logits of the next codes

so the host needs to know neither the codes nor whether they are the last ones. It queues a few steps ahead, as one graph where they fit,
and asks after them whether all rows have ended, and queues the next few before it looks at the answer, so the device never waits; steps
made past the end are not read, and their random numbers are taken back.

The same code runs without a graph, on any device, and gives the results of the plain loop from the same seeds.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts.engine.device_beams import BeamSearch
from indextts.engine.device_search import Search
from indextts.engine.generate import GeneratedCodes, OnStep
from indextts.engine.pass_graphs import PassGraphs
from indextts.engine.sampling import Draws, SamplingParams
from indextts.engine.static_cache import Bucket, KVStorage, OneBlock, StaticCache
from indextts.engine.step_graphs import DrawsAfter, StepGraphs, always
from indextts.models.gpt import UnifiedVoice
from indextts.models.gpt2 import GPT2Block, KVCache

logger = logging.getLogger(__name__)
MB = 1024 * 1024
Searches = tuple[type[Search], type[BeamSearch]]  # what chooses codes, without beams and with
PLAIN_SEARCHES: Searches = (Search, BeamSearch)
Feed = Callable[[UnifiedVoice, Tensor, StaticCache, Bucket], Tensor]


@dataclass(frozen=True)
class PrefixState:
    """What the model knows after the prefix and the start code of B rows; never changed by what follows.

    ``layers``: keys and values ``(B, heads, P + 1, head_width)`` of each layer. ``mask``: ``(B, P + 1)``, true for real positions, or None.
    ``start``: ``(B, D)``, the stack's output at the start code.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor | None
    start: Tensor

    @property
    def length(self) -> int:
        """Positions, P + 1."""
        return self.layers[0][0].shape[2]

    def row(self, index: int) -> PrefixState:
        """One row by itself."""
        return self.rows(index, index + 1)

    def rows(self, first: int, end: int) -> PrefixState:
        """Rows from ``first`` up to ``end``."""
        if first == 0 and end == len(self.start):
            return self
        some, whole = slice(first, end), self.layers
        layers = OneBlock(whole.kv[:, :, some]) if isinstance(whole, OneBlock) else [(k[some], v[some]) for k, v in whole]
        return PrefixState(layers, None if self.mask is None else self.mask[some], self.start[some])


@dataclass(frozen=True)
class BucketInfo:
    """One shape that the decoder is prepared for: ``rows`` x ``beams`` sequences over ``keys`` cached positions a row.

    ``captured``: sets of generation arguments that graphs are held for; ``replays``: steps replayed from them.
    """

    rows: int
    beams: int
    keys: int
    captured: int
    replays: int


@dataclass
class _Session:
    """The buffers for ``rows`` x ``beams`` sequences."""

    search: Search
    cache: StaticCache


class StaticDecoder:
    """Generates with ``gpt`` on ``device``. ``dtype``: of its linear weights (None: float32).

    ``run``: fused kernels that run the stack on the newest codes, if any; else ``stack`` does, :func:`feed` unless given. ``searches``:
    what chooses the codes.
    ``use_graphs``: replay steps from CUDA graphs; it turns False, with one log line, if a capture fails. ``poll_every``: steps queued
    before the host asks for the end, and captured as one graph if ``several``; ``ask_ahead``: questions open while it queues more. One call
    at a time.
    """

    def __init__(
        self,
        gpt: UnifiedVoice,
        device: torch.device,
        dtype: torch.dtype | None = None,
        *,
        use_graphs: bool,
        warmup_steps: int = 3,
        run: Feed | None = None,
        searches: Searches = PLAIN_SEARCHES,
        stack: Feed | None = None,
    ) -> None:
        self.gpt = gpt
        self.searches = searches
        self.device = device
        self.use_graphs = use_graphs and device.type == "cuda"
        self.run, self.stack = run, stack or feed
        self.poll_every, self.ask_ahead = (1, 0) if device.type == "cpu" else (4, 1)
        self.several = True
        self._graphs = StepGraphs(device, warmup_steps)
        self._passes: PassGraphs | None = PassGraphs(gpt, warmup_steps) if self.use_graphs else None
        release_views = weakref.WeakMethod(self._release_views)  # not a cycle, which would keep the model's weights until it is collected
        self._storage = KVStorage(device, dtype or torch.float32, lambda: (release := release_views()) and release())
        self._sessions: dict[tuple[int, int], _Session] = {}
        # Graphs draw from these generators; states are copied into them, and back where one serves all rows.
        self._generators: list[torch.Generator] = []

    # -------------------------------------------------------------------------------------------------------- the three calls

    def generate(
        self,
        prefix: Tensor,
        mask: Tensor | None,
        params: SamplingParams,
        *,
        generator: Draws = None,
        on_step: OnStep | None = None,
        forced_codes: int | None = None,
    ) -> GeneratedCodes:
        """Arguments, results and errors of :func:`indextts.engine.generate.generate`.

        ``on_step`` is called for every step, but ``poll_every`` at a time.
        """
        state = self.prefill(prefix, mask)
        return self.decode(state, params, generator=generator, on_step=on_step, forced_codes=forced_codes)

    @torch.no_grad()
    def prefill(self, prefix: Tensor, mask: Tensor | None = None) -> PrefixState:
        """Run prefixes ``(B, P, D)`` with mask ``(B, P + 1)`` from :meth:`UnifiedVoice.prefix`, and the start code, once a row."""
        with torch.autocast(self.device.type, enabled=False):
            start = self._embed(torch.full((len(prefix), 1), self.gpt.config.start_mel_token, device=self.device), 0)
            embedded, cache = torch.cat([prefix, start], dim=1), KVCache()
            if (passes := self._passes) is not None:
                try:
                    return PrefixState(*passes.prefill(embedded, mask))
                except RuntimeError as error:
                    self._give_up_graphs(error)
            hidden = self.gpt.gpt(embedded, mask, cache)
        return PrefixState(cache.layers, mask, hidden[:, -1])

    @torch.no_grad()
    def decode(
        self,
        state: PrefixState,
        params: SamplingParams,
        *,
        generator: Draws = None,
        on_step: OnStep | None = None,
        forced_codes: int | None = None,
    ) -> GeneratedCodes:
        """:meth:`generate` from where :meth:`prefill` ended; a state can be used any number of times."""
        limit = params.max_mel_tokens if forced_codes is None else forced_codes
        if not 1 <= limit <= self.gpt.max_codes:
            name = "max_mel_tokens" if forced_codes is None else "forced_codes"
            raise ValueError(f"{name} is {limit}; this model can generate 1 to {self.gpt.max_codes} codes")
        sources = list(generator) if isinstance(generator, Sequence) else [generator or _global_generator(self.device)]
        own = self._own_generators(sources, len(state.start))
        session = self._session(len(state.start), params.num_beams)
        with torch.autocast(self.device.type, enabled=False):
            steps, draws = self._run(session, state, params, limit, forced_codes is not None, own, on_step)
        if len(sources) == 1:
            sources[0].set_state(draws)
        return session.search.result(steps, params, limit)

    @torch.no_grad()
    def latents(self, state: PrefixState, codes: Tensor) -> Tensor:
        """:meth:`UnifiedVoice.latents` of codes ``(B, n)`` after the prefixes of ``state``: ``(B, n, D)`` float32.

        Conditioning, text and start code are the same in both passes and are not run again; neither is the last code, whose state
        belongs to no latent. The text must hold no start or stop ids of its own, which a prefix drops and the latent pass keeps.
        Codes beyond a row's end may be anything: the rows' earlier latents do not depend on them.
        """
        states = state.start[:, None]
        with torch.autocast(self.device.type, enabled=False):
            if codes.shape[1] > 1:
                fed = self._embed(codes[:, :-1], 1)
                states = torch.cat([states, self._after(state, fed)], dim=1)
            normed: Tensor = self.gpt.final_norm(states)
        return normed

    def _after(self, state: PrefixState, fed: Tensor) -> Tensor:
        """The stack's output at embedded codes ``(B, n, D)`` that follow the prefixes."""
        if (passes := self._passes) is not None:
            try:
                return passes.latents(state.layers, state.mask, fed)
            except RuntimeError as error:
                self._give_up_graphs(error)
        cache = KVCache()
        cache.layers = list(state.layers)
        mask = None if state.mask is None else F.pad(state.mask, (0, fed.shape[1]), value=True)
        states: Tensor = self.gpt.gpt(fed, mask, cache)
        return states

    # ---------------------------------------------------------------------------------------------------------------- gauges

    @property
    def memory_mb(self) -> float:
        """Megabytes of buffers and of the graphs' pool."""
        tensors = [x for session in list(self._sessions.values()) for x in session.search.state()]
        passes = self._passes.memory_mb if self._passes is not None else 0.0
        return self._graphs.memory_mb + passes + (self._storage.bytes + sum(x.numel() * x.element_size() for x in tensors)) / MB

    @property
    def buckets(self) -> list[BucketInfo]:
        """The shapes prepared so far, smallest first."""
        found = []
        replays = self._graphs.replays()
        for (rows, beams), session in self._sessions.items():
            for keys in session.cache.bucket_sizes:
                own = {key: count for key, count in replays.items() if isinstance(key, tuple) and key[:3] == (rows, beams, keys)}
                made = sum(key[-1] * count for key, count in own.items())  # the last part of a key: steps of the graph
                found.append(BucketInfo(rows, beams, keys, len({key[:-1] for key in own}), made))
        return sorted(found, key=lambda bucket: (bucket.rows, bucket.beams, bucket.keys))

    def clear(self) -> None:
        """Give back all buffers and graphs. Also to be called when the attention kernel changes, which graphs have recorded."""
        self._graphs.clear()
        if self._passes is not None:
            self._passes.clear()
        self._sessions.clear()
        self._storage.clear()

    # ---------------------------------------------------------------------------------------------------------------- inside

    def _run(
        self,
        session: _Session,
        prefix: PrefixState,
        params: SamplingParams,
        limit: int,
        forced: bool,
        generators: list[torch.Generator],
        on_step: OnStep | None,
    ) -> tuple[int, Tensor]:
        """Steps until the end or the limit: how many count, and the first generator's state after them."""
        search, cache = session.search, session.cache
        most_keys = cache.capacity(prefix.length, limit)
        bucket = cache.begin(prefix.layers, prefix.mask, cache.capacity(prefix.length, 1), most_keys)
        search.begin(self.gpt.logits(prefix.start), limit)
        made, draws = 0, DrawsAfter()
        asked: deque[tuple[int, Callable[[], int]]] = deque()  # steps up to which the end was asked for, and where the answer will be
        while made < limit:
            if draws.steps < limit:
                needed = cache.capacity(prefix.length, draws.steps + 1)
                if needed > bucket.keys:
                    bucket = cache.grow(bucket, needed, most_keys)
                fitting = (bucket.keys - prefix.length) // cache.beams - draws.steps
                generators = self._steps(session, bucket, params, forced, generators, min(fitting, limit - draws.steps), draws)
                asked.append((draws.steps, search.ask_end()))
                if len(asked) <= self.ask_ahead and draws.steps < limit:
                    continue
            steps, answer = asked.popleft()
            ended = answer()
            if on_step is not None:
                for step in range(made + 1, (ended or steps) + 1):
                    on_step(step)
            made = ended or steps
            if ended:
                break
        return made, draws.at(made)

    def _steps(
        self,
        session: _Session,
        bucket: Bucket,
        params: SamplingParams,
        forced: bool,
        generators: list[torch.Generator],
        most: int,
        draws: DrawsAfter,
    ) -> list[torch.Generator]:
        """``poll_every`` decode steps or ``most``, replayed if possible; returns what the next ones draw from."""
        search, cache = session.search, session.cache

        def step() -> None:
            drawing = generators[0] if len(generators) == 1 else generators
            decode_step(self.gpt, search, cache, bucket, params, forced, drawing, self.run or self.stack)

        left = min(self.poll_every, most)
        several = left if self.several and left == self.poll_every else 1
        # Graphs hold all arguments as constants but the limit.
        key = (search.rows, search.beams, bucket.keys, replace(params, max_mel_tokens=1), forced, len(generators))
        state = [*search.state(), *cache.state(bucket)]
        while left and self.use_graphs:
            try:
                after = self._graphs.run((*key, several), step, state, generators, several)
            except RuntimeError as error:
                self._give_up_graphs(error)
                generators = self._own_generators(generators, search.rows)
                break
            if after is not None:
                draws.note(several, after)
                left -= several
            several = 1
        for _ in range(left):
            step()
            draws.note(1, always(generators[0].get_state()))
        return generators

    def _give_up_graphs(self, error: RuntimeError) -> None:
        logger.warning("decoding without CUDA graphs from now on: a capture failed on %s: %s", self.device, error)
        self.use_graphs = False
        self._graphs.clear()
        self._passes = None
        self._generators = []  # they may count as being captured

    def _own_generators(self, sources: Sequence[torch.Generator], rows: int) -> list[torch.Generator]:
        """The decoder's own generators in the state of ``sources``: one, or one a row."""
        if len(sources) not in (1, rows):
            raise ValueError(f"{len(sources)} generators for {rows} rows: give one, or one a row")
        while len(self._generators) < len(sources):
            self._generators.append(torch.Generator(self.device))
        own = self._generators[: len(sources)]
        for generator, source in zip(own, sources, strict=True):
            generator.set_state(source.get_state())
        return own

    def _session(self, rows: int, beams: int) -> _Session:
        if (rows, beams) not in self._sessions:
            stack = self.gpt.config
            kind = self.searches[min(beams, 2) - 1]
            cache = StaticCache(self._storage, stack.layers, stack.heads, stack.model_dim // stack.heads, rows, beams)
            self._sessions[rows, beams] = _Session(kind(self.gpt, rows, beams, self.device), cache)
        return self._sessions[rows, beams]

    def _release_views(self) -> None:
        self._graphs.clear()
        for session in self._sessions.values():
            session.cache.forget_buckets()

    def _embed(self, codes: Tensor, first_position: int) -> Tensor:
        embedded: Tensor = self.gpt.mel_embedding(codes) + self.gpt.mel_pos_embedding(first_position, codes.shape[1])
        return embedded


def decode_step(
    gpt: UnifiedVoice,
    search: Search,
    cache: StaticCache,
    bucket: Bucket,
    params: SamplingParams,
    forced: bool,
    generator: Draws,
    run: Feed | None = None,
) -> None:
    """Choose the next code of every sequence and run the model on it: :meth:`UnifiedVoice.decode_step` on buffers.

    No argument says which step it is; that is in ``search.step``. Nothing in here may depend on a value in device memory. ``run``: what
    runs the stack, if not :func:`feed`.
    """
    x = search.enter(gpt, cache, bucket, params, forced, generator)
    search.logits.copy_((run or feed)(gpt, x, cache, bucket))
    cache.advance()


def feed(gpt: UnifiedVoice, x: Tensor, cache: StaticCache, bucket: Bucket) -> Tensor:
    """Run the stack on embeddings ``(B, b, D)`` of the newest codes: logits ``(B, b, V)`` of the next ones, float32."""
    bias = cache.bias(bucket)
    for layer, block in enumerate(gpt.gpt.h):
        assert isinstance(block, GPT2Block)
        query, key, value = (y.unflatten(-1, (cache.heads, -1)).transpose(1, 2) for y in block.attn.c_attn(block.ln_1(x)).chunk(3, dim=-1))
        mixed = cache.attend(bucket, layer, query, key, value, bias)
        x = x + block.attn.c_proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    return gpt.logits(gpt.gpt.ln_f(x))


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    module = torch.get_device_module(device)
    found: torch.Generator = module.default_generators[module.current_device() if device.index is None else device.index]
    return found
