"""IndexTTS2: text and a reference voice to speech.

The recipe is :meth:`IndexTTS2._render`: prompts, then for each text segment codes, latents, mel, wave (arXiv 2506.21619). What each
step computes is in ``indextts.models``, how it is run in ``indextts.engine``.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from indextts import release as release_files
from indextts.bench import made_up_clip
from indextts.calls import Calls
from indextts.config import IndexTTSConfig
from indextts.emotion_text import EmotionClassifier
from indextts.engine.batching import Utterance, segment_generators
from indextts.engine.emitter import Emitter
from indextts.engine.reference_cache import EmotionPrompt, SpeakerPrompt
from indextts.engine.stages import Models
from indextts.engine.telemetry import SegmentRecord, Stopwatch, Telemetry
from indextts.engine.worker import Job, ProgressCallback
from indextts.models.emotion import normalize_emo_vec, scale_emotion
from indextts.recovery import CODES_PER_TEXT_TOKEN
from indextts.rendering import READING, Run
from indextts.request import Request
from indextts.text import Glossary, TextFrontend, TextNormalizer, open_tokenizer


class IndexTTS2(Calls):
    """The text-to-speech system.

    >>> tts = IndexTTS2()                                         # the release in checkpoints/, else the bundled small voice
    >>> tts.infer("reference.wav", "Hello there.", "hello.wav")   # doctest: +SKIP

    Arguments: ``cfg_path``, ``model_dir`` name a release on disk (a missing or incomplete one is a ``FileNotFoundError`` that lists the
    files). ``use_fp16`` means the best 16-bit type of the device; ``precision`` (``"fp32"``, ``"tf32"``, ``"bf16"``, ``"fp16"``) says it
    exactly. ``device`` defaults to the best present. ``use_accel=False`` keeps to the plain path. ``seed`` is the seed of every call that
    gives none of its own. ``name`` labels run records. ``low_memory``: less memory, less speed, the
    same sound. Model card: ``IndexTeam/IndexTTS-2``.
    """

    def __init__(
        self,
        cfg_path: str | Path | None = None,
        model_dir: str | Path | None = None,
        use_fp16: bool = False,
        device: str | torch.device | None = None,
        use_cuda_kernel: bool | None = None,
        use_deepspeed: bool | None = None,
        use_accel: bool = True,
        use_torch_compile: bool = False,
        use_qwen_emo: bool = True,
        *,
        precision: str = "auto",
        attention: str = "auto",
        seed: int | None = None,
        name: str | None = None,
        gpt_checkpoint_path: str | Path | None = None,
        bpe_model_path: str | Path | None = None,
        aux_paths: Mapping[str, str | Path] | None = None,
        low_memory: bool = False,
    ) -> None:
        settings = self._resolve_settings(use_fp16, device, use_deepspeed, use_accel, use_torch_compile, precision, attention, seed, name)
        release = release_files.find_release(
            model_dir, cfg_path, aux_paths, gpt_checkpoint_path=gpt_checkpoint_path, bpe_model_path=bpe_model_path
        )
        self.release: release_files.Release | None = release
        classifier = EmotionClassifier(release.qwen_dir, settings.device) if use_qwen_emo and release.qwen_dir else None
        glossary = Glossary.load(release.glossary) if release.glossary else None
        tokenizer, vocabulary = open_tokenizer(release.bpe_model, release.lexicon), release.config.gpt.number_text_tokens
        if len(tokenizer) > vocabulary:
            raise ValueError(
                f"{release.bpe_model} has {len(tokenizer)} pieces, but this GPT's vocabulary has {vocabulary}: not its tokenizer"
            )
        frontend = TextFrontend(tokenizer, TextNormalizer(glossary, language="en" if release.lexicon else None))
        self._assemble(release_files.load_models(release), frontend, classifier, settings, low_memory)
        if use_cuda_kernel is not None:  # the release's name for a fused vocoder activation
            self.set_fusion(vocoder="auto" if use_cuda_kernel else False)

    @classmethod
    def from_random(
        cls,
        size: str = "release",
        seed: int = 0,
        *,
        use_fp16: bool = False,
        device: str | torch.device | None = None,
        use_deepspeed: bool | None = None,
        use_accel: bool = True,
        use_torch_compile: bool = False,
        precision: str = "auto",
        attention: str = "auto",
        name: str | None = None,
        low_memory: bool = False,
    ) -> IndexTTS2:
        """Random weights of true size (``"release"``) or tiny (``"small"``), no files: timings are real, the sound is noise."""
        self = cls.__new__(cls)
        settings = self._resolve_settings(use_fp16, device, use_deepspeed, use_accel, use_torch_compile, precision, attention, None, name)
        self.release = None
        models, tokenizer = release_files.random_models(size, seed)
        self._assemble(models, TextFrontend(tokenizer), None, settings, low_memory)
        return self

    def _assemble(
        self, models: Models, frontend: TextFrontend, classifier: EmotionClassifier | None, settings: Any, low_memory: bool = False
    ) -> None:
        self.cfg: IndexTTSConfig = models.config
        self.model_version = models.config.version
        self.stop_mel_token = models.config.gpt.stop_mel_token
        self.sample_rate = models.config.s2mel.preprocess_params.sr
        self.frontend = frontend
        self.tokenizer, self.normalizer = frontend.tokenizer, frontend.normalizer
        self.emotion_classifier = classifier
        self.gr_progress: Any = None
        self._text_lock = threading.Lock()
        self._start_engine(models, settings)
        if low_memory:
            self.low_memory = True

    # --------------------------------------------------------------------------------------------------------- synthesis

    def infer(
        self,
        spk_audio_prompt: Any,
        text: str,
        output_path: str | Path | None = None,
        emo_audio_prompt: Any = None,
        emo_alpha: float = 1.0,
        emo_vector: Sequence[float] | None = None,
        use_emo_text: bool = False,
        emo_text: str | None = None,
        use_random: bool = False,
        interval_silence: int = 200,
        verbose: bool = False,
        max_text_tokens_per_segment: int = 120,
        stream_return: bool = False,
        quick_streaming_tokens: int = 0,
        *,
        duration_factor: float = 1.0,
        diffusion_steps: int | None = None,
        inference_cfg_rate: float | None = None,
        seed: int | None = None,
        progress: ProgressCallback | None = None,
        sample_rate: int | None = None,
        **generation_kwargs: Any,
    ) -> Any:
        """Speak ``text`` in the voice of ``spk_audio_prompt``.

        Returns ``output_path`` (16-bit PCM WAV, 22 050 Hz) if given, else ``(22050, int16 array (samples, 1))``; with ``stream_return`` a
        generator of float32 tensors (1, samples) in [-1, 1], one a segment and one a pause.

        ``spk_audio_prompt``, ``emo_audio_prompt``: path, ``(rate, array)``, or an array with ``sample_rate``; the first 15 s count.
        ``emo_vector``: 8 values >= 0 (happy, angry, sad, afraid, disgusted, melancholic, surprised, calm), scaled by ``emo_alpha``.
        ``use_emo_text``: read the emotion from ``emo_text``, or from the text itself. ``interval_silence``: ms between segments.
        ``progress(fraction, message)`` runs in the calling thread; an exception in it cancels the work. Generation keywords: ``do_sample,
        top_p, top_k, temperature, length_penalty, num_beams, repetition_penalty, max_mel_tokens, typical_sampling, typical_mass``.
        Errors: ``ValueError`` / ``FileNotFoundError`` / ``TypeError`` for bad input, before work starts.
        """
        arguments = {key: value for key, value in locals().items() if key not in ("self", "generation_kwargs")}
        request = self._request(arguments, generation_kwargs)
        if stream_return:
            return self._streamed(request, self._progress_to(progress))
        return self._run(request, progress)

    def default_voice(self) -> Any:
        """A reference clip that comes with these weights. ``ValueError`` if there is none."""
        if self.release is None:
            return made_up_clip()
        clips = self.release.voices
        if not clips:
            raise ValueError("this release has no reference clip of its own; name one of 3 to 15 seconds (--voice, spk_audio_prompt)")
        return clips[0]

    def normalize_emo_vec(self, emo_vector: Sequence[float], apply_bias: bool = True) -> list[float]:
        """Damp emotions that sound exaggerated and cap the sum at 0.8; ``infer`` does not do this by itself."""
        return normalize_emo_vec(list(emo_vector), apply_bias)

    # -------------------------------------------------------------------------------------------------------- the recipe

    def _render(self, request: Request, job: Job, emit: Callable[[Tensor], object]) -> Telemetry:
        """Emit waves and the silences between them, float32 (1, samples) in [-1, 1] on the CPU; return the record."""
        run = Run(request, job, Stopwatch(self.device), self._seed_of(request))
        record = Telemetry(seed=run.seed, text=request.text, settings=self._settings_in_force(request))
        self._before_inference()
        with self._stages.running():
            run.report(0.0, READING)
            with run.watch.stage("prompt"):
                utterances = self._recovering(lambda: self._utterances(run, record), record, READING)
            out = Emitter(emit, request.silence_samples, run.watch, record)
            for utterance in utterances:
                self._speak_one(run, utterance, record, out)
        self._finish_record(run, record, out.samples)
        return record

    def _utterances(self, run: Run, record: Telemetry, number: int = 0) -> list[Utterance]:
        """The request's segments with the voice, the emotion vector and all else that they are spoken with."""
        request = run.request
        weights = self._emotion_weights(request)
        speaker, emotion = self._prompts(request, record)
        vector = self._emotion_vector(request, speaker, emotion, weights, run.seed)
        return [
            Utterance(
                request=number,
                index=index,
                ids=tuple(segment.ids),
                speaker=speaker,
                emotion=vector,
                seed=run.seed,
                sampling=request.sampling,
                diffusion_steps=request.diffusion_steps,
                guidance=request.guidance,
                duration_factor=request.duration_factor,
                forced_codes=request.forced_codes,
            )
            for index, segment in enumerate(request.segments)
        ]

    def _segment(self, run: Run, utterance: Utterance) -> tuple[Tensor, SegmentRecord]:
        """One text segment: ids -> codes -> latents -> mel -> wave (1, samples)."""
        stages, watch = self._stages, run.watch
        index, tokens, speaker, emotion = utterance.index, len(utterance), utterance.speaker, utterance.emotion
        draws, noise = segment_generators(utterance.seed, index, self.device)
        ids = torch.tensor([utterance.ids], dtype=torch.int32, device=self.device)
        likely_codes = CODES_PER_TEXT_TOKEN * tokens

        run.report_segment(index, 0.0, "codes")
        with watch.stage("gpt", index):
            generated, prefix = stages.text_to_codes(
                ids,
                speaker,
                emotion,
                utterance.sampling,
                draws,
                on_step=lambda n: run.report_segment(index, 0.7 * min(1.0, n / likely_codes), f"{n} codes", every=n % 10 == 0),
                forced_codes=utterance.forced_codes,
            )
            codes = generated.codes[:, : int(generated.lengths[0])]
        n, hit_limit = codes.shape[1], bool(generated.hit_limit[0]) and utterance.forced_codes is None
        if n == 0:
            return torch.zeros(1, 0), SegmentRecord(index, tokens, 0, 0, 0, hit_limit)

        with watch.stage("gpt", index):
            latents = stages.codes_to_latents(ids, speaker, emotion, codes, prefix)
        with watch.stage("s2mel", index):
            mel = stages.codes_to_mel(
                codes,
                latents,
                speaker,
                steps=utterance.diffusion_steps,
                guidance=utterance.guidance,
                duration_factor=utterance.duration_factor,
                generator=noise,
                on_step=lambda step, steps: run.report_segment(index, 0.7 + 0.25 * step / steps, f"mel, step {step} of {steps}"),
            )
        run.report_segment(index, 0.95, "wave")
        with watch.stage("bigvgan", index):
            wave = stages.mel_to_wave(mel)
        return wave, SegmentRecord(index, tokens, n, mel.shape[-1], wave.shape[-1], hit_limit)

    def _prompts(self, request: Request, record: Telemetry) -> tuple[SpeakerPrompt, EmotionPrompt]:
        """Speaker and emotion prompt, from the reference cache if their clips were heard before."""
        cache, stages = self.reference_cache, self._stages
        heard, felt = ((clip.samples, clip.rate) for clip in (request.voice, request.emotion_voice))
        new = [not cache.holds("speaker", request.voice.key), not cache.holds("emotion", request.emotion_voice.key)]
        both = stages.both_prompts(heard, felt) if all(new) and stages.use_accel else None
        speaker, record.speaker_cache_hit = cache.get(
            "speaker", request.voice.key, lambda: both[0] if both else stages.speaker_prompt(*heard)
        )
        emotion, record.emotion_cache_hit = cache.get(
            "emotion", request.emotion_voice.key, lambda: both[1] if both else stages.emotion_prompt(*felt)
        )
        return speaker, emotion

    def _emotion_weights(self, request: Request) -> list[float] | None:
        """The eight emotion values in force, if any: given, or read from text by the classifier."""
        if request.emo_text is None or self.emotion_classifier is None:
            return request.emo_vector
        return scale_emotion(list(self.emotion_classifier.classify(request.emo_text).values()), request.emo_text_alpha)

    def _emotion_vector(
        self, request: Request, speaker: SpeakerPrompt, emotion: EmotionPrompt, weights: list[float] | None, seed: int
    ) -> Tensor:
        """The vector (1, D) that is added to the speaker latents."""
        merged = self._stages.merge_emotion(speaker, emotion, request.emotion_alpha)
        if weights is None:
            return merged
        rows = self._stages.emotion.random_rows(random.Random(seed)) if request.use_random else None
        return self._stages.mix_emotion(speaker, merged, weights, rows)
