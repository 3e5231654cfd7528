"""The numbers in the documents' text are those that were measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from measured import (
    BASELINES,
    CHAIN,
    COMPARED,
    DATA,
    EVIDENCE,
    FIGURE5,
    GATES,
    GATES_HOST,
    HELD_OUT,
    KV,
    LAZY_VAE,
    MASKS,
    MODEL,
    PHOTOGRAPHS,
    POISSON,
    PUBLISHED,
    ROOT,
    SHIPPED_TIMES,
    SMALL,
    UNET,
    UNET_QUALITY,
    ZOOM,
)

from lazydiff.cache.module_skip import load_gates
from lazydiff.evaluation import laboratory
from lazydiff.model.checkpoint import SHIPPED, load_checkpoint
from lazydiff.training.config import CONFIGS, TrainingConfig
from lazydiff.training.cost import TrainingCost, cost_text


def in_readme() -> list[str]:
    figures = [COMPARED["figures"][f"psnr_{steps}_steps"] for steps in (20, 8, 4)]
    text = "PSNR against the full computation is {:.1f} dB at 20 steps, {:.1f} dB at 8 and {:.1f} dB at 4, mean of 500"
    zoom = ZOOM["figures"]
    assert zoom["outside_exact"] == 1
    sdxl, sd15 = (one["first_ratio"] for one in UNET["samplings"] if one["mode"] == "recorded")
    return [
        f"an edit is {sdxl:.1f} times faster on SDXL, {sd15:.1f} times on SD 1.5",
        text.format(*figures),
        f"take [{zoom['time_ratio']:.1f} times](docs/benchmarks.md#a-small-hole-in-a-large-picture) the time",
    ]


def in_benchmarks() -> list[str]:
    whole, host, vae = FIGURE5["figures"], GATES_HOST["figures"], LAZY_VAE["figures"]
    unet, shipped = UNET["figures"], SHIPPED_TIMES["figures"] | SHIPPED_TIMES["table"]
    levels = [one["grey_levels"] for one in LAZY_VAE["edits"]]
    stale, crop_alone = (sum(one[way] for one in levels) / len(levels) for way in ("stale statistics", "crop alone"))
    opencv = next(one["opencv"] for one in POISSON["table"] if one["size"] == 1024)
    trained = load_gates(laboratory.GATES).settings
    gated = {one["name"]: one["distance"] for one in GATES["table"]}
    assert POISSON["figures"]["error_grey_levels"] < 0.001
    return [
        f"({KV['figures']['cache_over_formula']:.4f} of it)",
        f"{100 * unet['sdxl_share_of_limit']:.0f} % is reached in SDXL",
        f"{100 * unet['sd15_share_of_limit']:.0f} % in SD 1.5 at 512 px",
        f"says ({unet['cache_over_formula']:.4f} of it)",
        f"the automatic policy takes {UNET_QUALITY['figures']['full_steps_auto']:.1f}.",
        f"{ZOOM['figures']['time_ratio']:.2f} of the time and {ZOOM['figures']['memory_ratio']:.2f} of the memory",
        f"{whole['figure5_shared_vae_50_steps']:.1f} times at 50 steps",
        f"takes {shipped['edit_ms'] / 1000:.1f} s and is {shipped['edit_over_dense']:.1f} times faster",
        f"(RegenerateImage, {shipped['dense_ms'] / 1000:.1f} s)",
        f"hole takes {shipped['variation_ms'] / 1000:.1f} s and is {shipped['variation_over_dense']:.1f} times faster",
        f"{whole['crop_over_shared_vae_at_25_percent']:.2f} of our time at a mask of 25 % and 50 steps",
        f"{whole['crop_over_lazy_at_25_percent']:.2f} of the time of our next edit",
        f"{whole['crop_over_next_variation_at_25_percent']:.2f} of our next variation",
        f"{100 * vae['decode_flops_share_at_10_percent']:.1f} % of the work",
        f"{len(levels)} edits of 512 px canvases",
        f"differ from a full decode by {vae['edit_difference_grey_levels']:.1f} grey levels",
        f"{stale:.1f} with stale statistics, {crop_alone:.1f} when a crop",
        f"differs by {vae['edit_difference_grey_levels_worst']:.1f}",
        f"in {POISSON['figures']['ms_1024_at_10_percent']:.0f} ms on one CPU thread",
        f"{POISSON['figures']['scipy_over_ours']:.0f} times faster than scipy's",
        f"({POISSON['figures']['scipy_one_factorisation_over_ours']:.0f} times, if scipy",
        f"`seamlessClone` takes {opencv:.0f} ms",
        f"largest difference {CHAIN['figures']['outside_max_difference']:.0f}",
        f"medians of five edits: {CHAIN['figures']['last_over_first_time']:.2f}",
        f"takes {host['step_ms']:.0f} ms, and {host['gated_step_ms']:.0f} ms with half of the modules skipped",
        f"{100 * host['time_saved']:.0f} % less, of {100 * host['work_saved']:.0f} % by multiply-adds",
        f"samples {GATES['scenes']} scenes in",
        f"measured on {GATES['chosen_on']['scenes']} other scenes",
        f"({gated['calibrated skips, 30 %']:.2f} against {gated['8 steps']:.2f} grey levels)",
        f"{trained['scenes']} scenes in an update",
        f"the {trained['steps']} updates of the gates that ship",
    ]


def in_masks() -> list[str]:
    attention, difference = (MASKS["figures"][f"{kind}_cost_steps"] for kind in ("attention", "difference"))
    steps = f"takes {attention} denoising steps, a prompt difference mask {difference}"
    tuned = MASKS["figures"]
    better = "attention_minus_diffedit_tuned"
    published = PUBLISHED["figures"]
    lost = {
        name: [-published[f"instdiffedit_minus_{name}{bound}"] for bound in ("", "_high", "_low")]
        for name in ("noun", "diffedit")
    }
    few = {one["name"]: one["all"] for one in MASKS["table"]}
    unpointed, theirs = few["attention, words not pointed at"], few["DiffEdit with evidence and edges"]
    return [
        f"without them attention has {unpointed:.0f} % on the first 40 scenes",
        f"DiffEdit with the same additions has {theirs:.0f} %",
        f"{MASKS['scenes']} held-out scenes",
        f"than the whole canvas would ({published['whole_canvas_iou']:.0f} %)",
        f"a better reference: {published['by_guidance_iou']:.0f} %",
        f"without any roles, has {published['noun_iou']:.0f} %",
        "{:.0f} points more than InstDiffEdit ({:.0f} to {:.0f} with 95 %)".format(*lost["noun"]),
        f"has {published['diffedit_published_iou']:.0f} %",
        "at its best {:.0f} points more ({:.0f} to {:.0f})".format(*lost["diffedit"]),
        f"covers {published['fisedit_share_of_canvas']:.0f} % of the canvas in the mean",
        f"{published['fisedit_change_inside']:.0f} % of what has changed",
        f"{PUBLISHED['scenes']} pictures; thresholds",
        steps,
        f"threshold of {MASKS['tuned_threshold']} chosen on other scenes: {tuned['diffedit_tuned_iou']:.1f} %",
        f"is {tuned[better]:.1f} points better; a bootstrap over the {MASKS['scenes']} scenes",
        f"between {tuned[f'{better}_low']:.1f} and {tuned[f'{better}_high']:.1f} with 95 %",
    ]


def in_quality() -> list[str]:
    levels = [TrainingConfig.read(BASELINES / f"regenerate-{kind}.toml").noise_levels for kind in ("image", "crop")]
    assert levels == [1, 4] and TrainingConfig.read(laboratory.SMALL.with_suffix(".toml")).noise_levels == 4
    likeness = [COMPARED["figures"][f"psnr_{steps}_steps"] for steps in (20, 8, 4)]
    recorded = {row["name"]: row["figures"]["psnr_90"] for row in COMPARED["table"] if row["name"][:8] == "recorded"}
    nine_in_ten = [recorded[f"recorded{few}"] for few in ("", ", 8 steps", ", 4 steps")]
    unet, by_name = UNET_QUALITY["figures"], {row["setting"]: row for row in UNET_QUALITY["rows"]}
    corrected = unet["psnr_4"] - by_name["4 anchors, not corrected *"]["psnr"]
    lost = [
        f"{unet[figure]:.1f} points ({unet[f'{figure}_low']:.1f} to {unet[f'{figure}_high']:.1f})".replace("-", "−")
        for figure in ("sibling_colour_loss", "caption_loss", "sibling_colour_loss_recorded", "caption_loss_recorded")
    ]
    edits = {(one["network"], one["mode"]): one for one in UNET["samplings"]}
    slower = []  # an edit with as many anchors than a recorded one
    for network in ("SD 1.5, 512 px", "SDXL, 1024 px"):
        whole, lazy = (edits[network, "4 anchors"][part] / 20 for part in ("dense_s", "next_s"))
        anchored = lazy * 20 + (whole - lazy) * unet["full_steps_auto"]
        slower.append(anchored / edits[network, "recorded"]["first_s"])
    evidence = EVIDENCE["figures"]
    dense, longer = (
        [-evidence[f"{name}{bound}"] for bound in ("", "_high", "_low")]
        for name in ("lazy_minus_dense", "lazy_minus_longer_4_steps")
    )
    gained = [evidence[f"longer_minus_dense{bound}"] for bound in ("", "_low", "_high")]
    harder = [
        row["figures"] for row in EVIDENCE["table"]
        if row["questions"] == "harder" and row["model"] in ("LazyDiffusion", "RegenerateImage")
    ]  # fmt: skip
    colour, shape, caption = (
        (min(some), max(some))
        for some in ([one[name] for one in harder]
                     for name in ("sibling_colour", "sibling_shape", "caption_against_siblings"))
    )  # fmt: skip
    behind = [
        evidence[f"lazy_minus_crop_in_sight{hard}{few}"]
        for hard in ("", "_hard")
        for few in ("", "_4_steps", "_2_steps")
    ]
    followed = {one["thing"]: one["lazy"] for one in HELD_OUT["sibling_colour"]}
    rates = {(one["model"], one["things"]): one["figures"] for one in HELD_OUT["table"]}
    in_words = {
        name: max(
            rates[name, "known"][figure] - rates[name, "held out"][figure]
            for figure in ("caption_blank", "caption_against_siblings")
        )
        for name in ("lazy", "dense")
    }
    change = HELD_OUT["figures"]["held_out_minus_known_dense_sibling_colour"]
    return [
        "in {:.1f} % of the questions, instead of {:.1f} %".format(
            *(rates["lazy", which]["sibling_colour"] for which in ("held out", "known"))
        ),
        f"at each step, loses {-change:.1f} points",
        "{:.1f} %, yellow mugs in {:.1f} %".format(followed["pink flower"], followed["yellow mug"]),
        "(at most {lazy:.1f} points fewer)".format(**in_words),
        "(at most {dense:.1f})".format(**in_words),
        f"for {HELD_OUT['steps']} steps, half as many",
        f"{HELD_OUT['scenes']} questions about siblings",
        "(colour {:.1f} to {:.1f} %, shape {:.1f} to {:.1f} %)".format(*colour, *shape),
        "not in captions ({:.1f} to {:.1f} %)".format(*caption),
        f"behind as well, by {min(behind):.0f} to {max(behind):.0f} points",
        "({:.1f}; {:.1f} to {:.1f})".format(*gained).replace("-", "−"),
        "then {:.1f} points better than LazyDiffusion ({:.1f} to {:.1f})".format(*longer),
        "is {:.1f} points better than LazyDiffusion at 20 steps ({:.1f} to {:.1f})".format(*dense),
        f"{EVIDENCE['settings']['scenes']} scenes of seed {EVIDENCE['settings']['test_seed']} for each question",
        f"have {unet['psnr_auto']:.1f} dB in the mean, with {unet['full_steps_auto']:.1f} full steps",
        f"recordings have {unet['psnr_recorded']:.1f} dB",
        f"loses {lost[0]} of sibling colour and {lost[1]} of captions",
        f"loses {lost[2]} and {lost[3]}",
        "{:.1f} to {:.1f} times as fast as {:.1f} anchors".format(*slower, unet["full_steps_auto"]),
        f"{corrected:.1f} dB at four anchors",
        "PSNR against the dense one is {:.1f} dB at 20 steps, {:.1f} dB at 8 and {:.1f} dB at 4".format(*likeness),
        "nine in ten are above {:.1f}, {:.1f} and {:.1f} dB".format(*nine_in_ten),
        f"({COMPARED['figures']['psnr_other_visible_noise']:.1f} dB)",
        f"sibling colour loses {COMPARED['figures']['sibling_colour_loss']:.1f} points".replace("-", "−"),
        f"caption match {COMPARED['figures']['caption_loss']:.1f}".replace("-", "−"),
    ]


def in_model_card() -> list[str]:
    model = load_checkpoint(SHIPPED)
    return [
        f"({SHIPPED.stat().st_size / 1e6:.1f} MB",
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters",
        f"{MODEL['counts']['sibling']} held-out pictures",
    ]


def in_laboratory() -> list[str]:
    path = laboratory.SMALL
    model, training = load_checkpoint(path), TrainingConfig.read(path.with_suffix(".toml"))
    held_out = {(one["model"], one["things"]): one["figures"] for one in HELD_OUT["table"]}
    return [
        "in {sibling_colour:.1f} % of the questions, instead".format(**held_out["lazy", "held out"]),
        "of {sibling_colour:.1f} %; in words".format(**held_out["lazy", "known"]),
        f"about {-EVIDENCE['figures']['iddpm_20_steps_minus_lazy']:.0f} points fewer of the questions",
        f"({path.stat().st_size / 1e6:.1f} MB",
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters",
        f"from seed {training.seed}",
        f"stopped at step {training.weigh_variance_from}",
        f"{SMALL['counts']['sibling']} held-out scenes",
    ]


def in_training() -> list[str]:
    config = replace(TrainingConfig.read(CONFIGS["pixart-1024"]), accumulate=2)
    told = cost_text(TrainingCost(config, processes=8), tflops=300).splitlines()
    assert DATA["examples_read"] >= 20_000 and DATA["figures"]["reader_growth_mb"] < 1
    return [
        *(" ".join(line.split()) for line in told),
        f"{DATA['figures']['reader_over_step']:.0f} times as fast as it trains",
        f"[{PHOTOGRAPHS['figures']['psnr']:.1f} dB in the holes]",
    ]


QUOTES = {
    "README.md": in_readme, "docs/benchmarks.md": in_benchmarks, "docs/masks.md": in_masks,
    "docs/quality.md": in_quality, "docs/model-card.md": in_model_card,
    "docs/laboratory.md": in_laboratory, "docs/training.md": in_training,
}  # fmt: skip


@pytest.mark.parametrize("document", QUOTES)
def test_the_text_quotes_what_was_measured(document: str) -> None:
    text = " ".join((ROOT / document).read_text("utf-8").split())
    assert not [phrase for phrase in QUOTES[document]() if phrase not in text]
