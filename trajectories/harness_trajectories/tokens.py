"""Texts as tokens on disk, each text once: DIR/tokens.bin is one flat array, DIR/index.npz says where each text ends in it.

A text is known by its digest, so that no entry can be out of date: a changed text is another text, and another tokenizer empties the store.
"""

from __future__ import annotations

import fcntl
import os
import zipfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_trajectories.errors import UserError

TOKENS = "tokens.bin"
INDEX = "index.npz"
_DIGEST = 16
_BATCH = 1 << 20
"""Characters that are tokenised at once: enough for all cores; a tokenizer needs about 30 bytes for each while it works."""
_NARROW = 1 << 16

Encode = Callable[[list[str]], Iterable[Sequence[int]]]


class TokenStore:
    """Tokens of texts. A number stands for a text, in the order in which they were first added; one process at a time.

    Args:
        directory: made where it is missing. What an earlier process saved there is taken up; what does not fit is begun anew.
        encode: the token ids of each text of a batch. It is called from another thread too, by one at a time.
        tokenizer: everything that `encode` depends on, as text (a tokenizer.json).
        vocabulary: ids are smaller than this; up to 65,536 a token takes 2 bytes, else 4.
        read_only: take up what was saved, beside any other process, and add nothing.

    Raises:
        UserError: another process writes there.
    """

    def __init__(self, directory: Path, encode: Encode, tokenizer: str, vocabulary: int, read_only: bool = False) -> None:
        self._directory = directory
        self._encode = encode
        self._kind = "H" if vocabulary <= _NARROW else "I"
        self._fingerprint = f"{self._kind}:{_digest(tokenizer).hex()}"
        self._numbers: dict[bytes, int] = {}
        self._counted: dict[bytes, int] = {}
        self._ends = array("q", [0])  # of each text; the leading 0 is where the first begins
        self._waiting: list[str] = []
        self._characters = 0
        self._worker = ThreadPoolExecutor(1, "tokenising")
        self._work: Future[tuple[array[int], list[int]]] | None = None
        self._read_only = read_only
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / TOKENS).open("rb" if read_only else "a+b")
        if read_only:
            assert self._load(), f"nothing of this tokenizer was saved in {directory}"
        else:
            self._take_over()
        self._tokens: NDArray[Any] = self._map()

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        self._flush()
        return self._ends[-1]

    def add(self, text: str) -> int:
        """The number of a text. A new one is tokenised with the next batch, or when its tokens are asked for."""
        digest = _digest(text)
        number = self._numbers.get(digest)
        if number is None:
            number = self._numbers[digest] = len(self._numbers)
            self._waiting.append(text)
            self._characters += len(text)
            if self._characters >= _BATCH:  # tokenised beside the caller, who prepares the next batch
                self._finish()
                self._work = self._worker.submit(self._tokenize, self._take())
        return number

    def count(self, text: str) -> int:
        """Tokens of a text that is not to be kept; it is tokenised once all the same."""
        digest = _digest(text)
        if digest in self._numbers:
            return self.length([self._numbers[digest]])
        if digest not in self._counted:
            self._finish()
            (ids,) = self._encode([text])
            self._counted[digest] = len(ids)
        return self._counted[digest]

    def length(self, numbers: Iterable[int]) -> int:
        """Tokens of these texts together."""
        self._flush()
        ends = self._ends
        return sum(ends[number + 1] - ends[number] for number in numbers)

    def join(self, numbers: Iterable[int]) -> NDArray[Any]:
        """The tokens of these texts, one after the other. (T,), uint16 or uint32."""
        self._flush()
        if len(self._tokens) < self._ends[-1]:
            self._tokens = self._map()
        tokens, ends = self._tokens, self._ends
        return np.concatenate([tokens[:0], *(tokens[ends[number] : ends[number + 1]] for number in numbers)])

    def save(self) -> None:
        """Make what was added last: the tokens reach the disk before the index that speaks of them is put in its place."""
        self._flush()
        if self._read_only:
            return
        os.fsync(self._file.fileno())
        temporary = self._directory / f".{INDEX}.{os.getpid()}"
        digests = np.frombuffer(b"".join(self._numbers), np.uint8)
        with temporary.open("wb") as file:
            np.savez(file, fingerprint=self._fingerprint, ends=np.array(self._ends), digests=digests)
        os.replace(temporary, self._directory / INDEX)

    @property
    def _width(self) -> int:
        return np.dtype(self._kind).itemsize

    def _take_over(self) -> None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self._directory} is being written by another process; wait for it, or give this one another folder"
            ) from None
        if not self._load():
            (self._directory / INDEX).unlink(missing_ok=True)  # before the tokens that it speaks of are written over
        self._file.truncate(self._ends[-1] * self._width)

    def _take(self) -> list[str]:
        waiting, self._waiting, self._characters = self._waiting, [], 0
        return waiting

    def _tokenize(self, texts: list[str]) -> tuple[array[int], list[int]]:
        """Tokens of the texts, one after the other, and how many each has."""
        tokens: array[int] = array(self._kind)
        lengths = []
        for ids in self._encode(texts):
            tokens.extend(ids)
            lengths.append(len(ids))
        assert len(lengths) == len(texts)
        return tokens, lengths

    def _write(self, tokens: array[int], lengths: list[int]) -> None:
        assert not self._read_only, f"{len(lengths)} texts are not in the store"
        self._file.write(tokens)
        self._file.flush()
        for length in lengths:
            self._ends.append(self._ends[-1] + length)

    def _finish(self) -> None:
        if self._work is not None:
            work, self._work = self._work, None
            self._write(*work.result())

    def _flush(self) -> None:
        self._finish()
        if self._waiting:
            self._write(*self._tokenize(self._take()))
        assert len(self._ends) == len(self._numbers) + 1, "tokenising failed before"

    def _map(self) -> NDArray[Any]:
        """The file as an array. The plain view of the memory map: each slice of a `numpy.memmap` costs ten times as much. Of the open file,
        not its path: to close a file a second time would give up the lock."""
        if self._ends[-1] == 0:
            return np.empty(0, self._kind)
        return np.memmap(self._file, self._kind, "r", shape=(self._ends[-1],)).view(np.ndarray)

    def _load(self) -> bool:
        """Take up what was saved, if it is this tokenizer's and whole; else do nothing."""
        try:
            with np.load(self._directory / INDEX) as index:
                fingerprint, ends, digests = str(index["fingerprint"]), index["ends"], index["digests"].tobytes()
            size = os.fstat(self._file.fileno()).st_size
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False
        if fingerprint != self._fingerprint or len(ends) * _DIGEST != len(digests) + _DIGEST or ends[-1] * self._width > size:
            return False
        self._ends = array("q", ends.tobytes())
        self._numbers = {digests[start : start + _DIGEST]: number for number, start in enumerate(range(0, len(digests), _DIGEST))}
        return True


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=_DIGEST).digest()
