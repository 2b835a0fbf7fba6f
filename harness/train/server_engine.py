"""A vLLM server as what samples for RL: one that the user has started, on other GPUs or another node. Neither vLLM is needed here, nor
anything of ours there.

Token ids go to its /v1/completions and come back with their log-probs. `refresh` writes the weights into a folder that both see, has the
server's workers read it (`reload_weights`, by /collective_rpc) and its prefix cache forgotten, which was computed with the weights before.
The server keeps the folder's name as the version of its weights, and is asked for it before it samples: one that was started again reads
the folder again. Several processes that train share a server: each asks for its own completions, the first hands over the weights.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import torch
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, OpenAIError, Timeout

from harness.generate import Sampled
from harness.train import processes
from harness.train.adapters import whole_weights
from harness.train.config import Reinforced
from harness.train.failure import TrainingFailed
from harness.train.sharding import whole
from harness_trajectories.errors import UserError

FOLDER = "sampler"
"""Of a run, where weights lie that a server reads."""
REQUESTS = 256
"""Under way at a time, from each process: a prompt each, with all its completions."""
PATIENCE = 300.0
"""Seconds in which a server that was lost may come back: it starts in some minutes."""
LONG = ("/v1/completions", "/collective_rpc")
"""What may take as long as processes wait for each other."""
MOMENT = 120.0
"""Seconds for anything else: a server whose engine has died may not answer at all."""
BUSY = (429, 502, 503, 504)
UNFILTERED = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Said with each request: what a request leaves open, vLLM takes from the model's generation_config.json."""
UNREAD = "default"
"""What a server calls the weights that it was started with."""
AS_IDS = {"logprobs": 0, "return_tokens_as_token_ids": True}


class Lost(Exception):
    """The server cannot be reached, or takes no request now: another time it may."""


class Refused(Exception):
    """The server answers with an error.

    Args:
        status: of HTTP.
        message: in the server's words.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"answers {status} ({message})")
        self.status = status


class Server:
    """What is said over HTTP. A key is read from OPENAI_API_KEY.

    Args:
        address: `http://HOST:PORT`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = AsyncOpenAI(base_url=address, api_key=key, max_retries=0, timeout=MOMENT)
        self._patient = self._client.with_options(timeout=Timeout(processes.SILENCE.total_seconds(), connect=MOMENT))
        self._runner = asyncio.Runner()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    async def get(self, path: str) -> Any:
        return await self._answer(path, self._client.get(path, cast_to=object))

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        client = self._patient if path in LONG else self._client
        return await self._answer(path, client.post(path, cast_to=object, body=body))

    async def _answer(self, path: str, request: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await request
        except APITimeoutError as error:
            if path in LONG:
                raise TrainingFailed(f"the server {self._address} has not answered for {processes.SILENCE}") from error
            raise Lost(f"it has not answered for {MOMENT:g} s") from error
        except APIConnectionError as error:
            raise Lost(str(error.__cause__ or error) or type(error.__cause__).__name__) from error
        except APIStatusError as error:
            said = error.body.get("message") if isinstance(error.body, dict) else None
            refused = Refused(error.status_code, str(said or error.response.text)[:300])
            raise (Lost(str(refused)) if error.status_code in BUSY else refused) from error

    def close(self) -> None:
        self.run(self._client.close())
        self._runner.close()


def check_server(options: Reinforced, longest: int) -> None:
    """Refuse a server that cannot sample for training.

    Args:
        options: with its address as `sampler`.
        longest: tokens of a prompt and its completion together, at most.

    Raises:
        UserError: nobody answers there, or it was started otherwise than it must be.
    """
    command = f"VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs --max-model-len {longest}"

    def refusal(why: str) -> UserError:
        return UserError(f"{options.section}.sampler {options.sampler}: {why}. Start the server with {command} (docs/scale.md)")

    async def look() -> tuple[int, Any]:
        cards = await server.get("/v1/models")
        await server.get("/weight_info")
        # A token that is the only one allowed has the log-prob 0, if those are told by which the token was drawn.
        probe = {"prompt": [0], "max_tokens": 1, "allowed_token_ids": [0], "temperature": 1.0, "seed": 0, **AS_IDS}
        answer = await server.post("/v1/completions", probe)
        return cards["data"][0]["max_model_len"], _sampled(answer["choices"][0])

    with closing(Server(options.sampler)) as server:
        try:
            limit, probe = server.run(look())
        except Lost as lost:
            raise refusal(f"it cannot be reached: {lost}") from None
        except Refused as refused:
            if refused.status == 404:
                raise refusal("its weights cannot be replaced, since it has no /weight_info, as vLLM 0.28 and newer have") from None
            key = "; is OPENAI_API_KEY its key?" if refused.status in (401, 403) else ""
            raise refusal(f"it {refused}{key}") from None
        except (OpenAIError, TrainingFailed, LookupError, TypeError, ValueError, AttributeError) as error:
            raise refusal(f"it does not answer as vLLM does ({type(error).__name__}: {error})") from None
    if abs(probe.logprobs[0]) > 1e-3:
        raise refusal("the log-probs that it tells are not those of the distribution that it samples from")
    if limit < longest:
        raise refusal(f"it takes {limit} tokens of a prompt and its completion, and the run has up to {longest}")


class ServerEngine:
    """Samples with a vLLM server.

    Args:
        options: with its address as `sampler`.
        model: that is trained, sharded or not, perhaps with adapters, which are added to the weights that the server gets.
        end: tokens that end a completion.
        folder: for the weights; the server sees it under the same name. What lies there is removed, now and in the end.
    """

    def __init__(self, options: Reinforced, model: Any, end: Sequence[int], folder: Path) -> None:
        self._options = options
        self._model = model
        self._end = list(end)
        self._folder = folder.resolve()
        self._weights: Path | None = None
        """What the server has to have read."""
        self._server = Server(options.sampler)
        self._clear()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        copies: int = 1,
        max_tokens: int | None = None,
        seeds: Sequence[int] | None = None,
        greedy: bool = False,
    ) -> list[list[Sampled]]:
        """The longest prompt is sent first. A prompt's completions are one request, with the first of their seeds: vLLM counts on from it.

        Raises:
            TrainingFailed: the server is gone, or does not do it.
        """
        assert copies == 1 or not greedy
        if seeds is None:
            seeds = torch.randint(2**56, (len(prompts) * copies,)).tolist()
        common = {"n": copies, "temperature": 0.0 if greedy else self._options.temperature, **AS_IDS, **UNFILTERED}
        common |= {"max_tokens": max_tokens or self._options.max_completion_tokens, "stop_token_ids": self._end, "ignore_eos": True}
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        found: dict[int, list[Sampled]] = {}

        async def ask(index: int, slots: asyncio.Semaphore) -> None:
            async with slots:
                request = {"prompt": list(prompts[index]), "seed": seeds[index * copies], **common}
                answer = await self._server.post("/v1/completions", request)
            found[index] = [_sampled(choice) for choice in sorted(answer["choices"], key=lambda choice: choice["index"])]

        async def ask_all() -> None:
            version = (await self._server.get("/weight_info"))["weight_version"]
            if version == UNREAD:
                await self._hand_over()
            elif version != self._weights.name:
                raise TrainingFailed(f"the server {self._options.sampler} has weights that another run has given it ({version})")
            slots = asyncio.Semaphore(REQUESTS)
            try:
                async with asyncio.TaskGroup() as group:
                    for index in order:
                        if index not in found:
                            group.create_task(ask(index, slots))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None

        self._persist(ask_all)
        return [found[index] for index in range(len(prompts))]

    def refresh(self) -> None:
        """All processes call it together.

        Raises:
            TrainingFailed: the server is gone, or cannot read the weights.
        """
        before, self._weights = self._weights, self._folder / f"weights-{time.time_ns()}"
        self._write(self._weights)
        if processes.is_first():
            self._persist(self._hand_over)
            if before is not None:
                shutil.rmtree(before)
        self._weights = processes.gathered([self._weights])[0]  # the others wait here for the first

    def close(self) -> None:
        self._server.close()
        self._clear()

    def _clear(self) -> None:
        if processes.is_first():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        """In bfloat16 where a GPU computes in it."""
        bare, sums = whole_weights(self._model)
        dtype = torch.bfloat16 if self._model.device.type == "cuda" else None
        weights = whole(self._model, dtype) if sums is None else sums.items()
        kept = {name: weight.cpu() for name, weight in weights if processes.is_first()}
        if processes.is_first():
            bare.save_pretrained(folder, state_dict=kept)

    async def _hand_over(self) -> None:
        try:
            await self._server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(self._weights)}})
        except Refused as refused:
            raise TrainingFailed(
                f"the server {self._options.sampler} cannot take over the weights: it {refused}. It must see {self._weights} under that "
                "name, and have been started with a checkpoint of this model. Start it again, since vLLM does not outlive this"
            ) from None
        if not (await self._server.post("/reset_prefix_cache", {}))["success"]:
            raise Lost("it is at work on requests of others")
        await self._server.post("/update_weight_version", {"new_version": self._weights.name})

    def _persist(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do it, and try again where the server is lost."""
        since = None
        for tries in count():
            try:
                return self._server.run(work())
            except Refused as refused:
                raise TrainingFailed(f"the server {self._options.sampler} {refused}") from None
            except Lost as lost:
                why = lost
            since = time.monotonic() if since is None else since
            if time.monotonic() - since > PATIENCE:
                raise TrainingFailed(
                    f"the server {self._options.sampler} has been lost for {PATIENCE:g} s: {why}. Start it again, there or elsewhere, as "
                    f"--{self._options.section}.sampler then says, or take --{self._options.section}.sampler=model"
                )
            wait = min(2**tries, PATIENCE / 5)
            print(f"the server {self._options.sampler} is lost: {why}. The next try is in {wait:g} s", file=sys.stderr)
            time.sleep(wait)


def _sampled(choice: dict[str, Any]) -> Sampled:
    """
    Raises:
        Lost: the server has broken it off.
    """
    if choice["finish_reason"] not in ("stop", "length"):
        raise Lost(f"it has broken off a completion ({choice['finish_reason']})")
    said = choice["logprobs"]
    return Sampled([int(token.removeprefix("token_id:")) for token in said["tokens"]], said["token_logprobs"])
