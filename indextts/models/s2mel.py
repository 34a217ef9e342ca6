"""S2Mel: semantic codes and GPT latents to mel (IndexTTS2, arXiv 2506.21619), with the key names of ``s2mel.pth``."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from indextts.config import S2MelConfig
from indextts.models.flow_matching import FlowMatching
from indextts.models.length_regulator import LengthRegulator


class S2Mel(nn.Module):
    """Latent projection, length regulator and flow matching."""

    # Keys of a complete file that no computation needs. Of the skip linears only the second half's are used; a pattern may
    # match those too, because a key that the module has is loaded all the same.
    UNUSED: tuple[str, ...] = (
        r"cfm\.estimator\.(input_pos|t_embedder2?\.freqs)",  # constants
        r"cfm\.estimator\.(x_embedder|cond_embedder|content_mask_embedder)\..*",
        r"cfm\.estimator\.transformer\.layers\.\d+\.skip_in_linear\..*",
        r"length_regulator\.(embedding\..*|mask_token)",
    )

    def __init__(self, config: S2MelConfig, gpt_latent_dim: int) -> None:
        super().__init__()
        self.cfm = FlowMatching(config)
        self.length_regulator = LengthRegulator(config.length_regulator)
        widths = [gpt_latent_dim, *config.gpt_layer_dims, config.length_regulator.in_channels]
        # No activation between them, in the release too: together they are one linear map of low rank.
        self.gpt_layer = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
        # Names of the modules whose weight the release's file stores as weight norm.
        self.WEIGHT_NORMED: tuple[str, ...] = (
            *(f"cfm.estimator.wavenet.{name}" for name, part in self.cfm.estimator.wavenet.named_modules() if isinstance(part, nn.Conv1d)),
            "cfm.estimator.final_layer.linear",
        )

    def content(self, code_embeddings: Tensor, latent: Tensor) -> Tensor:
        """Input of the length regulator: embedded codes (B, in_channels, N) plus projected GPT latents (B, N, D) -> (B, N, in_channels)."""
        projected: Tensor = self.gpt_layer(latent)
        return code_embeddings.transpose(1, 2) + projected
