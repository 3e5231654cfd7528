"""python import_pack.py CHECKOUT PACK: seconds of CPU that the host spends on importing the pack, with no network."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from benchmarks.comfyui import stand_in  # noqa: E402


def no_network(*args: object, **kwargs: object) -> None:
    raise AssertionError("the pack opens a connection")


checkout, pack = sys.argv[1:]
stand_in()
sys.path[0] = checkout
os.chdir(checkout)
sys.argv = ["main.py"]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy_api.latest  # noqa: E402, F401

import nodes  # noqa: E402

socket.socket.connect = no_network  # type: ignore[method-assign, assignment]
start = time.process_time()
assert asyncio.run(nodes.load_custom_node(pack))
print("seconds", time.process_time() - start)
