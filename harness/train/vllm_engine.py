"""vLLM as what samples for RL, in the process that trains and on its device: the same weights twice, in vLLM's layout the second time.

vLLM reads no checkpoint. It is built from the model's configuration with arbitrary weights, and `refresh` hands it those of the model, by
name, before the first completion as after every optimizer step. What vLLM keeps of prompts is computed with the weights of its time, so
it is forgotten then. Whether both compute the same, `max_sampler_gap` watches.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterable, Sequence
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor

from harness.generate import Sampled
from harness.train import processes
from harness.train.adapters import whole_weights
from harness.train.config import Reinforced
from harness.train.sharding import whole
from harness_trajectories.errors import UserError


def check_vllm(options: Reinforced) -> None:
    """Refuse `sampler: vllm` where it cannot be.

    Raises:
        UserError: vLLM is not installed, or several processes train.
    """
    if options.sampler != "vllm":
        return
    if processes.count() > 1:
        raise UserError(
            f"{options.section}.sampler vllm is for one process, and this run has {processes.count()}: not supported yet. Take "
            f"--{options.section}.sampler=model, or train in one process"
        )
    if find_spec("vllm") is None:
        raise UserError(
            f"{options.section}.sampler vllm needs vLLM, which is not installed here: pip install 'srl-harness[vllm]', or take "
            f"--{options.section}.sampler=model"
        )


class VLLMEngine:
    """Samples with vLLM; bfloat16 on a GPU, float32 on a CPU.

    Args:
        model: that is trained, perhaps with adapters, which are added to the weights that vLLM gets.
        end: tokens that end a completion.
        longest: tokens of a prompt and its completion together, at most.
        memory: share of the GPU's memory that vLLM takes: weights, cache and activations.
    """

    def __init__(self, model: Any, end: Sequence[int], max_tokens: int, temperature: float, longest: int, memory: float) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # vLLM reads it: the engine in this process, where its weights can be reached
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        from vllm import LLM

        self._model = model
        self._end = list(end)
        self._max_tokens = max_tokens
        self._temperature = temperature
        bare = model.get_base_model() if is_peft_model(model) else model
        config = deepcopy(bare.config)
        config.architectures = [type(bare).__name__]
        gpu = bare.device.type == "cuda"
        options = {"dtype": "bfloat16", "gpu_memory_utilization": memory}
        if not gpu:  # a prompt that is read in parts has its generator set back, which torch's CPU generator cannot do
            options = {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False}
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            self._llm = LLM(
                folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",  # no sampling options but those of a request
                max_model_len=longest,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",
                **options,
            )

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        copies: int = 1,
        max_tokens: int | None = None,
        seeds: Sequence[int] | None = None,
        greedy: bool = False,
    ) -> list[list[Sampled]]:
        """All at once; vLLM decides what is decoded together."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        count = len(prompts) * copies
        if seeds is None:
            seeds = torch.randint(2**56, (count,)).tolist()
        common = {"temperature": 0.0 if greedy else self._temperature, "max_tokens": max_tokens or self._max_tokens, "logprobs": 0}
        parameters = [SamplingParams(seed=seed, stop_token_ids=self._end, detokenize=False, **common) for seed in seeds]
        asked = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts for _ in range(copies)]
        found = [_sampled(answer.outputs[0]) for answer in self._llm.generate(asked, parameters, use_tqdm=False)]
        return [found[start : start + copies] for start in range(0, count, copies)]

    def refresh(self) -> None:
        self._llm.apply_model(lambda theirs: theirs.load_weights(_weights(self._model)))
        forgotten = self._llm.reset_prefix_cache()
        assert forgotten, "requests are running"

    def close(self) -> None:
        """Give vLLM's memory back."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _weights(model: Any) -> Iterable[tuple[str, Tensor]]:
    _, sums = whole_weights(model)
    return whole(model) if sums is None else sums.items()


def _sampled(output: Any) -> Sampled:
    tokens = list(output.token_ids)
    return Sampled(tokens, [row[token].logprob for row, token in zip(output.logprobs, tokens, strict=True)])
