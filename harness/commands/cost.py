"""What `harness train --dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NOT_COUNTED = (
    "Not counted: prompts without signal that are sampled besides, validation, scoring, padding, the starting of kernels. The rates "
    "are data sheets' and arithmetic; the harness has not been timed on these cards."
)


def cost_text(cost: Mapping[str, Any]) -> str:
    """The document of `harness.train.dry_run`, for a person."""
    lines = [*_head(cost), "", *_memory(cost["memory"])]
    for name, stage in cost["stages"].items():
        lines += ["", *_stage(name, stage, cost["utilisation"])]
    return "\n".join([*lines, *(["", NOT_COUNTED] if cost["device"]["gpu"] else [])])


def _head(cost: Mapping[str, Any]) -> Iterator[str]:
    device, data = cost["device"], cost["data"]
    yield f"{cost['model']}: {_count(cost['parameters'])} parameters; {cost['memory'][0]['trains']}: {_count(cost['trained_parameters'])}"
    yield f"device: {device['name']}, {device['gb']:g} GB" + ("" if device["gpu"] else ", no GPU: float32")
    prompts, said = data["prompt_tokens"], data["completion_tokens"]
    if data["steps"]:
        yield (
            f"data: {data['steps']} steps; prompts of {prompts['mean']:.0f} tokens on average, {prompts['max']} at most; the expert writes "
            f"{said['mean']:.0f}, {said['max']} at most"
        )
    else:
        yield f"data: not on this machine; every prompt is taken to have {prompts['max']} tokens, every completion {said['max']}"


def _memory(variants: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "memory, GB of 10^9 bytes, each part at its largest; the first variant is this run's"
    for variant in variants:
        fits = ", ".join(f"{place}: {'fits' if yes else 'DOES NOT FIT'}" for place, yes in variant["fits"].items())
        again = "with" if variant["gradient_checkpointing"] else "without"
        yield f"  {variant['trains']}, {variant['optimizer']}, {again} gradient checkpointing: {variant['gb']:.1f}   ({fits})"
        for moment, parts in variant["moments"].items():
            shown = ", ".join(f"{part} {value:.1f}" if value >= 0.95 else f"{part} {value:.2g}" for part, value in parts.items() if value)
            yield f"    {moment + ':':<18}{sum(parts.values()):>7.1f}  = {shown}"


def _stage(name: str, stage: Mapping[str, Any], utilisation: float) -> Iterator[str]:
    steps = f"{stage['steps']} steps" if stage["steps"] else f"how many steps depends on the data, or on --{name}.max_steps=N"
    yield f"{name}: {steps}" + (f"; {stage['not_estimated']}" if "not_estimated" in stage else "")
    titles = {"expected": "completions as long as the expert's", "at_most": "completions at the limit"}
    for label in (label for label in titles if label in stage):
        step = stage[label]
        if step["sampled_tokens"]:
            read, sampled = _count(step["read_tokens"]), _count(step["sampled_tokens"])
            yield f"  {titles[label]}: a step reads {read} tokens of prompts and samples {sampled}"
        yield from _update(step, utilisation)


def _update(step: Mapping[str, Any], utilisation: float) -> Iterator[str]:
    run, alone, shared = (_count(step["update_tokens"][name]) for name in ("run", "unshared", "shared"))
    other = f" ({alone} unshared, {shared} with each prefix once)" if alone != shared else ""
    yield f"    update: {run} tokens forwarded{other}, {step['update_operations'] / 1e12:,.4g} TFLOP"
    for card, found in step["cards"].items():
        parts = ", ".join(f"{part} {each['run']:,.4g} s (floor {each['floor']:,.4g})" for part, each in found["seconds"].items())
        hours = "" if found["hours"] is None else f"; all steps at {utilisation:.0%} of that rate: {found['hours']:,.3g} h"
        yield f"    {card} at its full rate: {parts}; {found['distance']:.1f} × the floor{hours}"


def _count(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
