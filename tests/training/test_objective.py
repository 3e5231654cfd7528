"""A loss is a function of its examples: not of what shares their batch, nor of where latents and features come from."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from public_folders import NETWORK, WORDS, save_text_encoder, save_vae
from samples import tiny_model

from lazydiff.data.batch import Example, collate, prepared_example
from lazydiff.data.shards import (
    DESCRIPTION,
    LATENT,
    TEXT,
    LatentOrigin,
    ShardHeader,
    TextOrigin,
    describe_sample,
    read_shard,
    tensor_bytes,
    write_shard,
)
from lazydiff.data.stream import SceneExamples
from lazydiff.model.config import ModelConfig
from lazydiff.model.latent_space import PreparedLatents
from lazydiff.model.lazydiffusion import LazyDiffusion
from lazydiff.model.pretrained import load_text_encoder, load_vae
from lazydiff.model.text import PreparedText
from lazydiff.training.config import TrainingConfig
from lazydiff.training.objective import Objective


@pytest.mark.parametrize("preset", ["small", "small-image", "small-crop"])
@pytest.mark.parametrize("prediction", ["flow", "wiener", "iddpm"])
def test_the_loss_of_a_batch_is_the_mean_of_its_examples(preset: str, prediction: str, vocabulary: bytes) -> None:
    """However it is cut: each example draws noise, noise levels and dropped text from its own seed. What differs is the
    order of sums in fp32."""
    model = tiny_model(prediction, vocabulary, preset)  # type: ignore[arg-type]
    config = TrainingConfig(model.config, noise_levels=3, drop_text=0.5, crop=preset == "small-crop")
    objective, examples = Objective(model, config), list(islice(SceneExamples(4).read(0, 1, 0), 6))

    def loss(some: list[Example]) -> float:
        return float(objective(collate(some), 0))

    whole = loss(examples)
    assert whole == pytest.approx(np.mean([loss([example]) for example in examples]), rel=1e-5)
    assert whole == pytest.approx(np.mean([loss(examples[i : i + 2]) for i in (0, 2, 4)]), rel=1e-5)
    assert whole != pytest.approx(loss([example._replace(seed=example.seed + 1) for example in examples]), rel=1e-4)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a VAE and a text encoder."""
    torch.manual_seed(0)
    folder = save_text_encoder(tmp_path_factory.mktemp("public"))
    save_vae(folder / "vae")
    return folder


@pytest.mark.parametrize("prediction", ["iddpm", "flow"])
def test_a_batch_from_shards_has_the_loss_of_the_same_pictures_encoded_now(
    prediction: str, public: Path, tmp_path: Path
) -> None:
    """Within 1e-4: shards hold latents and features in half precision, 11 bits of each number."""
    vae, t5, rng = load_vae(public), load_text_encoder(public), np.random.default_rng(0)
    size = NETWORK.canvas
    header = ShardHeader(size, vae=LatentOrigin("", 8, 4), text=TextOrigin("", NETWORK.text_width, 120))
    now: list[Example] = []
    with write_shard(tmp_path / "a.tar", header) as shard, torch.no_grad():
        for number, caption in enumerate(WORDS[:4]):
            image = torch.from_numpy(rng.random((1, 3, size, size), np.float32) * 2 - 1)
            mask = np.zeros((size, size), bool)
            mask[4 : 20 + 8 * number, 10:40] = True
            visible = vae.encode(image * (1 - torch.from_numpy(mask).float()))  # equation 1
            mean, deviation = vae.posterior(image)
            texts = {name: t5([words])[0][0] for name, words in {"0": caption, "empty": ""}.items()}
            latents = {"mean": mean[0], "deviation": deviation[0], "visible.mean": visible}
            shard.add(str(number), {
                DESCRIPTION: describe_sample("", [(caption, mask)]), LATENT: tensor_bytes(latents),
                TEXT: tensor_bytes(texts),
            })  # fmt: skip
            exact = torch.cat((mean, deviation, visible)).numpy()
            now.append(Example(number, mask, caption, None, exact, texts["0"].numpy(), texts["empty"].numpy()))
    stored = [prepared_example(sample, 0, i) for i, sample in enumerate(read_shard(str(tmp_path / "a.tar")))]

    network = replace(NETWORK, learned_variance=prediction == "iddpm")
    config = ModelConfig(network, prediction)  # type: ignore[arg-type]
    model = LazyDiffusion(config, PreparedText(), PreparedLatents(4))
    model.initialise(0)
    torch.nn.init.normal_(model.decoder.final_layer.linear.weight, std=0.1)
    objective = Objective(model, TrainingConfig(config, noise_levels=2, drop_text=0.3))
    exact, half = (float(objective(collate(examples), 0).detach()) for examples in (now, stored))
    assert half == pytest.approx(exact, abs=1e-4) and half != exact


def test_latents_are_drawn_from_their_posterior(public: Path) -> None:
    """mean + deviation·noise, the noise from the example's seed."""
    model = LazyDiffusion(ModelConfig(NETWORK, "iddpm"), PreparedText(), PreparedLatents(4))
    objective = Objective(model, TrainingConfig(model.config))
    parts = np.random.default_rng(0).random((3, 4, 8, 8), np.float32)
    mask = np.ones((64, 64), bool)
    generator = torch.Generator().manual_seed(5)
    found = objective.canvases(collate([Example(5, mask, "", latents=parts)]), [torch.Generator().manual_seed(5)])
    expected = parts[0] + parts[1] * torch.randn(4, 8, 8, generator=generator).numpy()
    assert np.allclose(found.latent[0], expected) and np.array_equal(found.visible[0], parts[2])
