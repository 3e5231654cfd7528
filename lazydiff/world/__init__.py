"""A world of things before any background, drawn at any size: what the shipped model is trained and judged on."""

from .backdrop import FAMILIES, MATERIALS, Backdrop, Camera, finish, paint_backdrop, random_backdrop, upper_or_lower
from .colours import HUES, hue_name, random_hue
from .easel import Light
from .holes import free_hole, hole_around
from .items import ITEMS, PATTERNS, Cutout, Item, PlacedItem, cast_shadow, draw_item, random_item
from .layout import other_item, place_item, random_light, random_world, side_range
from .phrases import (
    BACKGROUND,
    describe_backdrop,
    describe_item,
    equal_items,
    item_captions,
    random_item_caption,
    world_captions,
    world_words,
)  # fmt: skip
from .sample import (
    SAMPLE_KINDS,
    WorldSample,
    ask_for_item,
    ask_for_removal,
    on_plain_ground,
    random_world_sample,
)  # fmt: skip
from .scene import WorldScene, add_items, draw_scene, item_footprint, item_silhouette

__all__ = [
    "BACKGROUND", "FAMILIES", "HUES", "ITEMS", "MATERIALS", "PATTERNS",
    "SAMPLE_KINDS", "Backdrop", "Camera", "Cutout", "Item", "Light", "PlacedItem", "WorldSample", "WorldScene",
    "add_items", "ask_for_item", "ask_for_removal", "cast_shadow", "describe_backdrop", "describe_item",
    "draw_item", "draw_scene", "equal_items", "finish", "free_hole", "hole_around", "hue_name", "item_captions",
    "item_footprint", "item_silhouette", "on_plain_ground", "other_item", "paint_backdrop", "place_item",
    "random_backdrop", "random_hue", "random_item", "random_item_caption", "random_light", "random_world",
    "random_world_sample", "side_range", "upper_or_lower", "world_captions", "world_words",
]  # fmt: skip
