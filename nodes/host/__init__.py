"""The library's model as ComfyUI knows models: a MODEL with its sampling, a VAE, a CLIP."""
