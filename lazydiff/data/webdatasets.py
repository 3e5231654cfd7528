"""Webdatasets that others have made, and our own shards: a picture, and JSON that tells what is in it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.files import check_file
from .coco import check_size
from .entities import Entity, Refusal
from .shards import expand_shards, read_samples
from .sources import NOT_UTF8, UNREADABLE, Picture, SourceItem, as_caption, in_one_line, key_of, open_opaque

SUFFIXES = ("jpg", "jpeg", "png", "webp")
ANNOTATIONS = "annotations that cannot be read"
DAMAGED = "the rest of a damaged tar"


@dataclass(frozen=True)
class TarSample:
    """A sample: a picture (jpg, png or webp), `json` and perhaps a caption in `txt`.

    The JSON has a `caption` of the whole, and either `annotations` as SA-1B's with a `caption` each, or `holes` as our
    own shards'; each has a mask as COCO's run lengths or polygons.
    """

    key: str
    members: Mapping[str, bytes]

    def read(self) -> Picture:
        content = next((self.members[suffix] for suffix in SUFFIXES if suffix in self.members), None)
        if content is None:
            raise Refusal(UNREADABLE, f"its members are {', '.join(self.members)}")
        image = open_opaque(io.BytesIO(content))
        about, size = self.description(), image.size[::-1]
        try:
            if said := about.get("image"):
                check_size(size, (int(said["height"]), int(said["width"])))
            entities = [entity_of(one, "segmentation", size) for one in about["annotations"]]
            holes = [entity_of(one, "mask", size) for one in about.get("holes", ())]
            caption = in_one_line(about.get("caption")) or as_caption(self.members.get("txt", b""))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Refusal(ANNOTATIONS, repr(error)) from error
        return Picture(image, caption, entities, holes)

    def description(self) -> dict[str, Any]:
        try:
            about = json.loads(self.members.get("json", b"{}").decode())
        except UnicodeDecodeError as error:
            raise Refusal(NOT_UTF8, error) from error
        except (ValueError, RecursionError) as error:
            raise Refusal(ANNOTATIONS, error) from error
        if not isinstance(about, dict):
            raise Refusal(ANNOTATIONS, "its JSON is no object")
        return {"annotations": [], **about}


def entity_of(one: dict[str, Any], mask: str, size: tuple[int, int]) -> Entity:
    return Entity.of_segmentation(one[mask], size, in_one_line(one.get("caption")))


@dataclass(frozen=True)
class Damage:
    """The place in a tar from which on it cannot be read."""

    key: str
    reason: str

    def read(self) -> Picture:
        raise Refusal(DAMAGED, self.reason)


@dataclass(frozen=True)
class TarSamples:
    """The samples of one tar, local or behind one of webdataset's URL schemes, in their order."""

    url: str

    def __iter__(self) -> Iterator[SourceItem]:
        """Errors: `ShardError` for a tar of which nothing can be read."""
        found = False
        try:
            for key, members in read_samples(self.url):
                yield TarSample(key_of(key), members)
                found = True
        except (ValueError, EOFError, OSError) as error:
            if not found:
                raise
            yield Damage(self.url, str(error))


class WebdatasetSource:
    """Any webdataset, one output shard for each of its tars."""

    def __init__(self, pattern: str):
        """Errors: ValueError for a pattern that names nothing, one tar twice, or a local one that is not there."""
        self.urls = expand_shards(pattern)
        for url in self.urls:
            if ":" not in url:  # the others are found out about when their turn comes
                check_file(url)
        self.identity = f"webdataset {hashlib.sha256(repr(self.urls).encode()).hexdigest()[:16]}"
        self.count = None

    def units(self, pictures: int) -> Sequence[Iterable[SourceItem]]:
        return [TarSamples(url) for url in self.urls]
