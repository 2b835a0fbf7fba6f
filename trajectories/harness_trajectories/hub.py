"""Data sets of the Hugging Face hub as rows, through `datasets`; that package is loaded only when one is read.

`owner/name` is all its splits, `owner/name:SPLIT` one of them: some data sets hold the same runs in several encodings, a split each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from harness_trajectories.errors import UserError
from harness_trajectories.formats.row import SUFFIXES

_ID = re.compile(r"\w[\w.-]*/[\w.-]+(:[\w.-]+)?")
_HELD_OUT = ("test", "validation", "train")
_DECLARED = {"train": "train", "validation": "val", "val": "val", "test": "test"}
"""What the name of a split declares about its rows; other names (`tool`, `xml`) declare nothing."""


def is_id(path: PurePath) -> bool:
    """Whether a path that does not exist may be meant as `owner/name` or `owner/name:SPLIT` on the hub."""
    return bool(_ID.fullmatch(path.as_posix())) and not path.name.endswith((*SUFFIXES, ".gz", ".zst"))


@cache
def load(name: str, config: str | None = None) -> Mapping[str, Any]:
    """The splits of a data set, downloaded once and then mapped from the disk. A local folder that `datasets` can read will do too.

    Args:
        name: `owner/name`, or a folder; with `:SPLIT` behind it, that split alone.
        config: which of the data set's configurations; None: its only or default one.

    Raises:
        UserError: it cannot be had, or has no such split.
    """
    import datasets
    from huggingface_hub import HfApi, constants

    repository, _, split = name.partition(":")
    try:
        if is_id(PurePath(repository)) and not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(repository, timeout=10)  # fails at once where `load_dataset` would retry for half a minute
        found = datasets.load_dataset(repository, config)
    except Exception as error:  # the hub's clients raise anything from their HTTP library's errors to ValueError
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name}: no such file or folder, and no data set of this name can be had from the hub: {reason}. "
            "Give a local file or folder, or set HF_HUB_OFFLINE=1 to use a copy downloaded before"
        ) from error
    splits: Mapping[str, Any] = found
    if split and split not in splits:
        raise UserError(f"{name}: the data set has no split {split!r}; its splits: {', '.join(splits)}")
    return {split: splits[split]} if split else splits


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Every row of every split; a row that declares no split gets that of its place.

    Raises:
        UserError: the data set cannot be had.
    """
    for split, part in load(name).items():
        declared = _DECLARED.get(split)
        for row in part:
            yield {**row, "split": declared} if declared and row.get("split") is None else row


def held_out(name: str, config: str | None = None) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(split, number from 1, row) of the split to evaluate on: `test` where there is one, else `validation`, else `train`, else the first.

    Raises:
        UserError: the data set cannot be had.
    """
    found = load(name, config)
    split = next((one for one in _HELD_OUT if one in found), next(iter(found)))
    for number, row in enumerate(found[split], 1):
        yield split, number, row
