"""Tests that need a ComfyUI."""
