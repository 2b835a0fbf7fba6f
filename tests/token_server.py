"""A server with the endpoints of vLLM's that training needs, on transformers: token ids in and out, weights that are read from a folder.

As vLLM does, it numbers the seeds of a prompt's completions on from the first, and goes on with what it has computed until its cache is
reset: here it samples from the old weights until then. Its log-probs are those of our own decoder, and of weights that it loaded itself.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from harness.generate import Sampled
from harness.generate_decode import decode
from harness.generate_hf import load_model
from harness.scripted_server import RawAnswer, _Http


class TokenServer:
    """A context manager.

    Args:
        checkpoint: what it is started with.
        limit: tokens of a prompt and its completion together.
        raw: it tells log-probs of the model, whatever a request wants of them.
        rpc: it can be given weights, as in vLLM's development mode.

    Attributes:
        requests: bodies of the requests for completions.
        folders: that were read.
        answers: requests that get this instead of an answer, and are then taken away.
    """

    def __init__(self, checkpoint: Path, limit: int = 4096, raw: bool = False, rpc: bool = True) -> None:
        self.requests: list[dict[str, Any]] = []
        self.folders: list[str] = []
        self.answers: list[RawAnswer] = []
        self._checkpoint = checkpoint
        self._limit = limit
        self._raw = raw
        self._rpc = rpc
        self._port = 0
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """At the address that it had before, with the checkpoint that it was first started with."""
        self._model = self._read = load_model(str(self._checkpoint)).eval()
        self._version = "default"
        self._http = _Http(("127.0.0.1", self._port), self._handler())
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "policy", "max_model_len": self._limit}]}
        if path == "/v1/completions":
            self.requests.append(body)
            if self.answers:
                raise self.answers.pop()
            return {"choices": self._complete(body)}
        if self._rpc and path == "/weight_info":
            return {"weight_version": self._version}
        if self._rpc and path == "/collective_rpc":
            folder = body["kwargs"]["weights_path"]
            if not Path(folder).is_dir():
                raise RawAnswer(500, json.dumps({"error": {"message": "Repo id must be in the form 'repo_name'"}}))
            self._read = load_model(folder).eval()
            self.folders.append(folder)
            return {"results": [None]}
        if self._rpc and path == "/reset_prefix_cache":
            self._model = self._read
            return {"success": True}
        if self._rpc and path == "/update_weight_version":
            self._version = body["new_version"]
            return {}
        raise RawAnswer(404, json.dumps({"detail": "Not Found"}))

    def _complete(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        prompt, copies = body["prompt"], body.get("n", 1)
        if allowed := body.get("allowed_token_ids"):
            with torch.no_grad():
                logps = torch.log_softmax(self._model(torch.tensor([prompt])).logits[0, -1], -1)
            return [_choice(0, Sampled(allowed, [float(logps[allowed[0]]) if self._raw else 0.0]), "length")]
        seeds = [body["seed"] + copy for copy in range(copies)]
        options = {"end": body["stop_token_ids"], "pad": 0, "max_tokens": body["max_tokens"], "temperature": body["temperature"]}
        said = decode(self._model, [prompt], copies=copies, seeds=seeds, **options)
        ends = ["stop" if one.tokens[-1] in options["end"] else "length" for one in said]
        return [_choice(*row) for row in zip(range(copies), said, ends, strict=True)][::-1]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
                try:
                    with server._lock:
                        answer = RawAnswer(200, json.dumps(server._answer(self.path, body)))
                except RawAnswer as raised:
                    answer = raised
                content = answer.body.encode()
                self.send_response(answer.status)
                for name, value in {**answer.headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing."""

        return Handler


def _choice(index: int, said: Sampled, reason: str) -> dict[str, Any]:
    told = {"tokens": [f"token_id:{token}" for token in said.tokens], "token_logprobs": said.logprobs}
    return {"index": index, "finish_reason": reason, "logprobs": told}
