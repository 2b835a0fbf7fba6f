"""Generation with vLLM, the extra `vllm`: the requests of all threads in one batch, which each joins as it comes and leaves as it ends.

The engine runs in a process of its own (`harness.generate_vllm_engine`): it gives back all its memory when it is closed, and ends when this
process does, however that happens.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from harness.generate import RequestRefused, require_vllm
from harness.generate_hf import ALLOWED, WEIGHT_FILES, Job, LocalGenerator, checkpoint_folder, completion_of, declared_ends, first_line
from harness_trajectories.errors import UserError

ENGINE = Path(__file__).with_name("generate_vllm_engine.py")
SETTINGS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
"""Of vLLM's environment, where the user has set nothing else."""


class VLLMGenerator(LocalGenerator):
    """A checkpoint folder or hub model on CUDA in bfloat16, or with vLLM's build for CPUs in float32.

    Sampling with a seed is reproducible as far as the kernels are: on CUDA, what else is in the batch can change the last bits of a logit.

    Args:
        model: folder with weights and tokenizer, or a hub id.

    Raises:
        UserError: vLLM is not installed, or cannot run this model on this machine.
    """

    def __init__(self, model: str | Path) -> None:
        require_vllm()
        super().__init__(model)
        try:
            folder = checkpoint_folder(self.name, WEIGHT_FILES)
            self._end = declared_ends(self.tokenizer, _generation_config(folder))
        except (OSError, ValueError) as error:
            raise UserError(f"no model can be loaded from {model}: {first_line(error)}. {ALLOWED}") from error
        self.cached_tokens = 0
        """Prompt tokens so far that were found in the cache, having been read for an earlier request."""
        self._waiting: dict[int, Job] = {}
        self._asked = 0
        self._ended: UserError | None = None
        self._lock = threading.Lock()
        if torch.cuda.is_initialized():  # as after training: memory that its allocator holds for nobody
            gc.collect()
            torch.cuda.empty_cache()
        environment = {**SETTINGS, **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(ENGINE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._say({"model": str(folder), "end": self._end})
        answer = self._hear()
        if "longest" not in answer:
            self._process.wait()
            raise UserError(f"vLLM cannot run {model}: {self._reason(answer)}. --engine transformers needs no vLLM")
        self._reader = threading.Thread(target=self._read, name="generation", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Break off what is under way: the threads that wait for it get a `CancelledError`. The engine's memory is free afterwards."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            self._ended = self._ended or UserError(f"{self.name} is closed")
        for job in waiting.values():
            job.answer.cancel()
        self._input.close()
        self._process.wait()
        self._reader.join()

    def _submit(self, job: Job) -> None:
        sampling = job.sampling
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._asked += 1
            self._waiting[self._asked] = job
            self._say(
                {
                    "id": self._asked,
                    "prompt": job.prompt,
                    "max_tokens": sampling.max_tokens,
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "seed": job.seed,
                }
            )

    def _read(self) -> None:
        """Hand out the answers until there are no more, and then the reason why to all who wait."""
        while "id" in (answer := self._hear()):
            with self._lock:
                job = self._waiting.pop(answer["id"], None)
            if job is None:
                continue
            if "error" in answer:
                job.answer.set_exception(RequestRefused(f"vLLM refuses a request to {self.name}: {answer['error']}"))
            else:
                self.cached_tokens += answer["cached"]
                job.answer.set_result(completion_of(self.tokenizer, self._end, job.prompt, answer["tokens"]))
        self._process.wait()
        with self._lock:
            ended = self._ended = self._ended or UserError(
                f"vLLM's engine for {self.name} has died: {self._reason(answer)}. What is finished is kept: run the same command again"
            )
            waiting, self._waiting = self._waiting, {}
        for job in waiting.values():
            job.answer.set_exception(ended)

    def _say(self, row: dict[str, Any]) -> None:
        try:
            self._input.write(json.dumps(row) + "\n")
            self._input.flush()
        except BrokenPipeError:  # the engine has died, which is heard of by reading
            pass

    def _hear(self) -> dict[str, Any]:
        """The next thing that the engine says; empty where it has died."""
        line = self._output.readline()
        return dict(json.loads(line)) if line.endswith("\n") else {}

    def _reason(self, answer: dict[str, Any]) -> str:
        """Why the engine, whose process has ended, did so."""
        return answer.get("error") or f"its process ended with exit code {self._process.returncode}, and what it said stands above"


def _generation_config(folder: Path) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
