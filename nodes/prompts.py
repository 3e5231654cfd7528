"""Several prompts at once."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.prompts import as_batch
from .inputs import node_schema


class LazyPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            "LazyPrompts",
            "Lazy Prompts",
            description="One prompt for each mask of a batch: all holes are generated in one pass, each by its own "
            "prompt. As many prompts as masks, or as pictures; row by row they are the same as one by one.",
            aliases=["several prompts", "many masks", "regional prompts", "prompt batch"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="One prompt per line, in the order of the masks; empty lines are left out.",
                ),
            ],
            outputs=[io.Conditioning.Output("CONDITIONING", tooltip="For LazySample, or any sampler.")],
        )

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
        return io.NodeOutput(as_batch([clip.encode_from_tokens_scheduled(clip.tokenize(line)) for line in lines]))
