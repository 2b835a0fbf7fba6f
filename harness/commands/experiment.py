"""`harness experiment`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from harness.commands.output import emit, note


def experiment(
    context: typer.Context,
    name: str = typer.Argument(help="smoke, machines, or a YAML file of one's own."),
    out: Path | None = typer.Option(None, help="Run folder; the same command into it takes it up again.  [default: runs/experiment-NAME]"),
    seeds: int | None = typer.Option(None, min=1, help="How many; more may be added later to the same folder."),
    workers: int | None = typer.Option(None, min=1, help="Jobs at a time.  [default: one for each core, one where there is a GPU]"),
    page: Path | None = typer.Option(
        None, help="Also write the page of results here, its pictures in a folder of the same name beside it."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Begin anew; the old folder is moved aside."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on stdout."),
) -> None:
    """Compare training methods: the same base, data and budget, several seeds, held-out tests with intervals. Options: --a.b=c."""
    from harness.config import resolve
    from harness.experiment.config import PRESETS, Experiment
    from harness_trajectories.errors import UserError

    file = PRESETS / f"{name}.yaml" if (PRESETS / f"{name}.yaml").is_file() else Path(name)
    if not file.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise UserError(f"no experiment {name!r}. Allowed: {known}, or a YAML file (harness/experiment/config.py says what is in it)")
    options = resolve(Experiment, file, context.args, {})
    if seeds is not None:
        options = options.model_copy(update={"seeds": seeds})
    if out is None:
        out = Path("runs") / f"experiment-{file.stem}"
        note(f"--out not given: {out}")
    from harness.experiment.jobs import JobsFailed
    from harness.experiment.run import GateClosed, write_report
    from harness.experiment.run import experiment as run

    try:
        report = run(file.stem, options, out, workers or _workers(), fresh)
    except (JobsFailed, GateClosed) as error:
        note(f"error: {error}")
        raise typer.Exit(1) from None
    if page is not None:
        from harness.experiment.plan import Layout

        write_report(file.stem, Layout(out, options), page, page.with_suffix(""))
    emit(report, as_json, f"{_table(report)}\npage: {page or out / 'report.md'}")


def _workers() -> int:
    import torch

    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def _table(report: dict[str, Any]) -> str:
    from harness.experiment.figures import STEPS, accuracy
    from harness.experiment.plan import BASE

    measures = [STEPS, *report["experiment"]["tests"]]
    lines = [f"{'per cent [95 %]':<18}" + "".join(f"{measure:>22}" for measure in measures)]
    for name in (BASE, *(arm for arm, rows in report["arms"].items() if rows)):
        cells = [accuracy(report, name, measure) for measure in measures]
        told = "".join(f"{f'{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]':>22}" for one in cells)
        lines.append(f"{name:<18}{told}")
    return "\n".join(lines)
