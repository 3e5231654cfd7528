"""The world that the shipped model is trained and judged on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from lazydiff.world import (
    BACKGROUND,
    FAMILIES,
    HUES,
    ITEMS,
    MATERIALS,
    SAMPLE_KINDS,
    Backdrop,
    Item,
    Light,
    PlacedItem,
    WorldSample,
    WorldScene,
    ask_for_removal,
    cast_shadow,
    describe_item,
    draw_item,
    draw_scene,
    equal_items,
    hue_name,
    item_captions,
    item_footprint,
    item_silhouette,
    on_plain_ground,
    random_backdrop,
    random_hue,
    random_world,
    random_world_sample,
    side_range,
    upper_or_lower,
    world_captions,
    world_words,
)

SIZE, COUNT = 96, 30
LIGHT = Light(-0.7, 0.8)
WALL = Backdrop("wall", ("white",), 0.5, 1)


def item(kind: str = "tree", name: str = "red", texture: str = "plain", seed: int = 5) -> Item:
    return Item(kind, name, random_hue(np.random.default_rng(0), name), texture, seed)


def row(*items: Item) -> WorldScene:
    placed = tuple(PlacedItem(one, 0.12 + 0.25 * i, 0.6, 0.2) for i, one in enumerate(items))
    return WorldScene(WALL, LIGHT, placed)


@pytest.fixture(scope="module")
def samples() -> dict[str, list[WorldSample]]:
    rng = np.random.default_rng(0)
    return {kind: [random_world_sample(rng, SIZE, kind) for _ in range(COUNT)] for kind in SAMPLE_KINDS}


def test_the_same_seed_gives_the_same_samples() -> None:
    one, two = ([random_world_sample(rng, SIZE) for _ in range(12)] for rng in map(np.random.default_rng, (7, 7)))
    for a, b in zip(one, two, strict=True):
        assert (a.scene, a.caption, a.kind, a.target) == (b.scene, b.caption, b.kind, b.target)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
    assert len({s.scene for s in one}) == 12


def test_a_scene_is_the_same_at_every_size() -> None:
    """Drawn at 256 px, and at 512 px and averaged: what differs is how fine detail is sampled, and a rounding of 0.5.
    The sensor's grain and JPEG's blocks belong to pixels, not to the scene."""
    rng, differences = np.random.default_rng(3), []
    for _ in range(8):
        scene = random_world(rng)
        camera = replace(scene.backdrop.camera, grain=0, jpeg=0)
        scene = replace(scene, backdrop=replace(scene.backdrop, camera=camera))
        large = draw_scene(scene, 512).astype(np.float32).reshape(256, 2, 256, 2, 3).mean((1, 3))
        differences.append(np.abs(large - draw_scene(scene, 256)).mean())
    assert np.mean(differences) < 1.5 and max(differences) < 5


def test_a_sample_is_the_same_at_every_size_from_512_on() -> None:
    """The same caption for the same scene, and holes that differ along their border alone."""
    for seed in range(4):
        small, large = (random_world_sample(np.random.default_rng(seed), size) for size in (512, 1024))
        assert (small.scene, small.caption, small.target) == (large.scene, large.caption, large.target)
        share = large.mask.reshape(512, 2, 512, 2).mean((1, 3))
        assert np.abs(share - small.mask).sum() < 0.3 * small.mask.sum()  # of the smallest holes the border is much


@pytest.mark.parametrize("kind", SAMPLE_KINDS)
def test_samples_are_well_formed(samples: dict[str, list[WorldSample]], kind: str) -> None:
    for s in samples[kind]:
        assert s.kind == kind
        assert s.image.shape == (SIZE, SIZE, 3) and s.image.dtype == np.uint8
        assert s.mask.shape == (SIZE, SIZE) and s.mask.dtype == np.bool_ and s.mask.any()
        assert np.array_equal(s.image, draw_scene(s.scene, SIZE))
        assert (s.target is None) == (kind not in ("object", "blank"))


@pytest.mark.parametrize(("kind", "support"), list(product(ITEMS, ("wall", "ground"))))
def test_an_item_changes_only_its_footprint(kind: str, support: str) -> None:
    """All of its body shows, near its box; beyond its footprint a shadow takes under 1.2 %, 3 of 255, and rounding."""
    placed = PlacedItem(item(kind, texture="striped"), 0.5, 0.7, 0.4, support)
    scene = WorldScene(WALL, LIGHT, (placed,))
    change = np.abs(draw_scene(scene, 128).astype(int) - draw_scene(scene, 128, without=0)).max(-1)
    body, footprint = item_silhouette(placed, LIGHT, 128), item_footprint(placed, LIGHT, 128)
    assert (change[body] > 0).mean() > 0.9 and change[~footprint].max() <= 4
    y, x = np.nonzero(body)
    assert 0.75 * 0.4 * 128 < max(np.ptp(x), np.ptp(y)) < 1.1 * 0.4 * 128
    assert abs(x.mean() - 64) < 10 and abs(y.max() - 0.7 * 128) < 0.1 * 0.4 * 128
    assert not (body & ~footprint).any()


def test_a_cutout_over_the_empty_scene_is_the_scene() -> None:
    """What a search for the best fit relies on: shadow, then body, on a background without grain."""
    placed = PlacedItem(item("mug"), 0.4, 0.8, 0.3)
    scene = WorldScene(WALL, LIGHT, (placed,))
    image = draw_scene(scene, SIZE, without=0).astype(np.float32) / 255
    window, dark = cast_shadow(placed, LIGHT, SIZE).window(SIZE)
    image[window] *= 1 - dark
    window, body = draw_item(placed, LIGHT, SIZE).window(SIZE)
    image[window] = image[window] * (1 - body[..., 3:]) + body[..., :3]
    assert np.abs(image * 255 - draw_scene(scene, SIZE)).max() <= 1.01  # the background was rounded once more


@pytest.mark.parametrize("kind", ["object", "blank"])
def test_the_hole_covers_what_is_seen_of_the_item_and_its_shadow(
    samples: dict[str, list[WorldSample]], kind: str
) -> None:
    for s in samples[kind]:
        assert s.target is not None
        light, own = s.scene.light, s.scene.items[s.target]
        others = [item_silhouette(p, light, SIZE) for i, p in enumerate(s.scene.items) if i != s.target]
        bodies = np.any(others, axis=0) if others else np.zeros_like(s.mask)
        assert not (item_footprint(own, light, SIZE) & ~s.mask & ~bodies).any()
        nearer = others[s.target :]
        hidden = np.any(nearer, axis=0) if nearer else np.zeros_like(s.mask)
        assert not (item_silhouette(own, light, SIZE) & ~hidden & ~s.mask).any()


@pytest.mark.parametrize("kind", ["object", "background", "scenery"])
def test_holes_are_of_all_sizes(kind: str) -> None:
    rng = np.random.default_rng(0)
    area = [random_world_sample(rng, 512, kind).mask.mean() for _ in range(COUNT)]
    assert min(area) < 0.03 and max(area) > 0.12 and 0.03 < np.mean(area) < 0.2 and max(area) < 0.6


def test_holes_in_scenery_hide_no_item(samples: dict[str, list[WorldSample]]) -> None:
    for s in samples["scenery"]:
        assert s.caption == BACKGROUND
        assert not any((item_silhouette(p, s.scene.light, SIZE) & s.mask).any() for p in s.scene.items)


def test_a_removal_reveals_no_whole_item(samples: dict[str, list[WorldSample]]) -> None:
    """A hole may hide a part of what stood behind the removed item, never most of it."""
    for s in samples["background"]:
        for p in s.scene.items:
            body = item_silhouette(p, s.scene.light, SIZE)
            assert (body & s.mask).sum() < 0.7 * body.sum()


@pytest.mark.parametrize("kind", SAMPLE_KINDS)
def test_on_plain_ground_a_task_is_the_same(samples: dict[str, list[WorldSample]], kind: str) -> None:
    """Around what things change is one colour; what asks for grounds stays as it was."""
    for s in samples[kind][:8]:
        plain = on_plain_ground(np.random.default_rng(0), s)
        if kind in ("scenery", "surface"):
            assert plain is s
            continue
        assert (plain.scene.items, plain.caption) == (s.scene.items, s.caption)
        assert (plain.kind, plain.target) == (kind, s.target)
        assert np.array_equal(plain.image, draw_scene(plain.scene, SIZE)) and np.array_equal(plain.mask, s.mask)
        things = np.any([item_footprint(p, s.scene.light, SIZE) for p in s.scene.items] or [s.mask & False], 0)
        around = plain.image[~things].astype(int)
        assert not len(around) or np.ptp(around, axis=0).max() <= 6  # less of a thing than that is not to be seen


def test_removal_shows_the_scene_without_the_item() -> None:
    rng = np.random.default_rng(2)
    for _ in range(8):
        scene = random_world(rng, least=2)
        s = ask_for_removal(rng, scene, 1, SIZE)
        assert np.array_equal(s.image, draw_scene(scene, SIZE, without=1)) and s.caption == BACKGROUND
        changed = np.abs(draw_scene(scene, SIZE).astype(int) - s.image).max(-1) > 4
        bodies = np.any([item_silhouette(p, scene.light, SIZE) for p in s.scene.items], axis=0)
        assert not (changed & ~s.mask & ~bodies).any()


@pytest.mark.parametrize(
    ("size", "pixels"),
    [(1024, (48, 440)), (512, (24, 220)), (384, (24, 220)), (192, (24, 115.2)), (96, (18.24, 57.6))],
)
def test_things_keep_their_pixels_in_smaller_pictures(size: int, pixels: tuple[float, float]) -> None:
    assert tuple(size * side for side in side_range(size)) == pytest.approx(pixels)


@pytest.mark.parametrize(("least", "size"), [(1, 512), (3, 512), (6, 512), (1, 192), (3, 64)])
def test_scenes_hold_what_they_promise(least: int, size: int) -> None:
    rng = np.random.default_rng(3)
    smallest, largest = side_range(size)
    for _ in range(40):
        scene = random_world(rng, least, size)
        assert max(Counter(p.item for p in scene.items).values()) >= least
        for p in scene.items:
            assert 0.9 * smallest < p.side <= largest and 0 < p.x < 1 and 0 < p.y <= 1
            assert p.support == "air" or not scene.backdrop.receding or p.y > scene.backdrop.horizon
        if scene.backdrop.receding:  # nearer is lower and, of equal things, larger
            standing = [p for p in scene.items if p.support == "ground"]
            assert all(a.y <= b.y for a, b in zip(scene.items, scene.items[1:], strict=False))
            for a, b in zip(standing, standing[1:], strict=False):
                assert a.item != b.item or a.side <= b.side + 0.01 * (abs(a.y - b.y) < 0.05)


def test_scenes_overlap_sometimes_and_mix_kinds_often() -> None:
    rng = np.random.default_rng(4)
    scenes = [random_world(rng) for _ in range(150)]
    assert 0.25 < np.mean([len({p.item.kind for p in s.items}) > 1 for s in scenes]) < 0.7
    hidden = 0
    for scene in scenes:
        covered = [item_silhouette(p, scene.light, 64) for p in scene.items]
        hidden += any((a & b).any() for i, a in enumerate(covered) for b in covered[:i])
    assert 5 < hidden < 75


def test_captions_agree_with_the_scene(samples: dict[str, list[WorldSample]]) -> None:
    seen: Counter[str] = Counter()
    for s in samples["object"]:
        assert s.target is not None
        own, same = s.scene.items[s.target].item, equal_items(s.scene, s.target)
        words = s.caption.split()
        if s.caption == "another one":
            assert 2 * len(same) > len(s.scene.items) - 1
        elif words[0] == "another":
            assert same and words[1:] in ([own.kind], [own.name, own.kind])
        elif words[-1] == "one":
            assert words[1] == own.name and not same
        else:
            assert words[-1] == own.kind and set(words[1:-1]) <= {own.name, own.texture}
            assert same or own.texture == "plain" or own.texture in words
            assert same or len(s.scene.items) == 1 or own.name in words
        seen[words[0] if s.caption != "another one" else s.caption] += 1
    assert seen["another"] and seen["another one"]


def test_captions_ask_for_one_of_several_kinds() -> None:
    mug, ball, fish = item("mug"), item("ball", "blue"), item("fish", "green", "dotted")
    forms = item_captions(row(mug, mug, ball, ball), 0)
    assert forms["another"] == ["another mug", "another red mug"] and "another one" not in forms
    assert item_captions(row(mug, mug, mug, ball), 0)["another one"] == ["another one"]
    assert item_captions(row(mug, mug, fish), 2) == {"full": ["a dotted green fish"]}
    other = replace(mug, name="orange", colour=random_hue(np.random.default_rng(1), "orange"))
    assert item_captions(row(mug, mug, other), 2) == {"full": ["an orange mug"], "one": ["an orange one"]}
    assert "one" not in item_captions(row(mug, ball, other), 2)
    assert item_captions(row(mug, mug, other, other, other), 0)["another"] == ["another red mug"]


@pytest.mark.parametrize(
    ("thing", "kept", "caption"),
    [
        (item("tree", "orange"), (True, True), "an orange tree"),
        (item("umbrella", "blue", "striped"), (True, True), "a striped blue umbrella"),
        (item("apple", "blue", "dotted"), (False, True), "a blue apple"),
        (item("apple", "blue", "dotted"), (False, False), "an apple"),
    ],
)
def test_items_are_described(thing: Item, kept: tuple[bool, bool], caption: str) -> None:
    assert describe_item(thing, *kept) == caption


def test_every_caption_is_in_the_closed_list(samples: dict[str, list[WorldSample]]) -> None:
    phrases, words = world_captions(), set(world_words())
    assert len(phrases) == len(set(phrases))
    for s in (s for kind in SAMPLE_KINDS for s in samples[kind]):
        assert s.caption in phrases and set(s.caption.split()) <= words
    assert {*ITEMS, *HUES, *MATERIALS} <= words
    for article, following in (p.split()[:2] for p in phrases if p.startswith(("a ", "an "))):
        assert (article == "an") == (following[0] in "aeiou")


def test_surfaces_are_painted_where_the_hole_is(samples: dict[str, list[WorldSample]]) -> None:
    areas = []
    for s in samples["surface"]:
        empty = draw_scene(replace(s.scene, items=()), SIZE)
        assert np.array_equal(empty[s.mask], s.image[s.mask])  # no item and no shadow in the hole
        whole = replace(s.scene.backdrop, painted="all")
        assert np.array_equal(draw_scene(WorldScene(whole, s.scene.light, ()), SIZE)[s.mask], s.image[s.mask])
        areas.append(s.mask.mean())
    assert min(areas) < 0.3 and max(areas) == 1


@pytest.mark.parametrize("part", ["none", "upper", "lower"])
def test_what_is_not_painted_is_the_empty_canvas(part: str) -> None:
    backdrop = replace(random_backdrop(np.random.default_rng(5), ("meadow",)), painted=part)
    image = draw_scene(WorldScene(backdrop, LIGHT, ()), SIZE)
    shown = upper_or_lower(backdrop, part, SIZE)
    assert (image[~shown] == 128).all() and (part == "none" or image[shown].std() > 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_background_can_be_drawn(family: str) -> None:
    rng = np.random.default_rng(6)
    pictures = [draw_scene(WorldScene(random_backdrop(rng, (family,)), LIGHT, ()), SIZE) for _ in range(2)]
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("name", HUES)
def test_colours_have_the_names_of_their_regions(name: str) -> None:
    """Also where an item of that colour is drawn: its mean over a shaded heart keeps the name."""
    rng = np.random.default_rng(7)
    for _ in range(50):
        assert hue_name(np.array(random_hue(rng, name))) == name
    drawn = draw_item(PlacedItem(item("heart", name), 0.5, 0.9, 0.8), LIGHT, SIZE).pixels
    assert hue_name(drawn[drawn[..., 3] > 0.99][:, :3].mean(0)) == name


def test_an_unknown_kind_says_which_exist() -> None:
    with pytest.raises(ValueError, match="object, background, scenery, surface, blank"):
        random_world_sample(np.random.default_rng(0), SIZE, "tree")
