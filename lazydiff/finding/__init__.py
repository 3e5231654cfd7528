"""Masks that a diffusion model finds itself: from its attention (InstDiffEdit), from two prompts (FISEdit)."""
