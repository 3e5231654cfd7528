"""What the documents promise, one test for each promise, named like the sentence.

Numbers are in test_figures.py and test_quotes.py; promises about nodes, which need the host, in
host/test_promises_host.py.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lazydiff import SHIPPED, LazyDiffusion, SampleSettings, Sampling, edit, encode, load_checkpoint, sample
from lazydiff.auto_mask.attention_mask import attention_mask
from lazydiff.cache.kv_cache import KVCache, KVSettings
from lazydiff.cli import demo
from lazydiff.cli.main import parser
from lazydiff.evaluation.laboratory import WEIGHTS
from lazydiff.evaluation.regenerate import encode_everything, sample_dense
from lazydiff.pipeline.canvas import edit_canvas, encode_canvas, open_canvas
from lazydiff.pipeline.decode import to_latents
from lazydiff.sampling.noise import CanvasNoise
from lazydiff.vae.canvas_vae import WholeVAE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "workflows/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
QUICK = SampleSettings(Sampling("euler", steps=2, guidance=1.0))


@pytest.fixture(scope="module")
def shipped() -> LazyDiffusion:
    return load_checkpoint(SHIPPED)


def canvas_and_mask(side: int = 512) -> tuple[Tensor, Tensor]:
    """A noisy canvas, so that any touched pixel shows, and a mask that ends inside tokens."""
    mask = torch.zeros(1, 1, side, side)
    mask[..., 20:45, 13:51] = 1
    return torch.rand(1, 3, side, side), mask


# Edits


@pytest.mark.parametrize("blend", ["poisson", "mixed", "paste"])
@pytest.mark.parametrize("size", [(512, 512), (70, 130)], ids=["the model's size", "another size"])
def test_every_pixel_outside_the_mask_stays_bit_identical(
    shipped: LazyDiffusion, size: tuple[int, int], blend: Any
) -> None:
    image, mask = torch.rand(1, 3, *size), torch.zeros(1, 1, *size)
    mask[..., 20:45, 13:51] = 1
    results = edit(shipped, image, mask, "a red tree", [1, 2], QUICK, blend=blend)
    hole = mask.bool().expand_as(image)
    for result in results:
        assert torch.equal(result[None][~hole], image[~hole])
        assert (result[None][hole] != image[hole]).float().mean() > 0.9


def test_only_what_the_mask_covers_is_computed(shipped: LazyDiffusion) -> None:
    """Of the steps: the encoder sees the whole canvas, once."""
    image, mask = canvas_and_mask()
    touched = 2 * 4  # tokens: rows 16 to 48, columns 0 to 64
    seen: list[int] = []
    encoded: list[int] = []
    hooks = [
        shipped.decoder.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1])),
        shipped.encoder.register_forward_pre_hook(lambda module, args: encoded.append(1)),
    ]
    try:
        edit(shipped, image, mask, "a red tree", [1], QUICK)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [touched] * 2 and encoded == [1]


def test_one_context_serves_any_number_of_samplers(shipped: LazyDiffusion) -> None:
    """None of them changes it, and each result is the one with a context of its own."""
    context = encode(shipped, *canvas_and_mask())
    kept = [tensor.clone() for tensor in (context.tokens, context.canvas, context.mask)]
    for sampler in ("euler", "ancestral", "iddpm"):
        settings = SampleSettings(Sampling(sampler, steps=2, guidance=1.0))
        for prompt in ("a red tree", "a blue boat"):
            shared = sample(shipped, context, [prompt], [3], settings)
            own = sample(shipped, context._replace(tokens=kept[0].clone()), [prompt], [3], settings)
            assert torch.equal(shared, own)
    assert all(map(torch.equal, kept, (context.tokens, context.canvas, context.mask)))
    with pytest.raises(AttributeError):
        context.tokens = kept[0]  # type: ignore[misc]


def test_a_seed_means_the_same_whatever_is_masked(shipped: LazyDiffusion) -> None:
    image, small = canvas_and_mask()
    large = torch.ones_like(small)
    holes = [encode(shipped, image, mask).hole for mask in (small, large)]
    noise = [CanvasNoise([5], hole, 4).next() for hole in holes]
    assert torch.equal(noise[0], noise[1][:, holes[0].index[0]])


def test_pixels_and_latents_that_no_mask_has_touched_are_those_of_the_first_canvas(shipped: LazyDiffusion) -> None:
    """And what was sampled is not encoded again: it is in the canvas's latents as the sampler left it."""
    image, _ = canvas_and_mask()
    first = canvas = open_canvas(WholeVAE(shipped.latent), image)
    touched = torch.zeros_like(image[:, :1])
    for step in range(4):
        mask = torch.zeros_like(touched)
        mask[..., 10 + 7 * step : 30 + 7 * step, 40:67] = 1
        context = encode_canvas(shipped, canvas, mask)
        sampled = to_latents(context, sample(shipped, context, ["a red tree"], [step], QUICK))
        canvas = edit_canvas(canvas, sampled, mask)
        touched = torch.maximum(touched, mask)
        cells = torch.nn.functional.max_pool2d(mask, 8).bool().expand_as(sampled)
        assert torch.equal(canvas.latent[cells], sampled[cells])
    pixels, cells = touched.bool(), torch.nn.functional.max_pool2d(touched, 8).bool()
    assert torch.equal(canvas.image[~pixels.expand_as(image)], image[~pixels.expand_as(image)])
    outside = ~cells.expand_as(first.latent)
    assert torch.equal(canvas.latent[outside], first.latent[outside])


def test_with_an_anchor_at_every_step_the_result_is_the_plain_samplers_bit_by_bit(dense_model: LazyDiffusion) -> None:
    context = encode_everything(dense_model, *canvas_and_mask(96))
    sampling = Sampling(dense_model.config.sampling.sampler, steps=3, guidance=2.0)
    plain = sample_dense(dense_model, context, ["a red tree"], [1], sampling)
    anchored = sample_dense(dense_model, context, ["a red tree"], [1], sampling, KVCache(KVSettings(anchors=3)))
    assert torch.equal(plain, anchored)


def test_finding_a_mask_only_observes() -> None:
    """A sampling gives the same latents before and after, bit for bit."""
    model = load_checkpoint(WEIGHTS / "regenerate-image.safetensors")
    image, mask = canvas_and_mask(96)
    context, sampling = encode_everything(model, image, mask), Sampling("euler", steps=2, guidance=1.0)
    before = sample_dense(model, context, ["a red tree"], [1], sampling)
    assert attention_mask(model, image, "a red tree", words="tree").mask.shape == mask.shape
    assert torch.equal(before, sample_dense(model, context, ["a red tree"], [1], sampling))


def test_every_edit_of_the_storyboard_uses_seed_0(shipped: LazyDiffusion, monkeypatch: Any, tmp_path: Path) -> None:
    seeds: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        call = inspect.signature(edit).bind(*args, **kwargs)
        call.apply_defaults()
        seeds.append(call.arguments["seeds"])
        return call.arguments["image"]

    monkeypatch.setattr(demo, "edit", watched)
    monkeypatch.setattr(demo, "plot_time", lambda *unused: None)
    demo.demo(shipped, QUICK.sampling or Sampling(), tmp_path)
    assert [tuple(each) for each in seeds] == [(0,)] * sum(len(story.strokes) for story in demo.stories())


# The pack

# Packages of ours in what ComfyUI 0.3.64 requires; the host test of the same name reads the checkout's own list.
OFFERED = {"einops", "numpy", "pillow", "safetensors", "sentencepiece", "tqdm"}
ALONE = """
    import socket, sys

    def no_network(*unused):
        raise AssertionError("a connection is opened")

    sys.modules.update(dict.fromkeys(("diffusers", "accelerate", "matplotlib", "webdataset", "cv2", "tomli")))
    socket.socket.connect = socket.getaddrinfo = no_network
    import torch
    from lazydiff import SHIPPED, SampleSettings, Sampling, edit, load_checkpoint

    image, mask = torch.rand(1, 3, 96, 96), torch.zeros(1, 1, 96, 96)
    mask[..., :30, :30] = 1
    settings = SampleSettings(Sampling("ancestral", steps=1, guidance=1.0))
    edit(load_checkpoint(SHIPPED), image, mask, "a red tree", [1], settings)
"""


def test_an_edit_runs_offline_and_without_the_packages_of_training() -> None:
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(ALONE)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_pack_needs_no_package_that_comfyui_lacks() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)
    assert listed is not None
    names = {re.split(r"[<>=]", name)[0] for name in re.findall(r'"(.*?)"', listed[1])}
    assert names and names <= OFFERED


# The documents


def test_the_readme_is_short() -> None:
    assert 6000 <= len(README.encode()) <= 8200


def test_the_readme_shows_results_and_the_canvas() -> None:
    assert re.findall(r"!\[[^]]+\]\((.+?)\)", README) == ["docs/storyboard.png", "docs/canvas-editor.png"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_linked_file_exists(document: Path) -> None:
    text = document.read_text("utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, heading = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            assert heading in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], link


def test_every_picture_and_measurement_is_linked() -> None:
    text = "".join(document.read_text("utf-8") for document in DOCUMENTS)
    kept = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".json")}
    assert not {name for name in kept if f"{name})" not in text}


@pytest.mark.parametrize("document", DOCUMENTS[:2] + DOCUMENTS[4:], ids=lambda path: path.name)
def test_every_file_that_is_named_exists(document: Path) -> None:
    roots = r"(?:lazydiff|nodes|tests|benchmarks|workflows|docs|web|\.ci)"
    for path in re.findall(rf"(?<![\w./]){roots}/[\w./-]*[\w/]", document.read_text("utf-8")):
        assert (ROOT / path).exists(), path


def test_every_template_is_named_and_every_name_is_a_template() -> None:
    named = re.findall(r"^\| (\d+-[\w-]+) \|", README, re.M)
    templates = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert len(named) == len(set(named)) and set(named) == templates
    assert set(re.findall(r"\*(\d+-[\w-]+)\*", README)) <= templates


def test_every_node_is_named_and_every_name_is_a_node() -> None:
    """By its title, read off the schemas as text: the host test reads them as ComfyUI does."""
    named = re.findall(r"^\| ([A-Z][\w ]+) \|", (ROOT / "docs" / "nodes.md").read_text("utf-8"), re.M)
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "nodes").rglob("*.py"))
    titles = re.findall(r'node_schema\(\s+"\w+",\s+"([A-Z][\w ]+)"', sources)
    assert set(named) - {"Node"} == set(titles)


def test_five_nodes_stand_between_loaders_and_save_image() -> None:
    """In the template that the README names: besides loaders, resizing, and what Flux Fill itself wants."""
    steps = re.findall(r"^\d\. \*(.+?)\*", README.split("five nodes:")[1].split("Template")[0], re.M)
    kinds = [name.replace(" ", "") for name in steps]
    graph = json.loads((ROOT / "workflows" / "api" / "15-flux-fill.json").read_text("utf-8"))
    assert len(kinds) == 5 and set(kinds) <= {node["class_type"] for node in graph.values()}


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if "```python" in path.read_text("utf-8")])
def test_code_in_the_documents_runs(document: Path) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", document.read_text("utf-8"), re.S)
    for block in blocks:
        exec(compile(block, str(document), "exec"), names)
    if "results" in names:
        assert names["results"].shape == (3, 3, 96, 96)


def test_commands_in_the_documents_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every `python -m lazydiff` with its options, every benchmark, every `make`."""
    rules = (ROOT / "Makefile").read_text("utf-8")
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for target in re.findall(r"(?:^    |`)make (\w+)", text, re.M):
            assert re.search(rf"^{target}:", rules, re.M), target
        for command, options in re.findall(r"-m lazydiff ([\w-]+)([^`\n<|]*)", text):
            with pytest.raises(SystemExit) as ended:
                parser().parse_args([command, "--help"])
            known = capsys.readouterr().out
            assert ended.value.code == 0 and all(each in known for each in re.findall(r"--[a-z-]+", options)), command
        for script in re.findall(r"-m benchmarks\.(\w+)", text):
            assert (ROOT / "benchmarks" / f"{script}.py").is_file(), script


def test_one_version_of_torch_is_asked_for_everywhere() -> None:
    pinned = re.search(r"torch==([\d.]+)", README)
    assert pinned is not None
    for name in ("Makefile", "pyproject.toml", "CONTRIBUTING.md"):
        assert f"torch=={pinned[1]}" in (ROOT / name).read_text("utf-8")
