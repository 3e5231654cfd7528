"""Several masks and prompts in one pass: row by row what they are one by one, and computed once in a sampling."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lazydiff.evaluation.laboratory import SMALL

from .in_process import Pack, scene
from .tiny_models import Edit, prompt

pytestmark = pytest.mark.host

LINES = ["a red tree", "a small blue house on a hill", "a boat"]
# Sums in another order, over a few steps: see test_model.py.
CLOSE = 1e-4


class Graph:
    """A canvas with three masks of different sizes and a prompt for each."""

    def __init__(self, pack: Pack):
        self.pack = pack
        self.model, self.clip, self.vae = pack.call("LazyCheckpointLoader", SMALL.name)
        self.image = scene(3)[0].movedim(1, -1)
        self.mask = torch.zeros(3, 96, 96)
        self.mask[0, 8:40, 8:24] = self.mask[1, 50:90, 10:90] = self.mask[2, 16:24, 64:72] = 1
        (self.prompts,) = pack.call("LazyPrompts", self.clip, "\n".join(LINES))
        (self.negative,) = pack.call("CLIPTextEncode", self.clip, "")

    def context(self, rows: slice = slice(None)) -> tuple[Any, dict[str, Tensor]]:
        return self.pack.call("LazyContextEncode", self.model, self.vae, self.image, self.mask[rows], 0, 0)

    def sample(self, context: Any, positive: Any, seed: int = 5, variations: int = 1, **given: Any) -> Tensor:
        negative, model = given.get("negative", self.negative), given.get("model", self.model)
        settings = seed, 3, 2.0, "euler", "simple", 1.0, variations
        return self.pack.call("LazySample", model, context, positive, negative, *settings)[0]["samples"]


@pytest.fixture(scope="module")
def graph(pack: Pack) -> Graph:
    return Graph(pack)


@pytest.fixture(scope="module")
def alone(graph: Graph) -> dict[tuple[int, int], Tensor]:
    """Each mask with each prompt, by itself."""
    contexts = [graph.context(slice(i, i + 1))[0] for i in range(3)]
    texts = [graph.pack.call("CLIPTextEncode", graph.clip, line)[0] for line in LINES]
    return {(i, j): graph.sample(contexts[i], texts[j], 5 + i) for i in range(3) for j in range(3)}


# LazyPrompts


def test_lines_are_the_prompts_of_the_text_encoder(pack: Pack, graph: Graph) -> None:
    ((text, told),) = graph.prompts
    singles = [pack.call("CLIPTextEncode", graph.clip, line)[0][0][0] for line in LINES]
    assert text.shape[0] == 3 and text.shape[1] == max(each.shape[1] for each in singles)
    for i, single in enumerate(singles):
        length = single.shape[1]
        assert torch.equal(text[i, :length], single[0]) and not text[i, length:].any()
        assert told["attention_mask"][i].tolist() == [1] * length + [0] * (text.shape[1] - length)


def test_one_line_is_one_prompt_and_empty_lines_are_none(pack: Pack, graph: Graph) -> None:
    plain = pack.call("CLIPTextEncode", graph.clip, "a boat")[0]
    for text in ("a boat", "\n  a boat \n\n"):
        ((ours, told),) = pack.call("LazyPrompts", graph.clip, text)[0]
        assert torch.equal(ours, plain[0][0]) and "attention_mask" not in told
    assert torch.equal(pack.call("LazyPrompts", graph.clip, " \n")[0][0][0], graph.negative[0][0])


def test_batches_keep_what_belongs_to_each_prompt(pack: Pack) -> None:
    batch = pack.part("nodes.host.prompts").as_batch
    first, second = prompt("flux", 7, 1), prompt("flux", 7, 2)
    ((text, told),) = batch([first, second])
    assert torch.equal(text, torch.cat((first[0][0], second[0][0]))) and "attention_mask" not in told
    assert torch.equal(told["pooled_output"], torch.cat([each[0][1]["pooled_output"] for each in (first, second)]))
    given = torch.tensor([[1, 1, 0, 0, 0, 0, 0]])
    ((_, told),) = batch([prompt("lumina2", 7, 1, attention_mask=given), prompt("lumina2", 9, 1)])
    assert told["attention_mask"].tolist() == [[1, 1] + [0] * 7, [1] * 9]
    with pytest.raises(ValueError, match="because of extra"):
        batch([prompt("flux", 7, 1, extra=torch.ones(1, 2)), prompt("flux", 7, 1, extra=torch.ones(1, 3))])


# One pass, each mask with its prompt


@pytest.mark.parametrize("variations", [1, 2])
def test_each_mask_gets_its_prompt(graph: Graph, alone: dict[tuple[int, int], Tensor], variations: int) -> None:
    together = graph.sample(graph.context()[0], graph.prompts, variations=variations)
    assert len(together) == 3 * variations
    for i in range(3):
        assert torch.allclose(together[i : i + 1], alone[i, i], atol=CLOSE)
        assert not torch.allclose(alone[i, i], alone[i, (i + 1) % 3], atol=100 * CLOSE)  # prompts matter
        assert torch.equal(graph.sample(graph.context()[0], graph.prompts)[i], together[i]) or variations > 1


def test_one_prompt_serves_all_masks(pack: Pack, graph: Graph, alone: dict[tuple[int, int], Tensor]) -> None:
    together = graph.sample(graph.context()[0], pack.call("LazyPrompts", graph.clip, LINES[1])[0])
    assert all(torch.allclose(together[i : i + 1], alone[i, 1], atol=CLOSE) for i in range(3))


def test_one_mask_with_a_prompt_for_each_picture(graph: Graph, alone: dict[tuple[int, int], Tensor]) -> None:
    together = graph.sample(graph.context(slice(0, 1))[0], graph.prompts, variations=3)
    assert torch.allclose(together[:1], alone[0, 0], atol=CLOSE)
    for i in (1, 2):  # of the seeds that follow
        text = graph.pack.call("CLIPTextEncode", graph.clip, LINES[i])[0]
        expected = graph.sample(graph.context(slice(0, 1))[0], text, seed=5 + i)
        assert torch.allclose(together[i : i + 1], expected, atol=CLOSE)


def test_attached_samplers_and_regions(pack: Pack, graph: Graph) -> None:
    """A stock sampler, and the prompts in two halves that together are the whole."""
    context, latent = graph.context()
    (model,) = pack.call("LazyContextApply", graph.model, context)
    left = torch.zeros(1, 96, 96)
    left[..., :48] = 1
    halves = [pack.call("ConditioningSetMask", graph.prompts, m, "default", 1.0)[0] for m in (left, 1 - left)]
    (both,) = pack.call("ConditioningCombine", *halves)
    plain, halved = (
        pack.call("KSampler", model, 1, 3, 2.0, "euler", "simple", each, graph.negative, latent, 1.0)[0]["samples"]
        for each in (graph.prompts, both)
    )
    assert torch.allclose(plain, halved, atol=CLOSE)
    (second,) = pack.call("LazyPrompts", graph.clip, "\n".join((LINES[0], LINES[0], LINES[2])))
    other = pack.call("KSampler", model, 1, 3, 2.0, "euler", "simple", second, graph.negative, latent, 1.0)[0]
    changed = [(a - b).abs().max() for a, b in zip(other["samples"], plain, strict=True)]
    assert changed[0] <= CLOSE and changed[1] > 100 * CLOSE and changed[2] <= CLOSE


def test_negative_prompts_for_each_mask(pack: Pack, graph: Graph) -> None:
    """The same words in every line are the one negative prompt."""
    (same,) = pack.call("LazyPrompts", graph.clip, "a boat\na boat\na boat")
    (one,) = pack.call("CLIPTextEncode", graph.clip, "a boat")
    context, _ = graph.context()
    results = [graph.sample(context, graph.prompts, negative=negative) for negative in (same, one)]
    assert torch.allclose(*results, atol=CLOSE)


@pytest.mark.parametrize(("masks", "lines", "variations"), [(3, 2, 1), (1, 3, 1), (2, 3, 3), (3, 2, 2)])
def test_other_numbers_are_refused_in_words(
    pack: Pack, graph: Graph, masks: int, lines: int, variations: int
) -> None:
    context, _ = graph.context(slice(0, masks))
    (prompts,) = pack.call("LazyPrompts", graph.clip, "\n".join(LINES[:lines]))
    pictures = masks * variations
    with pytest.raises(ValueError, match=f"{lines} prompts for {masks} masks and {pictures} pictures"):
        graph.sample(context, prompts, variations=variations)


# Once in a sampling


def counted(graph: Graph, context: Any, **given: Any) -> tuple[Tensor, Counter[str]]:
    """The result, how often prompts were embedded and how often the model was called."""
    calls: Counter[str] = Counter()
    decoder = graph.model.model.diffusion_model
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: calls.update([name]))
        for name, module in {"text": decoder.y_embedder, "step": decoder}.items()
    ]
    try:
        return graph.sample(context, given.pop("positive", graph.prompts), **given), calls
    finally:
        for hook in hooks:
            hook.remove()


def test_keys_of_prompts_are_computed_once(graph: Graph) -> None:
    context, _ = graph.context()
    expected, calls = counted(graph, context, seed=5)
    assert calls == {"text": 1, "step": 3}
    again, calls = counted(graph, context, seed=5)
    assert calls == {"text": 1, "step": 3} and torch.equal(again, expected)  # nothing is left from the last sampling


def test_weights_of_a_prompt_are_those_of_its_keys(pack: Pack, graph: Graph) -> None:
    """A LoRA of the positive prompt alone, which also changes how the model reads prompts, gives what two models give:
    keys are neither kept nor taken from the other prompt."""
    asyncio = pytest.importorskip("asyncio")
    import folder_paths
    from safetensors.torch import save_file

    extra = pack.host.__file__.replace("nodes.py", "comfy_extras/nodes_hooks.py")
    asyncio.run(pack.host.load_custom_node(extra))
    weight = "diffusion_model.blocks.1.cross_attn.kv_linear"
    lora = {f"{weight}.lora_up.weight": torch.full((384, 2), 0.1), f"{weight}.lora_down.weight": torch.randn(2, 192)}
    folder = folder_paths.get_output_directory()
    save_file(lora, f"{folder}/hook.safetensors")
    folder_paths.add_model_folder_path("loras", folder)
    context, _ = graph.context()
    (hooks,) = pack.call("CreateHookLoraModelOnly", "hook.safetensors", 1.0)
    positive = pack.call("ConditioningSetProperties", graph.prompts, "default", 1.0, hooks=hooks)[0]
    hooked, calls = counted(graph, context, positive=positive)
    assert calls["text"] > 2
    (patched,) = pack.call("LoraLoaderModelOnly", graph.model, "hook.safetensors", 1.0)
    both = graph.sample(context, graph.prompts, model=patched)
    plain = graph.sample(context, graph.prompts)
    assert not torch.allclose(hooked, plain, atol=100 * CLOSE) and not torch.allclose(hooked, both, atol=100 * CLOSE)
    everywhere = pack.call("ConditioningSetProperties", graph.negative, "default", 1.0, hooks=hooks)[0]
    assert torch.allclose(graph.sample(context, positive, negative=everywhere), both, atol=CLOSE)


def test_another_nodes_prompt_is_read_anew(graph: Graph) -> None:
    """A wrapper that changes the prompt in each call is heard in each call."""
    context, _ = graph.context()

    def wrapper(apply: Any, args: dict[str, Any]) -> Tensor:
        given = dict(args["c"])
        given["c_crossattn"] = given["c_crossattn"] * 0.5
        return apply(args["input"], args["timestep"], **given)

    model = graph.model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    changed, calls = counted(graph, context, model=model)
    assert calls["text"] == calls["step"]
    halved = [[[text * 0.5, told] for text, told in each] for each in (graph.prompts, graph.negative)]
    expected = graph.sample(context, halved[0], negative=halved[1])
    assert torch.allclose(changed, expected, atol=CLOSE)


class Questions(TorchDispatchMode):
    """Counts what a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"):
            self.asked[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def test_steps_ask_the_device_for_nothing(graph: Graph) -> None:
    """Three masks of different sizes, three prompts, with guidance; the first step lays out what the others use."""
    context, _ = graph.context()
    steps: list[Counter[str]] = []

    def watch(apply: Any, args: dict[str, Any]) -> Tensor:
        with Questions() as questions:
            out = apply(args["input"], args["timestep"], **args["c"])
        steps.append(questions.asked)
        return out

    model = graph.model.clone()
    model.set_model_unet_function_wrapper(watch)
    assert torch.equal(graph.sample(context, graph.prompts, model=model), graph.sample(context, graph.prompts))
    with Questions() as questions:
        assert torch.ones(1).item()
    assert questions.asked and len(steps) == 3 and not steps[1] and not steps[2]


# Stock models


def stock(pack: Pack, positive: Any) -> Edit:
    edit = Edit(pack, "flux", rows=2)
    other = torch.roll(edit.mask, 60, -1)
    edit.mask = torch.cat((edit.mask, other))
    edit.positive = positive
    return edit


def test_prompts_of_one_length_on_a_stock_model(pack: Pack) -> None:
    """Every step computes everything: row by row the stock sampler's results, each with its prompt."""
    singles = [prompt("flux", 9, seed) for seed in (1, 2)]
    edit = stock(pack, pack.part("nodes.host.prompts").as_batch(singles))
    lazy = edit.attach(edit.context(anchors=99))
    together = edit.sample(lazy)
    for i, single in enumerate(singles):
        edit.positive = single
        expected = edit.sample()[i][edit.hole[i]]
        assert torch.allclose(together[i][edit.hole[i]], expected, atol=CLOSE)


def test_prompts_that_a_stock_model_would_mistake_are_refused(pack: Pack) -> None:
    batch = pack.part("nodes.host.prompts").as_batch
    edit = stock(pack, batch([prompt("flux", 9, 1), prompt("flux", 7, 2)]))
    with pytest.raises(ValueError, match="of different lengths"):
        edit.sample(edit.attach(edit.context()))
    edit.positive = batch([prompt("flux", 9, seed) for seed in (1, 2, 3)])
    with pytest.raises(ValueError, match="3 prompts for 2 masks and 2 pictures"):
        edit.sample(edit.attach(edit.context()))
