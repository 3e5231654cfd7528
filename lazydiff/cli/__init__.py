"""The command line: python -m lazydiff demo | edit | train | evaluate | info."""

from .main import main

__all__ = ["main"]
