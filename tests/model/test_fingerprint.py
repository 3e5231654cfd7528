"""The fingerprint: what it names, and what never changes it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from samples import scene

from lazydiff.cache.module_skip import load_gates
from lazydiff.evaluation.laboratory import GATES, SMALL
from lazydiff.model.checkpoint import load_checkpoint, save_checkpoint
from lazydiff.model.config import NetworkConfig
from lazydiff.model.lazydiffusion import FINGERPRINTED, LazyDiffusion, fingerprint
from lazydiff.pipeline.encode import encode
from lazydiff.pipeline.sample import sample


def of(model: LazyDiffusion, **changes: object) -> str:
    """Found anew, of other sizes or another prediction than the model's."""
    network = replace(model.config.network, **{k: v for k, v in changes.items() if k != "prediction"})  # type: ignore[arg-type]
    prediction = changes.get("prediction", model.config.prediction)
    return fingerprint(replace(model.config, network=network, prediction=prediction), model.encoder.state_dict())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_no_cast_changes_it(model: LazyDiffusion, dtype: torch.dtype) -> None:
    cast = deepcopy(model)
    expected = cast.fingerprint
    assert cast.to(dtype).fingerprint == expected == of(model)
    assert of(deepcopy(model).half()) == expected  # even where it was not asked for before


def test_a_cast_decoder_takes_contexts_made_before(model: LazyDiffusion) -> None:
    cast = deepcopy(model)
    context = encode(model, *scene(1)[:2])
    cast.decoder.bfloat16()
    assert sample(cast, context, ["a tree"], [0]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_file_keeps_it(model: LazyDiffusion, dtype: torch.dtype, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "model.safetensors", dtype)
    assert load_checkpoint(tmp_path / "model.safetensors").fingerprint == model.fingerprint


def test_every_size_counts_and_nothing_else(model: LazyDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither how a configuration is written out, nor a size that a later version adds, nor name and sampling."""
    expected = of(model)
    assert set(FINGERPRINTED) == {field.name for field in fields(NetworkConfig)}
    for name in FINGERPRINTED:
        assert of(model, **{name: getattr(model.config.network, name) + 1}) != expected
    assert of(model, prediction="other") != expected

    @dataclass(frozen=True)
    class Later(NetworkConfig):
        added: int = 3

        def __repr__(self) -> str:
            raise AssertionError("a fingerprint is not made of a repr")

    later = Later(**vars(model.config.network))
    config = replace(model.config, network=later, name="another", sampling=replace(model.config.sampling, steps=99))
    assert fingerprint(config, model.encoder.state_dict()) == expected


def test_every_weight_of_the_encoder_counts(model: LazyDiffusion) -> None:
    for name, tensor in model.encoder.state_dict().items():
        changed = {**model.encoder.state_dict(), name: tensor + 1}
        assert fingerprint(model.config, changed) != model.fingerprint, name


def test_the_laboratorys_gates_are_for_its_model() -> None:
    model, gates = load_checkpoint(SMALL), load_gates(GATES)
    gates.check(model.fingerprint)
    assert gates.model == model.fingerprint
