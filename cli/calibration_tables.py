"""Tables of how calibrated weights did."""

from __future__ import annotations

from typing import Any

from .screen import console, pairs, table


def print_calibration(made: dict[str, Any]) -> None:
    """How the calibrated weights did on held-out samples, next to rounding to nearest in the same size."""
    screen = console()
    if "judgement" not in made:  # of GGUF: `lensmith compare` judges the finished bundle
        seen = made["samples"]
        screen.print(pairs("Importance", {
            "samples": f"{seen['calibrated']} of {seen['source']}",
            "tokens": f"{seen['image_tokens']} of images, {seen['text_tokens']} of text",
            "matrices": made["matrices"],
        }))  # fmt: skip
        return
    judged = made["judgement"]
    kinds, tasks = list(judged["float"]["kl"]), list(judged["float"]["accuracy"])
    every = {"float": "float32", "nearest": "rounded to nearest", "calibrated": made["method"]}
    names = {key: name for key, name in every.items() if key in judged}
    head = ["weights", *(f">KL, {kind}" for kind in kinds), ">same top token", ">perplexity"]
    head += [">right answers"] if tasks else []
    drafts = judged["float"]["drafts"] is not None
    head += [">drafts accepted"] if drafts else []
    rows = []
    for key, name in names.items():
        row, total = judged[key], sum(judged[key]["positions"].values())
        same = sum(row["top1"][kind] * row["positions"][kind] for kind in kinds) / total
        figures = [*(f"{row['kl'][kind]:.4f}" for kind in kinds), f"{same:.1%}", f"{row['perplexity']:.3f}"]
        figures += [f"{sum(row['accuracy'].values()) / len(tasks):.1%}"] if tasks else []
        figures += [f"{row['drafts']['accepted']:.1%}"] if drafts else []
        rows.append([name, *figures])
    screen.print(table("Held-out samples (KL in nats)", head, rows))
    groups = list(judged["float"]["groups"])
    screen.print(table("KL by group: kinds that were calibrated on, kinds that were not, answers of both",
                       ["weights", *(f">{group}" for group in groups)],
                       [[names[key], *(f"{judged[key]['groups'][group]:.4g}" for group in groups)]
                        for key in names if key != "float"]))  # fmt: skip
    for warning in made.get("samples", {}).get("warnings", []):
        screen.print(warning, style="yellow")
    for method, groups in made["tried"].items():
        if groups:
            has = f"{made['method']} is kept" if made["kept"] else "rounding is kept"
            simpler = "rounding to nearest" if method == made["method"] else f"{made['method']} or rounding to nearest"
            screen.print(f"{method} was worse than {simpler} on {' and '.join(groups)}: {has}", style="yellow")
    screen.print()
