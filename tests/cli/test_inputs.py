"""What a user names or types: pictures as people see them, settings that cannot be, one clear line for each."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from samples import tiny_model

from lazydiff.cli import main
from lazydiff.cli.main import BLENDS, explanation
from lazydiff.cli.pictures import read_image, read_mask
from lazydiff.core.files import whole_file
from lazydiff.model.checkpoint import save_checkpoint
from lazydiff.pipeline.decode import Blend

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def shown(path: Path) -> np.ndarray:
    """What is read of a picture, uint8 [H, W, 3]."""
    return (read_image(path)[0].permute(1, 2, 0) * 255).round().byte().numpy()


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lay on its side
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert (shown(tmp_path / "a.png") == np.rot90(PIXELS, -1)).all()
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "m.png", exif=exif)
    assert read_mask(tmp_path / "m.png").shape == (1, 1, 30, 20)


def test_grey_palettes_and_16_bits_are_read_as_they_look(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    assert (shown(tmp_path / "grey.png") == PIXELS[..., :1]).all()
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (shown(tmp_path / "deep.png") == PIXELS[..., :1]).all()
    assert read_mask(tmp_path / "deep.png")[0, 0].numpy() == pytest.approx(PIXELS[..., 0] / 255, abs=1e-6)
    palette = Image.fromarray(PIXELS).quantize(8)
    palette.save(tmp_path / "palette.png")
    assert (shown(tmp_path / "palette.png") == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "tRNS"])
def test_a_transparent_picture_is_refused_and_an_opaque_one_taken(mode: str, tmp_path: Path) -> None:
    if mode == "tRNS":
        picture = Image.fromarray(PIXELS).quantize(8)
        picture.save(tmp_path / "clear.png", transparency=3)
        picture.save(tmp_path / "opaque.png", transparency=bytes([255] * 8))
    else:
        picture = Image.fromarray(PIXELS).convert(mode)
        picture.putalpha(255)
        picture.save(tmp_path / "opaque.png")
        picture.putalpha(Image.fromarray(PIXELS[..., 0]))
        picture.save(tmp_path / "clear.png")
    expected = np.asarray(picture.convert("RGB"))
    assert (shown(tmp_path / "opaque.png") == expected).all()
    with pytest.raises(ValueError, match="transparent in places: flatten it"):
        read_image(tmp_path / "clear.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_masks_alpha_counts_when_it_says_anything(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transparent is hole, as image editors and the host's mask editor save it; else white is."""
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[5:9, 4:20] = 0
    picture = Image.fromarray(PIXELS).convert(mode)
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png")[0, 0].numpy() == (alpha == 0)).all()
    assert "taken for the hole" in capsys.readouterr().err
    picture = Image.fromarray(255 - alpha).convert(mode)
    picture.putalpha(255)
    picture.save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png")[0, 0].numpy() == (alpha == 0)).all()


def swapped_profile() -> bytes:
    """sRGB with red and green exchanged: every colour profile that matters differs less."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    entries = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, green = (entries[name] for name in (b"rXYZ", b"gXYZ"))
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12], profile[red + 4 : red + 12],
    )  # fmt: skip
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test")


def test_colours_are_those_of_the_pictures_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=swapped_profile())
    difference = np.abs(shown(tmp_path / "a.png").astype(int) - PIXELS[..., [1, 0, 2]])
    assert difference.mean() < 2  # the colour engine counts in 8 bits, and adapts the white
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=plain)
    assert (shown(tmp_path / "a.png") == PIXELS).all()
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=b"nonsense")
    assert (shown(tmp_path / "a.png") == PIXELS).all()
    assert "colour profile cannot be used" in capsys.readouterr().err


def test_of_several_frames_the_first_is_taken_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (shown(tmp_path / "a.gif") == [255, 0, 0]).all()
    assert "the first of its 3 frames" in capsys.readouterr().err


@pytest.fixture
def folder(vocabulary: bytes, tmp_path: Path) -> Path:
    save_checkpoint(tiny_model("flow", vocabulary, "small"), tmp_path / "model.safetensors")
    Image.new("RGB", (96, 96), "grey").save(tmp_path / "in.png")
    return tmp_path


def edit(folder: Path, *changes: str) -> list[str]:
    words = ["--image", f"{folder}/in.png", "--box", "20", "20", "30", "30", "--prompt", "a tree", "--steps", "1"]
    return ["edit", *words, "--checkpoint", f"{folder}/model.safetensors", "--output", f"{folder}/out", *changes]


def bomb(path: Path) -> str:
    """The head of a picture of 20000×20000 pixels."""
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (20000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    return str(path)


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda f: ["--image", bomb(f / "bomb.png")], "too large a picture"),
        (lambda f: ["--image", pipe(f / "pipe")], "a pipe or device, not a file"),
        (lambda f: ["--image", str(f)], "it is a folder"),
        (lambda f: ["--image", "x" * 5000], "not a file that can be read"),
        (lambda f: ["--checkpoint", pipe(f / "pipe")], "a pipe or device, not a file"),
        (lambda f: ["--checkpoint", str(f)], "it is a folder"),
        (lambda f: ["--checkpoint", "/dev/zero"], "a pipe or device"),
        (lambda f: ["--gates", pipe(f / "pipe")], "a pipe or device"),
        (lambda f: ["--gates", str(f / "model.safetensors")], "these are no gates"),
        (lambda f: ["--prompt", "a \udcff tree"], "no text in Unicode"),
        (lambda f: ["--negative", "a \udcff tree"], "no text in Unicode"),
        (lambda f: ["--seed", "1", "1", "1"], "a seed is given twice"),
        (lambda f: ["--seed", str(2**64)], "choose a whole number from 0"),
        (lambda f: ["--seed", "-1"], "choose a whole number from 0"),
        (lambda f: ["--device", "mps" if torch.cuda.is_available() else "cuda"], "there is no device"),
        (lambda f: ["--temperature", "nan"], "temperature is nan"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_file(
    folder: Path, changes: Callable[[Path], list[str]], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(folder, *changes(folder))) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert not list(folder.glob("out/*"))


@pytest.mark.parametrize("which", ["image", "mask", "sketch"])
def test_an_edit_never_overwrites_what_it_is_made_from(
    folder: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(folder)) == 0
    made = folder / "out" / "edit-0.png"
    before = made.read_bytes()
    command = [word for word in edit(folder) if which != "mask" or word not in ("--box", "20", "30")]
    assert main([*command, f"--{which}", str(made)]) == 2
    assert "choose another --output" in capsys.readouterr().err and made.read_bytes() == before
    assert main([*command, f"--{which}", str(made), "--output", str(folder / "second")]) == 0


def test_device_and_dtype_can_be_chosen(folder: Path) -> None:
    assert main(edit(folder, "--device", "cpu", "--dtype", "float32")) == 0
    assert main(edit(folder, "--dtype", "bfloat16", "--output", f"{folder}/half")) == 0
    first, second = (np.asarray(Image.open(folder / name / "edit-0.png"), dtype=int) for name in ("out", "half"))
    assert 0 < np.abs(first - second).max() < 40  # other numbers, the same picture


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gates", "--steps", "5"], "choose an even number"),
        (["gates", "--steps", "0"], "0 steps"),
        (["gates", "--steps", "4", "--updates", "0"], "steps is 0"),
        (["gates", "--steps", "4", "--scenes", "-2"], "scenes is -2"),
        (["gates", "--steps", "4", "--penalty", "nan"], "attention_penalty is nan"),
        (["gates", "--steps", "4", "--penalty", "-1"], "attention_penalty is -1"),
        (["gates", "--steps", "4", "--guidance", "nan"], "guidance is nan"),
        (["gates", "--steps", "4", "--output", "model.safetensors"], "ends with .gates.safetensors"),
        (["evaluate", "--scenes", "0"], "0 scenes"),
    ],
)
def test_settings_that_cannot_be_are_told_before_work_begins(
    folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("lazydiff.training.gates.prepare", None)  # no scene is asked for
    command, *others = arguments
    before = (folder / "model.safetensors").read_bytes()
    common = ["--checkpoint", "model.safetensors", "--output", "a.gates.safetensors"]
    assert main([command, *common, *others]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert (folder / "model.safetensors").read_bytes() == before


TOML = """
[model]
name = "test"
preset = "small"
prediction = "flow"
[training]
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TOML + "steps = 0", "steps is 0"),
        (TOML + "steps = true", "steps is True"),
        (TOML + "steps = 1.5", "steps is 1.5"),
        (TOML + "learning_rate = -1e-3", "learning_rate is -0.001"),
        (TOML + "learning_rate = nan", "learning_rate is nan"),
        (TOML + 'learning_rate = "fast"', "learning_rate is fast"),
        (TOML + "betas = [0.9, 1.0]", "betas is"),
        (TOML + "betas = 0.9", "betas is"),
        (TOML + "ema = 1.5", "ema is 1.5"),
        (TOML + "checkpoint_every = 0", "checkpoint_every is 0"),
        (TOML + "seed = -1", "seed is -1"),
        (TOML + "crop = 1", "crop is 1"),
        (TOML + 'precision = "fp4"', "precision is fp4"),
        (TOML + "[sampling]\nsteps = 0", "0 steps"),
        (TOML + "[sampling]\nsampler = 3", "no sampler called 3"),
        (TOML + "[extra]\n", "no table called extra"),
        (TOML + "lerning_rate = 1", "lerning_rate"),
        (TOML.replace("flow", "other"), "prediction is other"),
        (TOML.replace("small", "huge"), "preset must be one of"),
        (TOML.replace('preset = "small"', "preset = []"), "preset must be one of"),
        (TOML.replace('name = "test"', ""), "lacks name"),
        ("", "lacks preset"),
        ("[model", "bad.toml"),
        ("model = 3", "no table called model"),
    ],
)
def test_a_configuration_that_cannot_be_is_told(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    assert main(["train", "--config", f"{tmp_path}/bad.toml", "--output", f"{tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert words in error and "bad.toml" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_files_have_the_mode_that_the_umask_leaves(folder: Path) -> None:
    umask = os.umask(0o027)
    try:
        with whole_file(folder / "a") as path:
            path.unlink()
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors writes
        assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o640
    finally:
        os.umask(umask)
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == 0o666 & ~umask


def test_choices_that_are_written_twice_agree() -> None:
    assert get_args(Blend) == BLENDS


def test_no_more_memory_is_one_line() -> None:
    for error in (
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):  # fmt: skip
        assert "not enough memory" in (explanation(error) or "")
    assert "pip install diffusers" in (explanation(ModuleNotFoundError("No module", name="diffusers.x")) or "")
    assert explanation(RuntimeError("a mistake of ours")) is None


def command(*words: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lazydiff", *words], cwd=Path(__file__).parents[2], env={**os.environ, **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        preexec_fn=heed_interrupts if os.name == "posix" else None,
    )  # fmt: skip


def heed_interrupts() -> None:
    """Tests that a shell runs in the background inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_help_is_readable_on_a_terminal_without_our_letters() -> None:
    for words in (["--help"], ["edit", "--help"], ["train", "--help"], ["gates", "--help"]):
        run = command(*words, PYTHONIOENCODING="ascii", LC_ALL="C")
        output, errors = run.communicate(timeout=60)
        assert run.returncode == 0 and "usage: lazydiff" in output and not errors


def test_ctrl_c_while_it_begins_is_no_traceback(folder: Path, tmp_path: Path) -> None:
    """A torch in whose import it is pressed."""
    (tmp_path / "torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    run = command(*edit(folder), PYTHONPATH=str(tmp_path))
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and errors.strip() == "stopped"
