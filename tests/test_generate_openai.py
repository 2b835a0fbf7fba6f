"""The endpoint's generator against a `ScriptedServer` over real HTTP. The server's reference is the `openai` package's own types."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from harness.evaluate import evaluate
from harness.generate import RequestRefused, Sampling, load_generator, parse_endpoint
from harness.generate_hf import load_tokenizer, prompt_ids
from harness.generate_openai import OpenAIGenerator, estimate
from harness.plan import EvalConfig, prepare
from harness.prompt import Message
from harness.scripted_server import RawAnswer, ScriptedServer
from harness_trajectories import read
from harness_trajectories.errors import UserError

SOON = {"Retry-After-Ms": "5"}


def say(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def echo(messages: list[Message]) -> str:
    return f"you said {messages[-1]['content']}"


def ask(server: ScriptedServer, text: str = "hello", sampling: Sampling | None = None) -> str:
    generator = OpenAIGenerator(server.spec)
    try:
        return generator.generate([say(text)], sampling or Sampling())[0].text
    finally:
        generator.close()


def test_the_server_speaks_the_protocol() -> None:
    """Reference: OpenAI's client and the strict validation of its pydantic types."""
    with ScriptedServer(echo, model="some/model") as server:
        body = json.dumps({"model": "some/model", "messages": say("hello")}).encode()
        raw = urlopen(Request(f"{server.url}/chat/completions", body, {"Content-Type": "application/json"}), timeout=10).read()
        answer = ChatCompletion.model_validate_json(raw, strict=True)
        assert answer.model_extra == {}
        assert answer.choices[0].message.content == "you said hello"
        with OpenAI(base_url=server.url, api_key="none") as client:
            assert [model.id for model in client.models.list()] == ["some/model"]
            again = client.chat.completions.create(model="some/model", messages=[{"role": "user", "content": "hello"}])
    assert again.choices == answer.choices
    assert again.usage == answer.usage


def test_requests_carry_the_sampling_and_answers_keep_the_order() -> None:
    with ScriptedServer(echo) as server:
        generator = load_generator(server.spec)
        sampling = Sampling(max_tokens=77, temperature=0.5, top_p=0.9, seed=40)
        texts = [f"number {n}" for n in range(30)]
        completions = generator.generate([say(text) for text in texts], sampling)
        generator.generate([say("greedy")], Sampling())
        generator.close()
    assert [completion.text for completion in completions] == [f"you said {text}" for text in texts]
    assert all(c.prompt_tokens == len(text) // 4 and c.tokens == len(c.text) // 4 for c, text in zip(completions, texts, strict=True))
    sent = {request["messages"][0]["content"]: request for request in server.requests}
    greedy = sent.pop("greedy")
    assert [sent[text]["seed"] for text in texts] == list(range(40, 70))
    assert all((r["max_tokens"], r["temperature"], r["top_p"], r["model"]) == (77, 0.5, 0.9, "scripted") for r in sent.values())
    assert (greedy["temperature"], "top_p" in greedy) == (0.0, False)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    refusals = iter([RawAnswer(status, "later", SOON)] * 3)

    def reply(messages: list[Message]) -> str:
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return "done"

    with ScriptedServer(reply) as server:
        assert ask(server) == "done"
        assert len(server.requests) == 4


def test_retry_after_is_obeyed() -> None:
    times: list[float] = []

    def reply(messages: list[Message]) -> str:
        times.append(time.monotonic())
        if len(times) == 1:
            raise RawAnswer(429, "later", {"Retry-After": "1.5"})
        return "done"

    with ScriptedServer(reply) as server:
        assert ask(server) == "done"
    assert times[1] - times[0] >= 1.5


def test_a_server_may_be_restarted() -> None:
    with ScriptedServer(echo) as server:
        generator = OpenAIGenerator(server.spec)
        assert generator.generate([say("one")], Sampling())[0].text == "you said one"
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(generator.generate, [say("two")], Sampling())
        time.sleep(0.7)
        assert not waiting.done()
        with ScriptedServer(echo, port=int(server.url.split(":")[2].removesuffix("/v1"))) as again:
            assert waiting.result(60)[0].text == "you said two"
            generator.close()
    assert len(again.requests) == 1


def test_no_more_requests_at_once_than_allowed() -> None:
    lock, under_way, most, full = threading.Lock(), [0], [0], threading.Event()

    def reply(messages: list[Message]) -> str:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
            if most[0] >= 3:
                full.set()
        full.wait(60)
        time.sleep(0.02)
        with lock:
            under_way[0] -= 1
        return "x"

    with ScriptedServer(reply) as server:
        generator = OpenAIGenerator(server.spec, concurrency=3)
        with ThreadPoolExecutor(4) as threads:
            done = list(threads.map(lambda n: generator.generate([say(str(n))] * 5, Sampling()), range(4)))
        generator.close()
    assert sum(map(len, done)) == 20
    assert most[0] == 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("http://127.0.0.1:9/v1#m", ["http://127.0.0.1:9/v1", "cannot be reached", "running"]),
        ("http://nowhere.invalid/v1#m", ["http://nowhere.invalid/v1", "cannot be reached"]),
        ("http://localhost:8000/v1", ["http://HOST:PORT/v1#MODEL"]),
        ("http://:8000/v1#m", ["http://HOST:PORT/v1#MODEL"]),
        ("http://[::1/v1#m", ["http://HOST:PORT/v1#MODEL"]),
        ("https://host:port/v1#m", ["http://HOST:PORT/v1#MODEL"]),
    ],
)
def test_a_wrong_address_is_one_clear_error(spec: str, words: list[str]) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as raised:
        load_generator(spec)
    assert all(word in str(raised.value) for word in words), raised.value
    assert time.monotonic() - start < 30


def test_what_the_server_refuses_is_said() -> None:
    with ScriptedServer(echo, model="big/model-7b") as server:
        with pytest.raises(UserError, match=r"404.*'big/model-8b'.*big/model-7b.*did you mean http://127\.0\.0\.1:\d+/v1#big/model-7b"):
            ask_spec(f"{server.url}#big/model-8b")
        with pytest.raises(UserError, match=r"404.*ends in /v1"):
            ask_spec(server.spec.replace("/v1", ""))

    def reply(messages: list[Message]) -> str:
        raise RawAnswer(400, '{"error": {"message": "9000 tokens are more than 8192"}}')

    with ScriptedServer(reply) as server:
        with pytest.raises(RequestRefused, match=r"400 \(9000 tokens are more than 8192\)"):
            ask(server)
        assert len(server.requests) == 1


def ask_spec(spec: str) -> None:
    generator = load_generator(spec)
    try:
        generator.generate([say("hello")], Sampling())
    finally:
        generator.close()


def test_the_key_goes_into_requests_and_into_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret")
    with ScriptedServer(echo, key="sk-s3cret") as server:
        assert ask(server) == "you said hello"
        for key in ("sk-wrong", ""):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            with pytest.raises(UserError, match=r"401.*OPENAI_API_KEY"):
                ask(server)

    def telltale(messages: list[Message]) -> str:
        raise RawAnswer(400, "the key sk-s3cret may not do this")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret")
    with ScriptedServer(telltale, key="sk-s3cret") as server, pytest.raises(UserError, match=r"the key \*\*\* may not do this"):
        ask(server)
    for spec in ("http://me:sk-s3cret@host/v1#m", "http://host/v1?key=sk-s3cret#m"):
        with pytest.raises(UserError, match="OPENAI_API_KEY") as raised:
            parse_endpoint(spec)
        assert "s3cret" not in str(raised.value)
        with pytest.raises(UserError, match="OPENAI_API_KEY"):
            prepare(EvalConfig(domain="math", model=spec))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("<html>Welcome</html>", "text/html"),
        ("<html>Welcome</html>", "application/json"),
        ("", "application/json"),
        ("null", "application/json"),
        ('["Welcome"]', "application/json"),
        ('{"error": {"message": "Welcome"}}', "application/json"),
        ('{"choices": []}', "application/json"),
        ('{"choices": ["Welcome"]}', "application/json"),
        ('{"choices": [{"message": {"role": "assistant", "content": 7}}]}', "application/json"),
    ],
)
def test_an_answer_that_is_no_completion(body: str, kind: str) -> None:
    def reply(messages: list[Message]) -> str:
        raise RawAnswer(200, body, {"Content-Type": kind})

    with ScriptedServer(reply) as server, pytest.raises(UserError, match="no chat completion in JSON") as raised:
        ask(server)
    assert (body or "nothing") in str(raised.value)


def test_completions_of_servers_in_the_wild() -> None:
    """Cut off, without usage, and with the reasoning beside the text, as vLLM's reasoning parsers and DeepSeek's API give it."""
    message = {"role": "assistant", "content": "42", "reasoning_content": "6 times 7"}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}

    def reply(messages: list[Message]) -> str:
        raise RawAnswer(200, json.dumps(answer))

    with ScriptedServer(reply) as server:
        generator = OpenAIGenerator(server.spec)
        completion = generator.generate([say("hello")], Sampling())[0]
        generator.close()
    assert completion.text == "<think>6 times 7</think>\n42"
    assert completion.finish == "length"
    assert (completion.prompt_tokens, completion.tokens) == (generator.count(say("hello")), estimate(completion.text))


def test_a_server_that_cannot_tell_its_models() -> None:
    """As `transformers serve` without a cache of the hub; its refusals have `detail`, and no `error` with a `message`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(500, "Internal Server Error")

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": "yes"}
            completion = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
            self.answer(*((200, completion) if asked["model"] == "m" else (400, '{"detail": "the server is pinned to m"}')))

        def answer(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After-Ms", "5")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask_spec(f"http://127.0.0.1:{server.server_port}/v1#m")
        with pytest.raises(RequestRefused, match=r'400 \(\{"detail": "the server is pinned to m"\}\)'):
            ask_spec(f"http://127.0.0.1:{server.server_port}/v1#other")
        server.shutdown()


def test_closing_lets_waiting_threads_go() -> None:
    entered, leave = threading.Event(), threading.Event()

    def reply(messages: list[Message]) -> str:
        entered.set()
        leave.wait(300)
        return "too late"

    with ScriptedServer(reply) as server:
        generator = OpenAIGenerator(server.spec)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(generator.generate, [say("hello")], Sampling())
            assert entered.wait(60)
            generator.close()
            with pytest.raises(CancelledError):
                waiting.result(60)
        leave.set()
        generator.close()


def test_the_estimate_is_never_below_a_real_tokenizer(shared_data: Path) -> None:
    """Reference: Qwen's tokenizer and chat template over the texts of real runs and problems."""
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"))
    texts = [json.loads(line).get("problem", "") for file in (shared_data / "math").glob("*.jsonl") for line in file.open()]
    for run in read(shared_data / "trajectories" / "swesmith_sft_xml_claude-3-7-sonnet"):
        for step in run.steps:
            texts += [step.message, step.reasoning, *(observation.content for observation in step.observations)]
    pairs = []
    for text in filter(None, texts):
        messages = say(text[:20000])
        pairs.append((OpenAIGenerator.count(None, messages), len(prompt_ids(tokenizer, messages))))  # type: ignore[arg-type]
    assert len(pairs) > 300
    assert all(ours >= theirs for ours, theirs in pairs)
    assert sum(ours for ours, _ in pairs) < 1.45 * sum(theirs for _, theirs in pairs)


def test_an_evaluation_of_an_endpoint(tmp_path: Path) -> None:
    answers = {f"What is {a} times {b}?": a * b for a in (3, 14) for b in (5, 26)}
    rows = [json.dumps({"question": question, "answer": str(answer)}) for question, answer in answers.items()]
    (tmp_path / "times.jsonl").write_text("\n".join(rows) + "\n")

    def reply(messages: list[Message]) -> str:
        question = messages[-1]["content"]
        return f"<think>a product</think>\n\\boxed{{{answers[question] if '26' in question else 0}}}"

    with ScriptedServer(reply) as server:
        plan = prepare(EvalConfig(domain="math", model=server.spec, dataset=str(tmp_path / "times.jsonl")))
        report = evaluate(plan, tmp_path / "run", workers=4)
    assert (report["n"], report["graded"], report["resolved"], len(server.requests)) == (4, 4, 2, 4)
    assert report["model"] == server.spec
    assert all(row["tokens"] > 0 for row in report["instances"].values())
