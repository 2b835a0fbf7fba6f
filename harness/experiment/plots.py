"""Pictures of an experiment: learning curves by tokens, and every arm's accuracy with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.experiment.config import Experiment
from harness.experiment.figures import STEPS, accuracy, curve_of
from harness.experiment.plan import BASE
from harness.train.curves import STYLE

POINTS = 60


def draw(experiment: Experiment, figures: Mapping[str, Any], folder: Path, prefix: str) -> list[Path]:
    """Write FOLDER/PREFIX-curves.png and FOLDER/PREFIX-accuracy.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(STYLE):
        figure, axis = pyplot.subplots(figsize=(8, 4.4))
        colours = pyplot.get_cmap("tab10").colors
        names = [name for name, arm in experiment.arms.items() if arm.kind != "ablation"]
        for name, colour in zip(names, colours * 2, strict=False):
            curves = [curve_of(row["stages"]) for row in figures["arms"][name].values()]
            if curves:
                _curve(axis, name, curves, colour)
        axis.set(title="step accuracy on validation", xlabel="tokens sampled and updated (millions)", ylim=(-0.02, 1.02))
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        written = [folder / f"{prefix}-curves.png"]
        figure.savefig(written[0])
        pyplot.close(figure)
        measures = (STEPS, *experiment.tests)
        rows = [name for name in (BASE, *experiment.arms) if (figures["bases"] if name == BASE else figures["arms"][name])]
        figure, axes = pyplot.subplots(
            1, len(measures), sharey=True, squeeze=False, figsize=(2.6 * len(measures) + 1.4, 0.36 * len(rows) + 1.2)
        )
        for measure, axis in zip(measures, axes[0], strict=True):
            for place, name in enumerate(rows):
                mean, low, high = accuracy(figures, name, measure)
                axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colours[0 if name != BASE else 7], capsize=3)
            axis.set(title=measure, xlim=(-0.03, 1.03), yticks=range(len(rows)), yticklabels=rows)
        axes[0, 0].invert_yaxis()
        written.append(folder / f"{prefix}-accuracy.png")
        figure.savefig(written[1])
        pyplot.close(figure)
    return written


def _curve(axis: Any, name: str, curves: list[list[tuple[float, float]]], colour: Any) -> None:
    """The mean over the seeds, and from the lowest to the highest of them as a band."""
    end = min(curve[-1][0] for curve in curves)
    grid = np.linspace(0, end, POINTS)
    values = np.array([np.interp(grid, [tokens for tokens, _ in curve], [exact for _, exact in curve]) for curve in curves])
    axis.plot(grid / 1e6, values.mean(0), label=name, color=colour)
    axis.fill_between(grid / 1e6, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
