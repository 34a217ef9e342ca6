"""The optimisation guide's code, block by block, as it stands there."""

from __future__ import annotations

AUTOMATIC = """
from indextts import IndexTTS2

# Automatic optimization (recommended)
tts = IndexTTS2(
    cfg_path="checkpoints/config.yaml",
    model_dir="checkpoints",
    use_fp16=True  # Enables optimal precision for your GPU
)
"""
MANUAL = """
from indextts.utils.gpu_config import GPUConfig

# Check and apply optimal settings
settings = GPUConfig.apply_optimal_settings(device_id=0)
print(f"Applied settings: {settings}")
"""
FIRST_GPU = """
tts = IndexTTS2(use_fp16=True, device="cuda:0")
"""
FLASH = """
from indextts.utils.gpu_config import GPUConfig
print(f"Flash Attention available: {GPUConfig.check_flash_attention()}")
"""
AUTOMATIC_EVICTION = """
# Happens automatically every CACHE_CHECK_INTERVAL inferences
tts.infer(text="Hello world", ...)  # Cache managed automatically
"""
MANUAL_CACHE = """
# Check cache size
cache_mb = tts._get_cache_memory_mb()
print(f"Cache size: {cache_mb:.1f} MB")

# Force cache eviction if needed
if cache_mb > 1500:  # Custom threshold
    tts._check_and_evict_cache()

# Clear all caches completely
tts._clear_all_caches()
"""
VRAM = """
from indextts.utils.resource_monitor import get_vram_summary, predict_oom_risk

# Check current VRAM usage
used_mb, total_mb, percent = get_vram_summary(device_id=0)
print(f"VRAM: {used_mb}/{total_mb} MB ({percent:.1f}%)")

# Predict OOM risk
risk = predict_oom_risk(device_id=0, threshold_percent=90)
if risk:
    print("WARNING: High OOM risk - consider clearing cache")
    tts._clear_all_caches()
"""
GRAPHS = """
from indextts import IndexTTS2

# Initialize TTS
tts = IndexTTS2(cfg_path="checkpoints/config.yaml", model_dir="checkpoints")

# Enable CUDA graphs (optional, advanced users only)
if tts.cuda_graphs_available:
    success = tts.enable_cuda_graphs(warmup_steps=3)
    if success:
        print("CUDA graphs enabled successfully")
    else:
        print("CUDA graphs failed to enable")
"""
NO_GRAPHS = """
# Disable if experiencing issues
tts.disable_cuda_graphs()
"""
PRECISION = """
# Automatic (recommended) - uses optimal precision for your GPU
tts = IndexTTS2(use_fp16=True)

# Check active precision
print(f"Active dtype: {tts.dtype}")  # torch.float16, torch.bfloat16, or None (fp32)
"""
MANUAL_PRECISION = """
import torch
from indextts import IndexTTS2

# Force FP32 (debugging, maximum accuracy)
tts = IndexTTS2(use_fp16=False)

# Check if BF16 is available
if torch.cuda.is_available():
    props = torch.cuda.get_device_properties(0)
    bf16_available = (props.major, props.minor) >= (8, 0)
    print(f"BF16 available: {bf16_available}")
"""
AMP = """
# In inference code (automatic):
with torch.amp.autocast(device.type, enabled=self.dtype is not None, dtype=self.dtype):
    output = model(input)
"""
TELEMETRY = """
# Run inference
output_path = tts.infer(
    spk_audio_prompt="reference.wav",
    text="Hello, this is a test",
    output_path="output.wav"
)

# Access telemetry data
print(f"GPT generation time: {tts.last_gpt_time:.3f}s")
print(f"S2Mel generation time: {tts.last_s2mel_time:.3f}s")
print(f"BigVGAN vocoder time: {tts.last_bigvgan_time:.3f}s")
print(f"Total inference time: {tts.last_total_time:.3f}s")
print(f"Generated audio duration: {tts.last_audio_duration:.3f}s")
print(f"Real-Time Factor (RTF): {tts.last_rtf:.3f}x")
"""
BOTTLENECK = """
# Run inference and analyze
tts.infer(text="Test", ...)

total = tts.last_total_time
gpt_pct = (tts.last_gpt_time / total) * 100
s2mel_pct = (tts.last_s2mel_time / total) * 100
bigvgan_pct = (tts.last_bigvgan_time / total) * 100

print(f"\\nTime breakdown:")
print(f"  GPT:     {gpt_pct:.1f}%")
print(f"  S2Mel:   {s2mel_pct:.1f}%")
print(f"  BigVGAN: {bigvgan_pct:.1f}%")

if gpt_pct > 60:
    print("⚠️ GPT is bottleneck - consider using Flash Attention")
elif bigvgan_pct > 40:
    print("⚠️ Vocoder is bottleneck - consider enabling CUDA graphs")
"""
GROUPING = """
from indextts.infer_v2_modded import group_sentences_by_length

# Group sentences by similar length
sentences = [["hello", "world"], ["a"], ["test", "sentence", "here"]]
batches = group_sentences_by_length(
    sentences,
    tolerance=0.2,      # 20% length difference
    max_batch_size=4    # Max 4 sentences per batch
)
print(batches)  # [[1], [0], [2]] - grouped by length
"""
COMPILE = """
tts = IndexTTS2(
    cfg_path="checkpoints/config.yaml",
    model_dir="checkpoints",
    use_torch_compile=True  # Experimental
)
"""
DEEPSPEED = """
tts = IndexTTS2(
    cfg_path="checkpoints/config.yaml",
    model_dir="checkpoints",
    use_deepspeed=True  # Explicit control
)
"""
CUDNN = """
# Happens automatically in GPUConfig.apply_optimal_settings()
import torch.backends.cudnn as cudnn
cudnn.benchmark = True  # Enable autotuner
"""
PROFILER = """
import torch
from torch.profiler import profile, ProfilerActivity

with profile(activities=[ProfilerActivity.CUDA]) as prof:
    tts.infer(text="Test", ...)

print(prof.key_averages().table(sort_by="cuda_time_total"))
"""
MEMORY = """
import torch

# Start memory profiling
torch.cuda.reset_peak_memory_stats()

# Run inference
tts.infer(text="Test", ...)

# Check peak memory
peak_mb = torch.cuda.max_memory_allocated() / 1024**2
print(f"Peak VRAM: {peak_mb:.1f} MB")
"""
BENCHMARK = """
import time
import numpy as np

# Warmup
for _ in range(3):
    tts.infer(text="Warmup run", ...)

# Benchmark
times = []
for i in range(10):
    start = time.perf_counter()
    tts.infer(text=f"Benchmark run {i}", ...)
    times.append(time.perf_counter() - start)

print(f"Mean: {np.mean(times):.3f}s")
print(f"Std: {np.std(times):.3f}s")
print(f"Min: {np.min(times):.3f}s")
print(f"Max: {np.max(times):.3f}s")
"""
COMPARISON = """
# Test with/without optimizations
configs = [
    {"use_fp16": False, "name": "FP32 baseline"},
    {"use_fp16": True, "name": "FP16 optimized"},
]

for config in configs:
    tts = IndexTTS2(**config)
    # ... run benchmark ...
    print(f"{config['name']}: {mean_time:.3f}s (RTF: {rtf:.2f}x)")
"""
DEVICE = """
# Verify device
print(f"Device: {tts.device}")  # Should be cuda:X

# Check GPU utilization
from indextts.utils.resource_monitor import ResourceMonitor
monitor = ResourceMonitor()
stats = monitor.get_gpu_stats(0)
print(f"GPU utilization: {stats.utilization_percent}%")  # Should be >70%
"""
