"""vLLM's engine in a process of its own, which `harness.generate_vllm` starts and talks to in JSON lines. It imports none of this package.

In, first the model, then requests at any time. The end of the input (the other side has closed it, or was killed) ends the process at once:

    {"model": FOLDER, "end": [ID, …]}
    {"id": N, "prompt": [ID, …], "max_tokens": …, "temperature": …, "top_p": …, "seed": …}

Out, first the longest sequence that it takes, then answers as they are finished. An error without an id is the last thing that is said:

    {"longest": TOKENS}
    {"id": N, "tokens": [ID, …], "cached": TOKENS} or {"id": N, "error": TEXT}
    {"error": TEXT}
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

SHARE = 0.9
"""Of a GPU's memory that the engine takes, where so much is free."""
SPARE = 0.95
"""Of what is free, where it is less than that."""

Lines = queue.SimpleQueue[dict[str, Any]]


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # stdout is for answers; what libraries print goes to stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for the answers

    def say(row: dict[str, Any]) -> None:
        out.write(json.dumps(row) + "\n")
        out.flush()

    first = json.loads(sys.stdin.readline())
    lines: Lines = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    try:
        engine = _engine(first["model"])
        longest = engine.model_config.max_model_len
        say({"longest": longest})
        _serve(engine, first["end"], longest, lines, say)
    except Exception as error:  # as many kinds as vLLM has parts
        say({"error": " ".join(str(error).split())[:500] or type(error).__name__})
        os._exit(1)


def _listen(lines: Lines) -> None:
    for line in sys.stdin:
        lines.put(json.loads(line))
    os._exit(0)


def _engine(model: str) -> Any:
    """bfloat16 on CUDA, float32 with vLLM's build for CPUs. No tokenizer is read."""
    import torch
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    options: dict[str, Any] = {"dtype": "bfloat16"}
    if current_platform.is_cpu():
        options = {"dtype": "float32", "enforce_eager": True}
    elif current_platform.is_cuda_alike():
        free, total = torch.cuda.mem_get_info()
        options["gpu_memory_utilization"] = min(SHARE, SPARE * free / total)
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=model,
            skip_tokenizer_init=True,
            max_model_len=-1,  # the model's own, or what fits into memory
            enable_prefix_caching=True,
            generation_config="vllm",  # no sampling options but those of a request
            **options,
        )
    )


def _serve(engine: Any, end: list[int], longest: int, lines: Lines, say: Callable[[dict[str, Any]], None]) -> None:
    """Add requests as they come, and let the engine go on with all of them together."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    while True:
        while not engine.has_unfinished_requests() or not lines.empty():
            request = lines.get()
            number, prompt = request.pop("id"), request.pop("prompt")
            if len(prompt) >= longest:
                say({"id": number, "error": f"a prompt of {len(prompt)} tokens; less than {longest} are taken"})
                continue
            parameters = SamplingParams(**request, stop_token_ids=end, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
            engine.add_request(str(number), tokens_input(prompt), parameters)
        for output in engine.step():
            if output.finished:
                answer = {"tokens": list(output.outputs[0].token_ids), "cached": output.num_cached_tokens or 0}
                say({"id": int(output.request_id), **answer})


if __name__ == "__main__":
    main()
