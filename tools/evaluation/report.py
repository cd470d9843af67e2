"""The figures as a page of Markdown."""

from typing import Any

ROWS = {
    "pictures": "pictures",
    "object_top1": "object recognised (top 1 of all things)",
    "object_top5": "object among the top 5",
    "object_top1_of_forty": "object recognised (top 1 of the forty)",
    "coloured_pictures": "pictures whose prompt names a colour",
    "colour": "colour obeyed",
    "colour_by_pixels": "… by the pixels alone",
    "colour_by_classifier": "… by the classifier alone",
    "object_and_colour": "object recognised and colour obeyed",
}
COLUMNS = {
    "drawn": "drawn",
    "drawn_captioned": "pairs in training captions",
    "drawn_never_captioned": "pairs never in captions",
    "real": "real icons held out",
}


def shown(value: float | int | None) -> str:
    """Shares as per cent, counts as they are, nothing as a dash."""
    if value is None:
        return "–"
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def vae_line(vae: dict[str, Any]) -> str:
    """What the VAE keeps, in one sentence."""
    return (
        f"VAE on {vae['images']} held-out icons: PSNR {vae['psnr_mean']:.2f} dB (mean of the "
        f"pictures'), {vae['psnr_of_mean_error']:.2f} dB (of the mean error); range -1..1."
    )


def markdown(report: dict[str, Any]) -> str:
    """`report.md` of what `evaluate.py` writes to `report.json`."""
    s, judge = report["settings"], report["classifier"]
    recognised = sum(row["majority"] for row in report["objects"].values())
    figures = [
        [label, *(shown(report[column][key]) for column in COLUMNS)] for key, label in ROWS.items()
    ]
    objects = [
        [noun, f"{row['recognised']}/{row['pictures']}", "yes" if row["majority"] else "no"]
        for noun, row in report["objects"].items()
    ]
    lines = [
        f"# {s['model']}: {report['drawn']['pictures']} prompts",
        "",
        f"{s['sampler']}, {s['num_inference_steps']} steps, guidance {s['guidance_scale']:g}, "
        f"seeds from {s['seed']}; {report['seconds_per_picture']:.2f} s a picture on "
        f"{s['threads']} threads in batches of {s['batch_size']}.",
        "",
        vae_line(report["vae"]),
        "",
        f"Judge: a classifier of {judge['classes']} common things trained on real icons; of "
        f"{judge['held_out']} held-out icons it names {judge['top1']:.1%} right at once and "
        f"{judge['top5']:.1%} within five guesses. The data builder's code measures the colour by "
        "the pixels; where that lies between two words, the classifier decides. The real icons are "
        "one held-out icon of each object, repainted where a colour is asked for (unless its many "
        "colours leave nothing to repaint).",
        "",
        f"**{recognised} of {len(report['objects'])} objects are recognised** in more than half "
        "of their pictures.",
        "",
        *table(["", *COLUMNS.values()], figures),
        "",
        *table(["object", "recognised", "more than half"], objects),
    ]
    return "\n".join(lines) + "\n"
