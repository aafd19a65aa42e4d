"""`AttentionMaskVisualizer`, where the documentation of `transformers` imports it from."""

from llamacli.attention_visualizer import AttentionMaskVisualizer

__all__ = ["AttentionMaskVisualizer"]
