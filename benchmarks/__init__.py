"""Time, memory and quality, measured: `python -m benchmarks.step --output DIR`, from the repository's root."""
