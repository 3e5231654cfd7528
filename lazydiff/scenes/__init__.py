"""A small procedural world of objects on simple grounds, for training and evaluating inpainting."""

from .backgrounds import BACKGROUNDS, CANVAS, HORIZONS, SURFACES, TINTS, TOKEN, Background
from .captions import EMPTY, all_captions, describe, object_captions, siblings, surface_caption, vocabulary
from .masks import object_mask
from .palette import COLOURS, TEXTURES
from .sample import KINDS, Sample, object_sample, random_sample, removal_sample
from .scene import (
    Placed,
    Scene,
    Thing,
    blank_canvas,
    footprint,
    is_clear,
    random_scene,
    random_thing,
    render,
    silhouette,
)
from .shapes import SHAPES
from .sprites import BOX, LIGHTS, SIZES

__all__ = [
    "BACKGROUNDS", "BOX", "CANVAS", "COLOURS", "EMPTY", "HORIZONS", "KINDS", "LIGHTS", "SHAPES", "SIZES", "SURFACES",
    "TEXTURES", "TINTS", "TOKEN", "Background", "Placed", "Sample", "Scene", "Thing", "all_captions", "blank_canvas",
    "describe", "footprint", "is_clear", "object_captions", "object_mask", "object_sample", "random_sample",
    "random_scene", "random_thing", "removal_sample", "render", "siblings", "silhouette", "surface_caption",
    "vocabulary",
]
