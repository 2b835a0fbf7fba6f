"""The curves of a run as pictures, RUN/plots/STAGE-NAME.png, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.runs import Run, read_jsonl

Rows = Sequence[Mapping[str, Any]]
COLOURS = ("#2f6db5", "#d1672a", "#3a8f5c", "#8a5aa8", "#b3405a", "#7a7a7a", "#c2a030")
PHASES = dict(zip(("sampling", "update", "scoring", "log_probs", "checkpoint", "environment"), COLOURS, strict=False))
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "font.size": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "savefig.dpi": 130,
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
}
SMOOTHED = 40
"""From so many points on, a mean over the last tenth of them is drawn, and the points themselves behind it."""


def draw(run: Run) -> list[Path]:
    """Write a picture of whatever metrics.jsonl holds, for each stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = list(read_jsonl(run.path / "metrics.jsonl"))
    pictures: Mapping[str, tuple[str, int, Callable[..., bool]]] = {
        "reward": ("reward", 1, _reward),
        "rates": ("shares of the completions, and of the groups", 1, _rates),
        "lengths": ("what is sampled", 2, _lengths),
        "time": ("where the time goes", 2, _time),
        "loss": ("loss and gradient", 2, _loss),
    }
    written = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        mine = [row for row in rows if row["stage"] == stage]
        for name, (title, panels, paint) in pictures.items():
            with pyplot.rc_context(STYLE):
                figure, axes = pyplot.subplots(panels, sharex=True, squeeze=False, figsize=(7.5, 3.9 if panels == 1 else 5.2))
                if paint(axes[:, 0], mine):
                    axes[0, 0].set_title(f"{stage}: {title}")
                    axes[-1, 0].set_xlabel("optimizer step")
                    for one in axes[:, 0]:
                        if one.get_legend_handles_labels()[0]:
                            one.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
                    path = run.path / "plots" / f"{stage}-{name}.png"
                    path.parent.mkdir(exist_ok=True)
                    figure.savefig(path)
                    written.append(path)
                pyplot.close(figure)
    return written


def _reward(axes: Sequence[Any], rows: Rows) -> bool:
    (one,) = axes
    one.set(ylabel="reward")
    drawn = _line(one, rows, "reward", "sampled", COLOURS[0]) + _line(one, rows, "similarity", "sampled, format good", COLOURS[2])
    drawn += _line(one, rows, "val_reward", "held out, greedy", COLOURS[1], "o-")
    for name, label, style in (("baseline_constant", "constant action", "--"), ("baseline_copy", "last action again", ":")):
        values = [row[name] for row in rows if _number(row, name)] or [row[f"val_{name}"] for row in rows if _number(row, f"val_{name}")]
        if values:
            one.axhline(sum(values) / len(values), color=COLOURS[5], linestyle=style, linewidth=1.3, label=label)
    return bool(drawn)


def _rates(axes: Sequence[Any], rows: Rows) -> bool:
    (one,) = axes
    one.set(ylim=(-0.03, 1.03))
    one.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    names = {
        "format_ok": "format good",
        "exact": "the expert's action",
        "solved": "tasks solved",
        "clipped": "cut at the limit",
        "zero_variance": "groups, no signal",
    }
    drawn = 0
    for (name, label), colour in zip(names.items(), COLOURS, strict=False):
        drawn += _line(one, rows, name, label, colour)
        drawn += _line(one, rows, f"val_{name}", f"{label}, held out", colour, "o--") if name in ("format_ok", "exact", "solved") else 0
    return bool(drawn)


def _lengths(axes: Sequence[Any], rows: Rows) -> bool:
    above, below = axes
    steps = [row for row in rows if _number(row, "completion_tokens_min")]
    if not steps:
        return False
    above.set(ylabel="tokens a completion")
    bounds = ([row[f"completion_tokens_{end}"] for row in steps] for end in ("min", "max"))
    above.fill_between([row["step"] for row in steps], *bounds, color=COLOURS[0], alpha=0.13, linewidth=0, label="shortest to longest")
    _line(above, rows, "completion_tokens", "mean", COLOURS[0])
    below.set(ylabel="entropy (nats)")
    _line(below, rows, "entropy", "a token of the update", COLOURS[3])
    return True


def _time(axes: Sequence[Any], rows: Rows) -> bool:
    above, below = axes
    steps = [row for row in rows if "update_tokens" in row and row.get("seconds")]
    if not steps:
        return False
    above.set(ylabel="share of a step", ylim=(0, 1))
    above.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    seconds = {name: sum(row.get(name, 0.0) for row in steps) for row in steps for name in row if name.startswith("seconds")}
    whole = seconds.pop("seconds")
    names = sorted(seconds, key=lambda name: -seconds[name])
    shares = [_smooth([row.get(name, 0.0) / row["seconds"] for row in steps]) for name in names]
    labels = [f"{name.removeprefix('seconds_').replace('_', '-')} {seconds[name] / whole:.0%}" for name in names]
    colours = [PHASES.get(name.removeprefix("seconds_"), COLOURS[6]) for name in names]
    above.stackplot([row["step"] for row in steps], shares, labels=labels, colors=colours, alpha=0.85, linewidth=0)
    below.set(ylabel="tokens a second", yscale="log" if any("tokens_per_second" in row for row in steps) else "linear")
    below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    below.yaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:e}"[0] in "25" else "")
    _line(below, rows, "tokens_per_second", "sampled", COLOURS[0])
    _line(below, rows, "update_tokens_per_second", "in the update", COLOURS[1])
    return True


def _loss(axes: Sequence[Any], rows: Rows) -> bool:
    above, below = axes
    on_policy = any("sampled_tokens" in row for row in rows)
    above.set(ylabel="loss (0 on-policy, but for\nrounding and a KL term)" if on_policy else "loss")
    below.set(ylabel="norm of the gradient")
    return bool(_line(above, rows, "loss", "", COLOURS[0]) + _line(below, rows, "grad_norm", "", COLOURS[1]))


def _line(axes: Any, rows: Rows, name: str, label: str, colour: str, style: str = "-") -> int:
    """Draw a figure; how many points it has."""
    points = [(row["step"], float(row[name])) for row in rows if _number(row, name)]
    if not points:
        return 0
    steps, values = zip(*points, strict=True)
    smooth = _smooth(values) if style == "-" else values
    if smooth is not values:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, style if len(points) > 1 else "o", color=colour, label=label, markersize=4)
    return len(points)


def _smooth(values: Sequence[float]) -> Sequence[float]:
    if len(values) < SMOOTHED:
        return values
    width = len(values) // 10
    return [sum(part := values[max(0, end - width) : end]) / len(part) for end in range(1, len(values) + 1)]


def _number(row: Mapping[str, Any], name: str) -> bool:
    return isinstance(row.get(name), int | float)
