"""The one command for all evidence: what is complete is not measured again, and nothing else passes for complete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evidence
from benchmarks.evidence import Part, main


class Bench:
    """Stands in for the commands: writes figures, counts its runs, and stops where it is told to."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.stop_at = ""
        self.status = 0

    def measure(self, name: str, argv: Sequence[str], figures: dict[str, float]) -> None:
        if name == self.stop_at:
            raise KeyboardInterrupt
        self.runs.append(f"{name} quick" if "--quick" in argv else name)
        folder = Path(argv[argv.index("--output") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        record = {"figures": figures, "settings": {"scenes": 2}, "table": [list(argv)]}
        (folder / ("evidence.json" if name == "models" else f"{name}.json")).write_text(json.dumps(record))

    def part(self, name: str, prefix: str, *weights: Path) -> Part:
        def run(argv: Sequence[str]) -> None:
            self.measure(name, argv, {f"{prefix}_low": 1.0, prefix: 2.0, "another": 3.0})

        return Part(run, prefix, weights)

    def evaluate(self, argv: Sequence[str]) -> int:
        self.measure("models", argv, {"lazy_minus_crop": 30.0})
        return self.status


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(b"first")
    return tmp_path / "weights"


@pytest.fixture
def bench(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setattr(evidence, "lazydiff", made.evaluate)
    parts = {"masks": made.part("masks", "attention", weights), "gates": made.part("gates", "gates_beat")}
    monkeypatch.setattr(evidence, "PARTS", parts)
    return made


def written(folder: Path) -> Any:
    return json.loads((folder / "evidence.json").read_text("utf-8"))


def test_a_run_that_was_stopped_measures_what_is_missing(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench.stop_at = "gates"
    with pytest.raises(KeyboardInterrupt):
        main(["--output", str(out)])
    assert not (out / "evidence.json").exists() and bench.runs == ["models", "masks"]
    bench.stop_at = ""
    main(["--output", str(out), "--iddpm", "some.safetensors"])
    assert bench.runs == ["models", "masks", "models", "gates"]  # the models keep their own account
    record = written(out)
    assert record["figures"] == {
        "lazy_minus_crop": 30.0, "attention_low": 1.0, "attention": 2.0, "gates_beat_low": 1.0, "gates_beat": 2.0
    }  # fmt: skip
    assert record["table"][0][-2:] == ["--iddpm", "some.safetensors"] and not record["quick"]


def test_masks_by_published_settings_are_measured_of_the_model_that_is_named(
    bench: Bench, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = bench.part("published-masks", "instdiffedit_iou")
    monkeypatch.setattr(evidence.published_masks, "main", published.main)
    main(["--output", str(tmp_path / "out"), "--portraits", str(weights)])
    assert bench.runs == ["models", "masks", "gates", "published-masks"]
    assert written(tmp_path / "out")["figures"]["instdiffedit_iou"] == 2.0
    asked = json.loads((tmp_path / "out" / "published-masks" / "published-masks.json").read_text("utf-8"))["table"][0]
    assert asked[-2:] == ["--weights", str(weights)]


def test_combinations_held_out_are_measured_of_the_trainings_that_are_named(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = tmp_path / "held"
    for path in evidence.held_out.weights_in(trainings):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"trained")
    monkeypatch.setattr(evidence.held_out, "main", bench.part("held-out", "held_out_lazy_minus_dense").main)
    main(["--output", str(tmp_path / "out"), "--held-out", str(trainings)])
    assert bench.runs == ["models", "masks", "gates", "held-out"]
    assert written(tmp_path / "out")["figures"]["held_out_lazy_minus_dense"] == 2.0
    asked = json.loads((tmp_path / "out" / "held-out" / "held-out.json").read_text("utf-8"))["table"][0]
    assert asked[-2:] == ["--trainings", str(trainings)]


def test_other_weights_and_a_full_run_are_measured_anew(bench: Bench, tmp_path: Path, weights: Path) -> None:
    command = ["--output", str(tmp_path / "out")]
    main([*command, "--quick"])
    assert bench.runs == ["models quick", "masks quick", "gates quick"] and written(tmp_path / "out")["quick"]
    main(command)
    assert bench.runs[3:] == ["models", "masks", "gates"]
    weights.write_bytes(b"second")
    main(command)
    assert bench.runs[6:] == ["models", "masks"]


def test_a_figure_that_was_not_measured_is_missed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(evidence.PARTS, "gates", evidence.PARTS["gates"]._replace(prefix="figure5"))
    with pytest.raises(ValueError, match="gates has measured no figure5"):
        main(["--output", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "evidence.json").exists()


def test_models_that_cannot_be_compared_end_the_run(bench: Bench, tmp_path: Path) -> None:
    bench.status = 2
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "out")])
    assert stopped.value.code == 2 and bench.runs == ["models"]
