"""What `test_generate_vllm.py` has done in the environment that holds vLLM: one engine for all of it, one JSON document on stdout.

python vllm_driver.py CHECKPOINT < {"conversations": […], "shared": […], "long": […]}
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness.generate import Sampling, load_generator
from harness.generate_vllm import VLLMGenerator
from harness.prompt import Message
from harness_trajectories.errors import UserError

GREEDY = Sampling(max_tokens=24)
SAMPLED = Sampling(max_tokens=24, temperature=1.0, top_p=0.9, seed=7)


def error_of(generator: VLLMGenerator, conversation: list[Message]) -> str:
    try:
        generator.generate([conversation], GREEDY)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def waiting_for_a_dead_engine(generator: VLLMGenerator, conversation: list[Message], threads: int) -> list[str]:
    """What each thread is told when the engine is killed under it, and one that comes afterwards."""
    generator._process.send_signal(signal.SIGSTOP)  # so that nobody is answered before
    with ThreadPoolExecutor(threads) as pool:
        told = [pool.submit(error_of, generator, conversation) for _ in range(threads)]
        while len(generator._waiting) < threads:
            time.sleep(0.05)
        generator._process.kill()
        return [one.result(timeout=60) for one in told] + [error_of(generator, conversation)]


def main() -> None:
    asked = json.load(sys.stdin)
    conversations: list[list[Message]] = asked["conversations"]
    generator = load_generator(sys.argv[1], "vllm")
    assert isinstance(generator, VLLMGenerator)
    found: dict[str, Any] = {"counts": [generator.count(conversation) for conversation in conversations]}
    found["greedy"] = generator.generate(conversations, GREEDY)
    start = threading.Barrier(16)

    def ask(number: int) -> list[Any]:
        start.wait()
        return list(generator.generate([conversations[number % len(conversations)]], GREEDY)[0])

    with ThreadPoolExecutor(16) as pool:
        found["threads"] = list(pool.map(ask, range(16)))
    found["sampled"] = generator.generate(conversations, SAMPLED)
    found["sampled again, alone"] = [
        generator.generate([conversation], SAMPLED.model_copy(update={"seed": SAMPLED.seed + number}))[0]
        for number, conversation in enumerate(conversations)
    ]
    found["narrow"] = generator.generate(conversations, SAMPLED.model_copy(update={"top_p": 1e-6}))
    found["other seed"] = generator.generate(conversations[:1], SAMPLED.model_copy(update={"seed": 8}))[0]
    shared = [[*asked["shared"], Message(role="user", content=str(number))] for number in range(4)]
    before = generator.cached_tokens
    generator.generate(shared[:1], GREEDY)
    found["cached at first"] = generator.cached_tokens - before
    generator.generate(shared[1:], GREEDY)
    found["cached later"] = generator.cached_tokens - before
    found["too long"] = error_of(generator, asked["long"])
    found["dead"] = waiting_for_a_dead_engine(generator, conversations[0], 4)
    generator.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
