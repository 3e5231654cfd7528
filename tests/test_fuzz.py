"""Some hundreds of damaged files and inputs, drawn by chance and always the same ones: each is told in one clear error.

Never another exception, never a wait without end, never a pixel changed outside the mask.
"""

from __future__ import annotations

import io
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from samples import scene, tiny_model

from lazydiff.cache.module_skip import METADATA as GATES_METADATA
from lazydiff.cache.module_skip import Gates, load_gates
from lazydiff.cli.pictures import read_image, read_mask
from lazydiff.model.checkpoint import METADATA, VOCABULARY, CheckpointError, load_checkpoint, save_checkpoint
from lazydiff.model.config import Sampling
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.pipeline.edit import edit
from lazydiff.pipeline.sample import SampleSettings
from lazydiff.sampling.schedules import flow_sigmas

SECONDS = 5  # that any of them may take at most; a sound one takes a few hundredths
# What takes a value's place: of other types, out of every range, and what JSON can say but nothing means.
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 3, 7, 97, 10**6, 10**9, 2**63, 2**64, 10**400, -(10**30), 0.5, 1e308, float("nan"),
    float("inf"), -float("inf"), "", "flow", "euler", "12", "\ud800", "x" * 10000, [], [1, 2], {}, {"a": {"b": 1}},
]  # fmt: skip


@contextmanager
def in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def sound(vocabulary: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save_checkpoint(tiny_model("flow", vocabulary, "small"), path)
    return path


def metadata(path: Path, name: str = METADATA) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()[name]))


def flipped(content: bytes, rng: random.Random, most: int = 8) -> bytes:
    """Bytes of which some are others, or missing, or there twice."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at : at + rng.randint(1, 40)]
            case 3:
                changed[at:at] = changed[at : at + rng.randint(1, 40)]
    return bytes(changed)


def loads_or_tells(load: Callable[[], Any], kind: type[ValueError], words: str = "") -> Any:
    """What was loaded, None of what was told; any other exception is the test's."""
    with in_time():
        try:
            return load()
        except kind as error:
            assert words in str(error) and "\n" not in str(error) and len(str(error)) < 1000
            return None


def places(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every value of a configuration: the table it is in, and its name."""
    for name, value in values.items():
        yield values, name
        if isinstance(value, dict):
            yield from places(value)


def test_metadata_of_a_checkpoint(sound: Path, tmp_path: Path) -> None:
    """Every setting in turn is missing, or takes several of the values above."""
    rng, tensors, path, told = random.Random(0), load_file(sound), tmp_path / "a.safetensors", 0
    count = len(list(places(metadata(sound))))
    for place in range(count):
        for value in ["gone", *rng.sample(VALUES, 8)]:
            values = metadata(sound)
            table, name = list(places(values))[place]
            if value == "gone":
                del table[name]
            else:
                table[name] = value
            save_file(tensors, path, {METADATA: json.dumps(values)})
            told += loads_or_tells(lambda: load_checkpoint(path), CheckpointError, str(path)) is None
    assert told > 0.75 * 9 * count  # some settings have a default, or mean nothing to the weights


@pytest.mark.parametrize("name", ["decoder_depth", "encoder_depth", "width", "text_width", "channels", "cell"])
def test_a_size_that_nothing_has_is_told_at_once(sound: Path, name: str, tmp_path: Path) -> None:
    for size in (10**6, 200, 2**70):
        values = metadata(sound)
        values["network"][name] = size
        save_file(load_file(sound), tmp_path / "a.safetensors", {METADATA: json.dumps(values)})
        with in_time(), pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 10**5, '{"a":' * 10**5, "9" * 10**4, "\x00", "NaN"])
def test_metadata_that_is_no_configuration(sound: Path, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(load_file(sound), path, {METADATA: text})
    assert loads_or_tells(lambda: load_checkpoint(path), CheckpointError, str(path)) is None


def test_the_container(sound: Path, tmp_path: Path) -> None:
    """Bytes of its head: what is found there is told, or changed nothing that the model is made of."""
    rng, content, path = random.Random(1), sound.read_bytes(), tmp_path / "a.safetensors"
    head = 8 + int.from_bytes(content[:8], "little")
    for _ in range(60):
        path.write_bytes(flipped(content[:head], rng) + content[head:])
        loads_or_tells(lambda: load_checkpoint(path), CheckpointError, str(path))
    for _ in range(10):
        path.write_bytes(content[: rng.randrange(len(content))])
        assert loads_or_tells(lambda: load_checkpoint(path), CheckpointError, str(path)) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(sound: Path, value: float, tmp_path: Path) -> None:
    rng, path, description = random.Random(2), tmp_path / "a.safetensors", json.dumps(metadata(sound))
    names = sorted(name for name in load_file(sound) if name != VOCABULARY)
    for name in rng.sample(names, 10):
        tensors = load_file(sound)
        tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = value
        save_file(tensors, path, {METADATA: description})
        assert loads_or_tells(lambda: load_checkpoint(path), CheckpointError, name) is None


def test_weights_of_another_shape_or_type(sound: Path, tmp_path: Path) -> None:
    rng, path, description = random.Random(3), tmp_path / "a.safetensors", json.dumps(metadata(sound))
    for name in rng.sample(sorted(load_file(sound)), 15):
        for damage in (lambda t: t[None], lambda t: t[:-1], lambda t: t.bool(), lambda t: t.to(torch.int64)):
            tensors = load_file(sound)
            tensors[name] = damage(tensors[name]).clone()
            save_file(tensors, path, {METADATA: description})
            told = loads_or_tells(lambda: load_checkpoint(path), CheckpointError, str(path))
            assert told is None or name == VOCABULARY  # a byte less of it may still be a vocabulary


def test_the_vocabulary(sound: Path, tmp_path: Path) -> None:
    """A damaged one is told, or takes prompts."""
    rng, path, description = random.Random(4), tmp_path / "a.safetensors", json.dumps(metadata(sound))
    tensors = load_file(sound)
    whole = tensors[VOCABULARY].numpy().tobytes()
    damaged = [b"", b"\x00", b"\xff" * 100, whole[:100], whole[100:], *(flipped(whole, rng) for _ in range(60))]
    for content in damaged:
        tensors[VOCABULARY] = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
        save_file(tensors, path, {METADATA: description})
        model = loads_or_tells(lambda: load_checkpoint(path), CheckpointError, str(path))
        if model is not None:
            hidden, _ = model.text(["a dotted red house", ""])
            assert hidden.isfinite().all()


def test_gates(tmp_path: Path) -> None:
    rng, path = random.Random(5), tmp_path / "a.gates.safetensors"
    steps = 4
    Gates(flow_sigmas(steps), "0123", torch.randn(steps, 4, 24), torch.rand(steps, 4), {"a": 1}).save(path)
    tensors, content = load_file(path), path.read_bytes()
    for name in metadata(path, GATES_METADATA):
        for value in VALUES:
            values = {**metadata(path, GATES_METADATA), name: value}
            (tmp_path / "b").write_bytes(save(tensors, {GATES_METADATA: json.dumps(values)}))
            gates = loads_or_tells(lambda: load_gates(tmp_path / "b"), ValueError, "b: ")
            assert gates is None or name in ("model", "settings", "format")
    description = {GATES_METADATA: json.dumps(metadata(path, GATES_METADATA))}
    for name, tensor in tensors.items():
        for damaged in (torch.full_like(tensor, torch.nan), tensor[None], tensor[1:], torch.ones(())):
            (tmp_path / "b").write_bytes(save({**tensors, name: damaged.clone()}, description))
            assert loads_or_tells(lambda: load_gates(tmp_path / "b"), ValueError, "damaged") is None
    for _ in range(40):
        (tmp_path / "b").write_bytes(flipped(content, rng))
        loads_or_tells(lambda: load_gates(tmp_path / "b"), ValueError, str(tmp_path / "b"))


@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "tiff", "webp", "bmp"])
@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.filterwarnings("ignore")
def test_pictures(form: str, read: Callable[[Path], torch.Tensor], tmp_path: Path) -> None:
    """A damaged one is told, or is a picture."""
    rng, file = random.Random(form), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(file, form)
    for _ in range(20):
        (tmp_path / "a").write_bytes(flipped(file.getvalue(), rng))
        picture = loads_or_tells(lambda: read(tmp_path / "a"), ValueError)
        assert picture is None or (picture.ndim == 4 and 0 <= picture.min() and picture.max() <= 1)


def test_images_masks_and_settings(sound: Path) -> None:
    """An edit of whatever is either told, or leaves every pixel outside its mask as it was."""
    rng, model, done = random.Random(6), load_checkpoint(sound), 0
    good, hole, caption = scene(1)
    images = [good.half(), good.double(), good.bfloat16(), good, good.int(), good[0], good[:, :1], good * 2, good - 0.1,
              good[..., :50, :70], good[..., :5, :5], good.repeat(2, 1, 1, 1), torch.full_like(good, torch.nan),
              good[..., :0], good.to(torch.complex64)]  # fmt: skip
    masks = [hole.bool(), hole.half(), hole.double(), hole, torch.zeros_like(hole), torch.ones_like(hole), hole * 255,
             -hole, hole / 0, hole[0], hole.repeat(1, 3, 1, 1), hole.repeat(2, 1, 1, 1), hole[..., :50, :70],
             hole.to(torch.complex64), hole.byte()]  # fmt: skip
    seeds: list[Any] = [[0], [1, 2], range(2), [], [2**64 - 1], [2**64], [-1], [0.5], [True], ["1"], [None]]
    prompts: list[Any] = [caption, "", "a \udcff tree", "word " * 500, "\x00", None, 3]
    settings = [{name: value} for name in ("steps", "guidance", "temperature", "shift") for value in VALUES]
    usual = (images[3], masks[3], caption, [0], {})
    cases = [
        *((image, masks[3], *usual[2:]) for image in images), *((good, mask, *usual[2:]) for mask in masks),
        *((good, hole, caption, some, {}) for some in seeds), *((good, hole, prompt, [0], {}) for prompt in prompts),
        *((good, hole, caption, [0], some) for some in settings),
        *(tuple(rng.choice(kind) for kind in (images, masks, prompts, seeds, settings)) for _ in range(150)),
    ]  # fmt: skip
    for image, mask, prompt, some, setting in cases:
        chosen = SampleSettings(Sampling(**{"sampler": "euler", "steps": 1, "guidance": 1.0, **setting}))

        def run(
            image: torch.Tensor = image, mask: torch.Tensor = mask, prompt: Any = prompt, some: Any = some,
            chosen: SampleSettings = chosen,
        ) -> torch.Tensor | None:  # fmt: skip
            if chosen.sampling is not None and type(chosen.sampling.steps) is int and chosen.sampling.steps > 10:
                chosen.sampling.check()  # told, or sound and slow
                return None
            return edit(model, image, mask, prompt, some, chosen)

        result = loads_or_tells(run, ValueError)
        if result is not None:
            done += 1
            assert result.dtype == image.dtype and result.isfinite().all() and len(result) == len(some)
            assert torch.equal(torch.where(mask > 0.5, 0, result), torch.where(mask > 0.5, 0, image).expand_as(result))
    assert done > 20


@pytest.mark.parametrize("blend", ["paste", "poisson"])
def test_a_model_whose_answer_is_no_number(sound: Path, blend: Any) -> None:
    """It used to be a black hole."""
    model: LazyDiffusion = load_checkpoint(sound)
    model.decoder.final_layer.linear.weight.fill_(3e38)
    with pytest.raises(ValueError, match="not numbers"):
        edit(model, *scene(1), blend=blend)
    model = load_checkpoint(sound)
    model.latent.scale.zero_()
    with pytest.raises(ValueError, match="not numbers|NaN or infinity"):
        edit(model, *scene(1), blend=blend)
