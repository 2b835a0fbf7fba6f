"""`harness experiment`: all jobs of a comparison, in an order that finishes seed after seed, and the page of what is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness.experiment.config import Experiment
from harness.experiment.figures import gate, gather
from harness.experiment.jobs import run_jobs
from harness.experiment.page import page
from harness.experiment.plan import Layout, arm_jobs, base_jobs
from harness.experiment.plots import draw
from harness.runs import open_run, write_json, write_text


class GateClosed(Exception):
    """The base does not have what the comparison presumes."""


def experiment(name: str, options: Experiment, out: Path, workers: int, fresh: bool = False) -> dict[str, Any]:
    """Run, or take up again, an experiment; then write its page, RUN/report.md, and its figures, RUN/report.json.

    Args:
        workers: jobs at a time.

    Raises:
        GateClosed: the base fails what was fixed beforehand; nothing was compared.
        JobsFailed: some of it failed; what does not depend on that is done.
        UserError: `out` holds another experiment.
    """
    run = open_run(out, "experiment", options, fresh, may_change=("seeds", "question"))
    layout, logs = Layout(run.path, options), run.path / "logs"
    run_jobs(list(base_jobs(layout)), workers, logs)
    checks = gate(layout, gather(layout))
    for check in checks:
        verdict = "holds" if check["holds"] else "DOES NOT HOLD"
        print(f"gate, base {check['base']}: {check['what']}: {check['found']:.3f}, wanted {check['wanted']}: {verdict}", file=sys.stderr)
    if not all(check["holds"] for check in checks):
        raise GateClosed(
            f"the base is not what the comparison presumes, so nothing was compared; its figures: {run.path}/base-*/steps.json. Train it "
            "longer or shorter (base.train), or change the tasks; a gate is not to be moved to where the base is"
        )
    try:
        run_jobs(list(arm_jobs(layout)), workers, logs)
    finally:
        report = write_report(name, layout, run.path / "report.md", run.path / "plots")
    return report


def write_report(name: str, layout: Layout, file: Path, plots: Path) -> dict[str, Any]:
    """Write the page and its pictures, and RUN/report.json.

    Args:
        plots: folder of the pictures, beside the page or below it.
    """
    figures = gather(layout)
    figures["gate"] = gate(layout, figures)
    versions = json.loads((layout.path / "versions.json").read_text())["runs"][-1]
    if figures["bases"]:
        pictures = draw(layout.experiment, figures, plots, name)
        paths = [str(picture.relative_to(file.parent)) for picture in pictures]
        write_text(file, page(name, layout.experiment, figures, paths, versions))
    write_json(layout.path / "report.json", figures)
    return figures
