"""The world the small model lives in: what training and evaluation rely on."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest

from lazydiff.scenes import (
    BOX,
    CANVAS,
    COLOURS,
    KINDS,
    LIGHTS,
    SHAPES,
    SIZES,
    TEXTURES,
    TOKEN,
    Background,
    Placed,
    Sample,
    Scene,
    Thing,
    all_captions,
    blank_canvas,
    describe,
    footprint,
    object_captions,
    random_sample,
    random_scene,
    removal_sample,
    render,
    siblings,
    silhouette,
    vocabulary,
)

COUNT = 150


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Sample]]:
    rng = np.random.default_rng(0)
    return {kind: [random_sample(rng, kind) for _ in range(COUNT)] for kind in KINDS}


def test_the_same_seed_gives_the_same_samples() -> None:
    one, two = ([random_sample(rng) for _ in range(30)] for rng in (np.random.default_rng(7), np.random.default_rng(7)))
    for a, b in zip(one, two, strict=True):
        assert (a.scene, a.caption, a.kind, a.target) == (b.scene, b.caption, b.kind, b.target)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
    assert len({s.scene for s in one}) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_well_formed(samples: dict[str, list[Sample]], kind: str) -> None:
    for s in samples[kind]:
        assert s.kind == kind
        assert s.image.shape == (CANVAS, CANVAS, 3) and s.image.dtype == np.uint8
        assert s.mask.shape == (CANVAS, CANVAS) and s.mask.dtype == np.bool_ and s.mask.any()
        assert np.array_equal(s.image, render(s.scene))
        assert (s.target is None) == (kind in ("background", "surface"))


def test_objects_are_snapped_and_do_not_overlap() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        corners = [(p.x, p.y) for p in random_scene(rng).things]
        assert all(v % TOKEN == 0 and 0 <= v <= CANVAS - BOX for corner in corners for v in corner)
        assert all(max(abs(x - u), abs(y - v)) >= BOX for (x, y), (u, v) in combinations(corners, 2))


@pytest.mark.parametrize(("shape", "size"), list(product(SHAPES, SIZES)))
def test_silhouette_is_the_drawn_object(shape: str, size: str) -> None:
    placed = Placed(Thing(shape, "red", "striped", size), 32, 40)
    covered = silhouette(placed)
    y, x = np.nonzero(covered)
    side = max(np.ptp(y), np.ptp(x)) + 1
    assert (20 <= side <= 24) if size == "large" else (15 <= side <= 19)
    assert 32 <= x.min() and x.max() < 56 and 40 <= y.min() and y.max() < 64
    assert not (covered & ~footprint(placed, "left")).any()


@pytest.mark.parametrize("light", LIGHTS)
def test_leaving_an_object_out_changes_only_its_footprint(light: str) -> None:
    things = tuple(Placed(Thing("tree", "green", "plain", "large"), x, 40) for x in (8, 32, 56))
    scene = Scene(Background("meadow", 0, 4), light, things)
    changed = (render(scene) != render(scene, without=1)).any(-1)
    assert changed[silhouette(things[1])].mean() > 0.95
    beyond = np.abs(render(scene).astype(int) - render(scene, without=1)).max(-1)[~footprint(things[1], light)]
    assert beyond.max() <= 4  # a footprint ends where the shadow takes under 1.2 %, 3 of 255, and 1 for rounding


@pytest.mark.parametrize("kind", ["object", "blank"])
def test_the_hole_covers_the_object_and_its_shadow(samples: dict[str, list[Sample]], kind: str) -> None:
    hidden = []
    for s in samples[kind]:
        assert s.target is not None
        target = s.scene.things[s.target]
        others = [p for p in s.scene.things if p != target]
        bodies = np.any([silhouette(p) for p in others], axis=0) if others else np.zeros_like(s.mask)
        assert not (silhouette(target) & ~s.mask).any()
        assert not (footprint(target, s.scene.light) & ~s.mask & ~bodies).any()
        hidden.append((bodies & s.mask).any())
    assert np.mean(hidden) < 0.1


@pytest.mark.parametrize("kind", ["object", "background", "blank"])
def test_typical_holes_are_a_tenth_of_the_canvas(samples: dict[str, list[Sample]], kind: str) -> None:
    area = [s.mask.mean() for s in samples[kind]]
    assert 0.08 < np.mean(area) < 0.16 and max(area) < 0.3


def test_background_holes_hide_no_object(samples: dict[str, list[Sample]]) -> None:
    for s in samples["background"]:
        assert s.caption == "background"
        assert not any((silhouette(p) & s.mask).any() for p in s.scene.things)


def test_removal_shows_the_scene_without_the_object() -> None:
    rng = np.random.default_rng(2)
    scene = random_scene(rng, siblings=3)
    s = removal_sample(rng, scene, 1)
    assert np.array_equal(s.image, render(scene, without=1)) and len(s.scene.things) == len(scene.things) - 1
    changed = np.abs(render(scene).astype(int) - s.image).max(-1) > 4
    bodies = np.any([silhouette(p) for p in s.scene.things], axis=0)
    assert not (changed & ~s.mask & ~bodies).any()


@pytest.mark.parametrize("least", [1, 3, 5, 8])
def test_a_scene_can_be_asked_for_siblings(least: int) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        scene = random_scene(rng, siblings=least)
        assert max(Counter(p.thing for p in scene.things).values()) >= least


def test_captions_agree_with_the_scene(samples: dict[str, list[Sample]]) -> None:
    seen = Counter()
    for s in samples["object"]:
        assert s.target is not None
        thing, same = s.scene.things[s.target].thing, siblings(s.scene, s.target)
        words = s.caption.split()
        if s.caption == "another one":
            assert 2 * len(same) > len(s.scene.things) - 1
        elif words[0] == "another":
            assert same and words == ["another", thing.shape]
        else:
            assert words[-1] == thing.shape
            assert set(words[1:-1]) <= {thing.colour, thing.texture}
            assert same or thing.texture == "plain" or thing.texture in words
            assert same or len(s.scene.things) == 1 or thing.colour in words
        seen[words[0] if s.caption != "another one" else s.caption] += 1
    assert min(seen["a"], seen["another"], seen["another one"]) > 5


def test_an_odd_object_keeps_all_of_its_words() -> None:
    kind, odd = Thing("star", "red", "plain", "large"), Thing("fish", "blue", "dotted", "large")
    scene = Scene(Background("table", 0, 3), "left", (Placed(kind, 0, 0), Placed(odd, 32, 0), Placed(kind, 64, 0)))
    assert object_captions(scene, 1) == {"full": ["a dotted blue fish"]}
    assert "another one" not in object_captions(scene, 0)  # one star against one fish: "one" of which?
    assert object_captions(scene, 0)["another"] == ["another star"]


@pytest.mark.parametrize(
    ("thing", "kept", "caption"),
    [
        (Thing("tree", "orange", "plain", "large"), (True, True), "an orange tree"),
        (Thing("tree", "orange", "striped", "large"), (True, True), "a striped orange tree"),
        (Thing("donut", "blue", "dotted", "small"), (False, True), "a blue donut"),
        (Thing("donut", "blue", "dotted", "small"), (False, False), "a donut"),
    ],
)
def test_articles(thing: Thing, kept: tuple[bool, bool], caption: str) -> None:
    assert describe(thing, *kept) == caption


def test_every_caption_is_in_the_closed_list(samples: dict[str, list[Sample]]) -> None:
    phrases, words = all_captions(), set(vocabulary())
    assert len(phrases) == len(set(phrases)) and all_captions(limit=10) == phrases[:10]
    for s in (s for kind in KINDS for s in samples[kind]):
        assert s.caption in phrases and set(s.caption.split()) <= words
    for article, following in (p.split()[:2] for p in phrases if p.startswith(("a ", "an "))):
        assert (article == "an") == (following[0] in "aeiou")


def test_surfaces_are_painted_where_the_hole_is(samples: dict[str, list[Sample]]) -> None:
    whole = 0
    for s in samples["surface"]:
        ground = render(Scene(s.scene.background, s.scene.light, ()))
        assert (ground[s.mask] != 128).any(-1).mean() > 0.99
        assert np.array_equal(ground[s.mask], s.image[s.mask])  # no object and no shadow in the hole
        whole += s.mask.all()
    assert 0 < whole < COUNT


def test_blank_canvas_is_grey() -> None:
    empty = render(Scene(Background("meadow", 1, 4, "none"), "left", ()))
    assert np.array_equal(empty, blank_canvas()) and (empty == 128).all()


def test_colours_stay_apart_when_shaded() -> None:
    """Mean RGB of drawn hearts, over lights and sizes: every two colours differ by more than 70 in any texture."""

    def mean(colour: str, texture: str) -> np.ndarray:
        pixels = []
        for light, size in product(LIGHTS, SIZES):
            placed = Placed(Thing("heart", colour, texture, size), 32, 32)
            scene = Scene(Background("paper", 0, 3), light, (placed,))
            pixels.append(render(scene)[silhouette(placed)].mean(0))
        return np.mean(pixels, 0)

    means = {(c, t): mean(c, t) for c in COLOURS for t in TEXTURES}
    apart = {
        (a, t, b, u): np.linalg.norm(means[a, t] - means[b, u])
        for a, b in combinations(COLOURS, 2)
        for t, u in product(TEXTURES, TEXTURES)
    }
    assert min(apart.values()) > 70, min(apart, key=lambda k: apart[k])


@pytest.mark.parametrize("kind", ["tree", ""])
def test_an_unknown_kind_says_which_exist(kind: str) -> None:
    with pytest.raises(ValueError, match="object, background, surface, blank"):
        random_sample(np.random.default_rng(0), kind)
