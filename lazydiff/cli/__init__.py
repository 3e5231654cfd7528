"""The command line: python -m lazydiff demo | edit | train | gates | evaluate | info."""

from .main import main

__all__ = ["main"]
