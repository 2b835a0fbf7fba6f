"""`harness data export`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness.commands.data import ContextOption, Json, TargetsOption, opened, parse_context, parse_targets
from harness.commands.output import emit

if TYPE_CHECKING:
    from harness_trajectories.schema import Trajectory
    from harness_trajectories.steps import ContextPolicy, Targets


def export(
    path: Annotated[Path, typer.Argument(help="An imported folder, or raw files.")],
    to: Annotated[
        Literal["atif", "openai", "swesmith-xml", "steps", "verl"],
        typer.Option(help="Whole runs: atif, openai, swesmith-xml. Single steps: steps (JSON lines), verl (its Parquet columns)."),
    ],
    out: Annotated[Path, typer.Option(help="File to write; of atif the folder, with a document a run.")],
    domain: Annotated[
        str | None, typer.Option(help="Steps: take the system prompt of this domain, as train does.  [default: the run's own]")
    ] = None,
    targets: TargetsOption = "all_but_last",
    context: ContextOption = "last_2",
    as_json: Json = False,
) -> None:
    """Write trajectories, or the training examples made of them, for other programs. Prompts are whole: none is cut to a token limit."""
    from harness_trajectories.errors import UserError
    from harness_trajectories.export import to_openai, to_swesmith, write_lines, write_verl

    policy, chosen = parse_context(context), parse_targets(targets)
    if domain is not None and to not in ("steps", "verl"):
        raise UserError(f"--domain goes with --to steps and --to verl; {to} keeps the run's own system prompt")
    if out.is_dir() and (to != "atif" or any(out.iterdir())):
        raise UserError(f"--out {out}: {'this folder is not empty' if to == 'atif' else 'this is a folder'}; name a new one of your own")
    trajectories, _ = opened(path)
    counts: Counter[str] = Counter()
    (out if to == "atif" else out.parent).mkdir(parents=True, exist_ok=True)
    if to == "atif":
        rows = _write_atif(_counted(trajectories, counts), out)
    elif to == "verl":
        rows = write_verl(_steps(_counted(trajectories, counts), policy, chosen, domain, counts, verl=True), out)
    elif to == "steps":
        rows = write_lines(_steps(_counted(trajectories, counts), policy, chosen, domain, counts, verl=False), out)
    else:
        rows = write_lines(map(to_openai if to == "openai" else to_swesmith, _counted(trajectories, counts)), out)
    document: dict[str, Any] = {"to": to, "out": str(out), "trajectories": counts.pop("trajectories", 0), "rows": rows}
    if to in ("steps", "verl"):
        document["not_targets"] = {reason: count for reason, count in counts.items() if reason != "target"}
    emit(document, as_json, f"{out}: {rows} rows of {document['trajectories']} trajectories")


def _counted(trajectories: Iterable[Trajectory], counts: Counter[str]) -> Iterator[Trajectory]:
    for item in trajectories:
        counts["trajectories"] += 1
        yield item


def _write_atif(trajectories: Iterable[Trajectory], folder: Path) -> int:
    """One document a file, as ATIF's own tools expect it."""
    from harness.evaluate import file_name
    from harness.runs import write_json
    from harness_trajectories.atif import to_atif

    count = 0
    for item in trajectories:
        write_json(folder / f"{file_name(item.id)}.json", to_atif(item, item.format, "unknown"))
        count += 1
    return count


def _steps(
    trajectories: Iterable[Trajectory], context: ContextPolicy, targets: Targets, domain: str | None, counts: Counter[str], verl: bool
) -> Iterator[dict[str, Any]]:
    """The rows of the targets, with the prompts that training has."""
    from harness.prompt import completion, messages
    from harness.reward import expert_text
    from harness_trajectories.export import step_row, verl_row
    from harness_trajectories.steps import step_examples

    prompts: dict[str, str] = {}
    index = 0
    for item in trajectories:
        if domain is None:
            system = "\n\n".join(step.message for step in item.steps if step.source == "system")
        else:
            system = prompts[item.wire] = prompts.get(item.wire) or _system_prompt(domain, item.wire)
        for example in step_examples(item, context, targets, counts):
            prompt = messages(system, example.prompt, example.history, example.wire, example.omitted, example.heading)
            row = (example, prompt, completion(example.thought, example.target, example.wire), expert_text(example.target))
            yield verl_row(*row, index, item.split or "train") if verl else step_row(*row)
            index += 1


def _system_prompt(domain: str, wire: Literal["calls", "text"]) -> str:
    from harness.env import load_env
    from harness.train.config import TINY_MODEL, TrainConfig
    from harness.train.data import system_prompt

    return system_prompt(load_env(domain), wire, TrainConfig(domain=domain, model=TINY_MODEL, data=("exported",)))
