"""The release's import path for :class:`indextts.IndexTTS2`."""

from indextts.pipeline import IndexTTS2

__all__ = ["IndexTTS2"]
