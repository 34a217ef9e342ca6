"""The engine's switches and gauges: settings, caches, precision, graphs, telemetry attributes, closing.

:class:`EngineControls` is the half of ``IndexTTS2`` that panels and benchmarks drive; the other half is the recipe.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from indextts.engine.attention import check_attention
from indextts.engine.memory import cuda_bytes
from indextts.engine.precision import resolve_precision
from indextts.engine.reference_cache import ReferenceCache
from indextts.engine.speed_controls import SpeedControls, resolve_deepspeed
from indextts.engine.stages import Models, Stages
from indextts.engine.telemetry import Telemetry
from indextts.engine.worker import EngineWorker
from indextts.utils import resource_monitor

if TYPE_CHECKING:
    from indextts.emotion_text import EmotionClassifier
    from indextts.request import Request

logger = logging.getLogger(__name__)
MB = 1024 * 1024
STILL_NEEDED = 1.1  # buffers that have grown by more since they came back are of other calls too
LEAST_FOR_PROMPTS = 0.05  # share of the caches' limit that prompts keep where buffers take it all


@dataclass(frozen=True)
class Settings:
    """What an engine was asked for, resolved for its device."""

    device: torch.device
    precision: str
    attention: str
    use_accel: bool
    use_torch_compile: bool
    use_deepspeed: bool
    seed: int | None
    name: str | None


class EngineControls(SpeedControls):
    """Switching a loaded engine, its caches and its gauges."""

    cfg: Any
    sample_rate: int
    emotion_classifier: EmotionClassifier | None
    _loaded: Stages | None
    _worker: EngineWorker

    @staticmethod
    def _resolve_settings(
        use_fp16: bool,
        device: str | torch.device | None,
        use_deepspeed: bool | None,
        use_accel: bool,
        use_torch_compile: bool,
        precision: str,
        attention: str,
        seed: int | None,
        name: str | None,
    ) -> Settings:
        target = resolve_device(device)
        return Settings(
            device=target,
            precision=resolve_precision(precision, use_fp16, target),
            attention=check_attention(attention, target),
            use_accel=use_accel,
            use_torch_compile=use_torch_compile,
            use_deepspeed=resolve_deepspeed(use_deepspeed),
            seed=seed,
            name=name,
        )

    def _start_engine(self, models: Models, settings: Settings) -> None:
        self.settings = settings
        self.device = settings.device
        self.seed = settings.seed
        self.name = settings.name or models.config.name
        self.reference_cache = ReferenceCache()
        self.last_telemetry = Telemetry()
        self._inferences = 0
        self._given_back: tuple[float, float] | None = None  # the limit for which buffers were given back, and what came back since
        self._graph_mb = 0.0
        self._worker = EngineWorker(self)

        def put_on_device(_: object) -> Stages:
            stages = Stages(models, settings.device, settings.precision, settings.attention, use_accel=settings.use_accel)
            stages.compile_s2mel(settings.use_torch_compile)
            if settings.use_deepspeed:
                stages.set_deepspeed(True)
            return stages

        self._loaded = self._worker.call(put_on_device)

    @property
    def _stages(self) -> Stages:
        if self._loaded is None:
            raise RuntimeError("this engine is closed; make a new IndexTTS2")
        return self._loaded

    # -------------------------------------------------------------------------------------------------------------- caches

    @property
    def cache_memory_mb(self) -> float:
        """Megabytes held by cached prompts, KV buffers, graph pools and the solver's tables."""
        return self.reference_cache.memory_mb + self._stages.buffer_memory_mb

    def evict_cache(self) -> int:
        """Drop least recently used prompts until the caches are under ``MAX_CACHE_SIZE_MB``; returns how many went.

        Buffers and graphs go too if they alone exceed the limit.
        """
        from indextts import infer_v2_modded as limits

        if self._stages.buffer_memory_mb > limits.MAX_CACHE_SIZE_MB:
            self._worker.call(lambda _: self._stages.clear_buffers())
        dropped = self.reference_cache.evict(max(0.0, limits.MAX_CACHE_SIZE_MB - self._stages.buffer_memory_mb))
        if dropped:
            logger.info("evicted %d cached prompts; %.1f MB remain", dropped, self.cache_memory_mb)
        return dropped

    def _evict_between_calls(self) -> None:
        """As :meth:`evict_cache`, but buffers that came back after they were given back stay, since the calls at hand need them."""
        from indextts import infer_v2_modded as limits

        limit, held = float(limits.MAX_CACHE_SIZE_MB), self._stages.buffer_memory_mb
        if held <= limit:
            self._given_back = None
        elif self._given_back is None or self._given_back[0] != limit or held > STILL_NEEDED * self._given_back[1] > 0:
            self._given_back = limit, 0.0
        else:
            if not self._given_back[1]:
                logger.warning(
                    "buffers and graphs of these calls need %.0f MB, more than MAX_CACHE_SIZE_MB = %g; they stay, since they would be made "
                    "anew all the time. Raise the limit, or lower batch_size or num_beams", held, limit,
                )  # fmt: skip
                self._given_back = limit, held
            self.reference_cache.evict(LEAST_FOR_PROMPTS * limit)
            return
        self.evict_cache()

    def clear_caches(self) -> None:
        """Forget all prompts, buffers and graphs captured so far, and hand the memory back to the device."""

        def clear(_: object) -> None:
            self.reference_cache.clear()
            self._stages.clear_buffers()
            release_memory(self.device)

        self._worker.call(clear)

    def _get_cache_memory_mb(self) -> float:
        return self.cache_memory_mb

    def _check_and_evict_cache(self) -> None:
        self.evict_cache()

    def _clear_all_caches(self) -> None:
        self.clear_caches()

    @property
    def cache_spk_cond(self) -> torch.Tensor | None:
        """Semantic features of the current speaker prompt, (1, T, 1024)."""
        return self._latest("speaker", "features")

    @property
    def cache_emo_cond(self) -> torch.Tensor | None:
        """Semantic features of the current emotion prompt, (1, T, 1024)."""
        return self._latest("emotion", "features")

    @property
    def cache_s2mel_style(self) -> torch.Tensor | None:
        """Style vector of the current speaker prompt, (1, 192)."""
        return self._latest("speaker", "style")

    @property
    def cache_s2mel_prompt(self) -> torch.Tensor | None:
        """Condition of the current speaker prompt's frames, (1, M, 512)."""
        return self._latest("speaker", "condition")

    @property
    def cache_mel(self) -> torch.Tensor | None:
        """Mel of the current speaker prompt, (1, 80, M)."""
        return self._latest("speaker", "mel")

    def _latest(self, role: str, field: str) -> torch.Tensor | None:
        entry = self.reference_cache.latest(role)
        return None if entry is None else getattr(entry, field)

    # ------------------------------------------------------------------------------------------------------------- gauges

    @property
    def last_gpt_time(self) -> float:
        """Seconds of the GPT stage in the last inference: generation and latent pass."""
        return self.last_telemetry.gpt_s

    @property
    def last_s2mel_time(self) -> float:
        """Seconds of the S2Mel stage in the last inference."""
        return self.last_telemetry.s2mel_s

    @property
    def last_bigvgan_time(self) -> float:
        """Seconds of the vocoder in the last inference."""
        return self.last_telemetry.bigvgan_s

    @property
    def last_total_time(self) -> float:
        """Seconds of the last inference."""
        return self.last_telemetry.total_s

    @property
    def last_audio_duration(self) -> float:
        """Seconds of audio made by the last inference."""
        return self.last_telemetry.audio_s

    @property
    def last_rtf(self) -> float:
        """Real-time factor of the last inference: total time over audio duration, lower is faster."""
        return self.last_telemetry.rtf

    def _settings_in_force(self, request: Request) -> dict[str, Any]:
        return {
            "name": self.name,
            "device": str(self.device),
            **self._speed_settings(),
            "diffusion_steps": request.diffusion_steps,
            "inference_cfg_rate": request.guidance,
            "duration_factor": request.duration_factor,
            **asdict(request.sampling),
        }

    def _before_inference(self) -> None:
        from indextts import infer_v2_modded as limits

        if self._inferences and self._inferences % max(1, limits.CACHE_CHECK_INTERVAL) == 0:
            self._evict_between_calls()
        self._inferences += 1
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _after_inference(self, record: Telemetry) -> None:
        record.cache_mb = self.cache_memory_mb
        if self.device.type == "cuda":
            record.peak_vram_mb = cuda_bytes(self.device, "allocated_bytes", "peak") / MB
            needed = record.peak_vram_mb - cuda_bytes(self.device, "allocated_bytes") / MB
            resource_monitor.set_next_inference_mb(torch.cuda.current_device() if self.device.index is None else self.device.index, needed)
        self.last_telemetry = record

    # ------------------------------------------------------------------------------------------------------------ closing

    def close(self) -> None:
        """Finish queued work, end the engine's thread and free all its memory. The engine cannot be used afterwards."""
        self._worker.close()
        self.reference_cache.clear()
        if self._loaded is not None:
            self._loaded.clear_buffers()
        self._loaded = None
        self.emotion_classifier = None
        if self.device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()  # the ended thread's share, which torch would keep for ever
        release_memory(self.device)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best present. ``ValueError`` that lists those that exist if it does not."""
    present = available_devices()
    if device is None:
        return torch.device(present[0])
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"there is no device {device!r}; this machine has: {', '.join(present)}") from None
    if asked.type == "cuda" and asked.index is None:
        asked = torch.device("cuda:0")
    if str(asked) not in present and asked.type not in [name for name in present if ":" not in name]:
        raise ValueError(f"there is no device {str(device)!r}; this machine has: {', '.join(present)}")
    return asked


def available_devices() -> list[str]:
    """Names of the devices that can run the pipeline, best first."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        names.append("xpu")
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def release_memory(device: torch.device) -> None:
    """Collect what nobody holds any more and hand unused memory back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
