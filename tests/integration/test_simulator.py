"""The provider simulator as LiteLLM meets it: over HTTP, in a process of its own."""

import asyncio
import importlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from headwater.simulator import AnswerRule, FaultRule, SimulatorConfig, SimulatorProcess, load_answers, load_prices
from schemas.errors import ConfigurationError

pytestmark = [
    # LiteLLM keeps its HTTP client for the event loop it was first used on.
    pytest.mark.asyncio(loop_scope="module"),
    # Pydantic's remarks about LiteLLM's own types, made while it reads a stream.
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]

DEADLINE_S = 20.0
MESSAGES = [{"role": "user", "content": "x"}]
TEXTS = [f"Question {i}: {'word ' * (i % 13)}ünïcödé 語" for i in range(40)]


@pytest.fixture(scope="module")
def litellm() -> Iterator[Any]:
    """LiteLLM, imported once, without its look-ups on the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        patch.setenv("LITELLM_MODE", "PRODUCTION")
        module = importlib.import_module("litellm")
        patch.setattr(module, "suppress_debug_info", True)
        yield module


@pytest.fixture(autouse=True)
async def _closes_its_clients(litellm: Any) -> AsyncIterator[None]:
    """LiteLLM keeps HTTP clients for its process, bound to the event loop of the test that was the first to ask."""
    yield
    await litellm.close_litellm_async_clients()
    litellm.in_memory_llm_clients_cache.flush_cache()


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatorProcess]:
    """One simulator for the tests that need no configuration of their own."""
    with SimulatorProcess(SimulatorConfig(seed=7)) as process:
        yield process


@pytest.fixture
def simulator(shared: SimulatorProcess) -> SimulatorProcess:
    """The shared simulator with an empty bill and no faults."""
    http(shared, "DELETE", "/bill")
    shared.set_faults([])
    return shared


def http(simulator: SimulatorProcess, method: str, path: str, **more: Any) -> httpx.Response:
    return httpx.request(method, simulator.url + path, trust_env=False, timeout=DEADLINE_S, **more)


async def complete(litellm: Any, simulator: SimulatorProcess, text: str, **more: Any) -> Any:
    """One request through LiteLLM, without its hidden retries."""
    messages = [{"role": "system", "content": "You help."}, {"role": "user", "content": text}]
    target = {"api_base": simulator.url + "/v1", "api_key": "x", "num_retries": 0, "max_retries": 0}
    options = {"model": "openai/sim-fast", "timeout": DEADLINE_S} | more
    return await litellm.acompletion(messages=messages, **target, **options)


async def outcome(litellm: Any, simulator: SimulatorProcess, text: str, **more: Any) -> str:
    """The answer, or the status of the error."""
    try:
        return str((await complete(litellm, simulator, text, **more)).choices[0].message.content)
    except Exception as error:
        return f"error {getattr(error, 'status_code', type(error).__name__)}"


async def read_stream(response: Any, into: list[str]) -> Any:
    """The stream's usage; its text goes `into` a list, so that it is known when the stream breaks, too."""
    usage = None
    async for chunk in response:
        into.append((chunk.choices[0].delta.content or "") if chunk.choices else "")
        usage = getattr(chunk, "usage", None) or usage
    return usage


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}"


async def test_plain_answer_is_billed_under_its_ids(litellm: Any, simulator: SimulatorProcess) -> None:
    headers = {"x-headwater-attempt": "attempt-1", "x-headwater-agent": "writer"}
    response = await complete(litellm, simulator, "hello", extra_headers=headers)
    assert response.choices[0].message.content
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens > 0
    await complete(litellm, simulator, "hello")
    first, second = simulator.bill()["entries"]
    assert [m["id"] for m in http(simulator, "GET", "/v1/models").json()["data"]][:2] == ["sim-fast", "sim-reasoning"]
    assert (first["response_id"], first["attempt_id"], first["model"]) == (response.id, "attempt-1", "sim-fast")
    assert first["completion_tokens"] == response.usage.completion_tokens
    assert second["attempt_id"] is None
    assert second["response_id"] != first["response_id"]


async def test_stream_says_and_bills_what_the_plain_answer_does(litellm: Any, simulator: SimulatorProcess) -> None:
    for text in TEXTS[:5]:
        plain = await complete(litellm, simulator, text)
        stream = await complete(litellm, simulator, text, stream=True, stream_options={"include_usage": True})
        streamed: list[str] = []
        usage = await read_stream(stream, streamed)
        assert "".join(streamed) == plain.choices[0].message.content
        assert usage.prompt_tokens_details.cached_tokens == plain.usage.prompt_tokens_details.cached_tokens
        assert usage.prompt_tokens == plain.usage.prompt_tokens
        assert usage.completion_tokens == plain.usage.completion_tokens
    costs = [entry["usd"] for entry in simulator.bill()["entries"]]
    assert len(costs) == 10
    assert costs[::2] == costs[1::2]


async def test_usage_details_arrive(litellm: Any, simulator: SimulatorProcess) -> None:
    for model, thinks in (("sim-fast", False), ("sim-reasoning", True)):
        usages = [(await complete(litellm, simulator, t, model=f"openai/{model}")).usage for t in TEXTS]
        cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]
        assert 0 < sum(count > 0 for count in cached) < len(TEXTS)
        assert all(0 <= count < usage.prompt_tokens for count, usage in zip(cached, usages, strict=True))
        for usage in usages:
            assert (usage.completion_tokens_details.reasoning_tokens > 0) == thinks
            assert usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


async def test_bill_to_the_last_digit(litellm: Any, tmp_path: Path) -> None:
    # Strings, numbers, a missing cache rate, a missing reasoning rate, keys and nulls of LiteLLM's own.
    prices = """{"openai/strings": {"input_cost_per_token": "0.000000123456789", "output_cost_per_token": "0.0000007",
          "cache_read_input_token_cost": "0.00000001", "litellm_provider": "openai", "supports_vision": false},
        "reason-numbers": {"input_cost_per_token": 1.1e-06, "output_cost_per_token": 4.4e-06, "modes": ["chat"],
          "output_cost_per_reasoning_token": 3.3e-06, "cache_read_input_token_cost": null},
        "reason-plain": {"input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06}}"""
    (tmp_path / "prices.json").write_text(prices)
    with SimulatorProcess(SimulatorConfig(prices=load_prices(tmp_path / "prices.json"))) as simulator:
        for model in ("strings", "reason-numbers", "reason-plain"):
            for text in TEXTS[:15]:
                await complete(litellm, simulator, text, model=f"openai/{model}")
        bill, table = simulator.bill(), http(simulator, "GET", "/prices").json()
    assert len(table["reason-numbers"]) == 3
    assert any(entry["cached_tokens"] for entry in bill["entries"] if entry["model"] == "reason-numbers")
    assert any(entry["reasoning_tokens"] for entry in bill["entries"] if entry["model"] == "reason-plain")
    assert bill["requests"] == len(bill["entries"]) == 45
    by_model = dict.fromkeys(table, Decimal(0))
    for entry in bill["entries"]:
        rates = {key: Decimal(str(rate)) for key, rate in table[entry["model"]].items()}
        counts = {key: Decimal(entry[f"{key}_tokens"]) for key in ("prompt", "cached", "completion", "reasoning")}
        expected = (counts["prompt"] - counts["cached"]) * rates["input_cost_per_token"]
        expected += counts["cached"] * rates.get("cache_read_input_token_cost", rates["input_cost_per_token"])
        expected += (counts["completion"] - counts["reasoning"]) * rates["output_cost_per_token"]
        expected += counts["reasoning"] * rates.get("output_cost_per_reasoning_token", rates["output_cost_per_token"])
        assert Decimal(entry["usd"]) == expected
        assert "E" not in entry["usd"].upper()
        by_model[entry["model"]] += expected
    assert {model: Decimal(usd) for model, usd in bill["by_model"].items()} == by_model
    assert Decimal(bill["total_usd"]) == sum(by_model.values())


@pytest.mark.parametrize(("kind", "status"), [("429", 429), ("quota", 429), ("500", 500), ("503", 503), ("drop", 500)])
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_and_early_drops_are_not_billed(
    litellm: Any, simulator: SimulatorProcess, kind: str, status: int, stream: bool
) -> None:
    simulator.set_faults([FaultRule(model="reason"), FaultRule.model_validate({f"rate_{kind}": 1})])
    assert await outcome(litellm, simulator, "hello", stream=stream) == f"error {status}"
    # The first rule that fits a model counts, and it has no faults.
    assert "error" not in await outcome(litellm, simulator, "hello", model="openai/sim-reasoning")
    assert [entry["model"] for entry in simulator.bill()["entries"]] == ["sim-reasoning"]


async def test_refusals_say_why_and_when_to_come_back(simulator: SimulatorProcess) -> None:
    for kind, code in (("429", "rate_limit_exceeded"), ("quota", "insufficient_quota")):
        simulator.set_faults([FaultRule.model_validate({f"rate_{kind}": 1, "retry_after_s": 3})])
        response = http(simulator, "POST", "/v1/chat/completions", json={"model": "m", "messages": MESSAGES})
        assert (response.status_code, response.headers["retry-after"]) == (429, "3")
        assert response.json()["error"]["code"] == code


@pytest.mark.parametrize("kind", ["drop_billed", "malformed"])
async def test_broken_answers_are_billed(litellm: Any, simulator: SimulatorProcess, kind: str) -> None:
    simulator.set_faults([FaultRule.model_validate({f"rate_{kind}": 1})])
    with pytest.raises((httpx.RemoteProtocolError, json.JSONDecodeError)):
        http(simulator, "POST", "/v1/chat/completions", json={"model": "m", "messages": MESSAGES}).json()
    assert await outcome(litellm, simulator, "hello") == "error 500"
    assert simulator.bill()["requests"] == 2
    arrived: list[str] = []
    with pytest.raises(litellm.exceptions.MidStreamFallbackError):
        await read_stream(await complete(litellm, simulator, "hello", stream=True), arrived)
    assert simulator.bill()["requests"] == 3
    simulator.set_faults([])
    whole = await outcome(litellm, simulator, "hello")
    assert "" < "".join(arrived) < whole
    assert whole.startswith("".join(arrived))


async def test_latency_and_slow_bodies_take_their_time(litellm: Any, simulator: SimulatorProcess) -> None:
    simulator.set_faults([FaultRule(latency_ms=300, jitter_ms=50)])
    start = time.monotonic()
    with pytest.raises(litellm.exceptions.Timeout):
        await complete(litellm, simulator, "hello", timeout=0.1)
    await complete(litellm, simulator, "hello")
    assert time.monotonic() - start >= 0.3
    # A body that dribbles never leaves the client waiting long enough for its timeout between two reads.
    for stream in (False, True):
        simulator.set_faults([FaultRule(slow_body_ms=600)])
        start = time.monotonic()
        response = await complete(litellm, simulator, TEXTS[3], stream=stream, timeout=0.5)
        if stream:
            await read_stream(response, [])
        assert time.monotonic() - start >= 0.6


async def test_fail_first_counts_the_tries_of_each_request(litellm: Any, simulator: SimulatorProcess) -> None:
    simulator.set_faults([FaultRule(fail_first=2)])
    for text in ("one", "two"):
        tries = [await outcome(litellm, simulator, text) for _ in range(4)]
        assert tries[:2] == ["error 503", "error 503"]
        assert tries[2] == tries[3] != "error 503"
    assert simulator.bill()["requests"] == 4


async def test_two_processes_agree_and_another_seed_does_not(litellm: Any) -> None:
    faults = [FaultRule(rate_429=0.2, rate_500=0.2, rate_drop=0.1)]
    seen = []
    for seed in (1, 1, 2):
        with SimulatorProcess(SimulatorConfig(seed=seed)) as simulator:
            answers = [await complete(litellm, simulator, text, model="openai/sim-reasoning") for text in TEXTS]
            said = [(a.choices[0].message.content, a.usage.model_dump()) for a in answers]
            simulator.set_faults(faults)
            tries = [await outcome(litellm, simulator, text) for text in TEXTS[:10] for _ in range(3)]
            fates = [fate if fate.startswith("error") else "answered" for fate in tries]
        seen.append((said, fates))
    (said, fates), again, (other_said, other_fates) = seen
    assert (said, fates) == again
    assert said != other_said
    assert fates != other_fates
    assert {len(text) for text, _ in said} > {len(said[0][0])}
    # Not every try of a request has the same fate.
    assert any(len(set(fates[i : i + 3])) > 1 for i in range(0, 30, 3))


async def test_script_rules(litellm: Any) -> None:
    rules = [
        {"model": "reason", "answer": "for reasoning models"},
        {"system": "you HELP", "user": r"^route (?P<a>.+) to (?P<b>\w+)", "json": {"{{user.b}}": "{{user.a}}"}},
        {"user": "pick", "answer": ["first", "second", "third"]},
        {"user": "echo", "answer": "You said: {{user}}"},
    ]
    with SimulatorProcess(SimulatorConfig(answers=[AnswerRule.model_validate(rule) for rule in rules])) as simulator:
        assert await outcome(litellm, simulator, "x", model="openai/sim-reasoning") == "for reasoning models"
        routed = await outcome(litellm, simulator, 'Route a "quoted"\nbill to Desk')
        assert json.loads(routed) == {"Desk": 'a "quoted"\nbill'}
        picked = {await outcome(litellm, simulator, f"pick {i}") for i in range(20)}
        assert picked == {"first", "second", "third"}
        assert await outcome(litellm, simulator, "echo " + "é" * 500) == "You said: echo " + "é" * 195
        unscripted = await outcome(litellm, simulator, "none", response_format={"type": "json_object"})
        assert isinstance(json.loads(unscripted), dict)


@pytest.mark.parametrize(
    ("load", "content", "message"),
    [
        (load_answers, [{"answer": "x"}, {"user": "("}], r"rule 2 \(user\): .*not a regular expression"),
        (load_answers, [{"answer": "x"}, {"user": "a"}], r"rule 2: .*either 'answer' or 'json'"),
        (load_answers, [{"answer": "x", "usr": "a"}], r"rule 1 \(usr\): is not known here"),
        (load_answers, [{"user": "(?P<a>x)", "answer": "{{user.b}}"}], r"rule 1: .*\(\?P<b>"),
        (load_answers, [{"answer": []}], r"rule 1 \(answer"),
        (load_prices, {"m": {"input_cost_per_token": "free"}}, "m: input_cost_per_token.*not a decimal"),
        (load_prices, {"m": {"input_cost_per_token": -1}}, "m: input_cost_per_token.*0 or more"),
    ],
)
async def test_wrong_files_are_refused(tmp_path: Path, load: Callable[[Path], Any], content: Any, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=message):
        load(path)


async def test_embeddings(litellm: Any, simulator: SimulatorProcess) -> None:
    texts = ["the invoice was paid twice", "was the invoice paid", "penguins swim under ice", ""]
    response = await litellm.aembedding(
        model="openai/sim-embed", input=texts, api_base=simulator.url + "/v1", api_key="x", num_retries=0, max_retries=0
    )
    near, also, far, empty = (item["embedding"] for item in response.data)
    assert len(near) == 256
    assert [sum(x * x for x in vector) for vector in (near, also, far, empty)] == pytest.approx([1] * 4)
    alike, unlike = (sum(a * b for a, b in zip(near, other, strict=True)) for other in (also, far))
    assert alike > unlike + 0.3
    (entry,) = simulator.bill()["entries"]
    assert (entry["model"], entry["prompt_tokens"]) == ("sim-embed", response.usage.prompt_tokens)
    short = http(simulator, "POST", "/v1/embeddings", json={"model": "m", "input": "x", "dimensions": 16}).json()
    assert len(short["data"][0]["embedding"]) == 16


async def test_bill_survives_a_restart(litellm: Any, tmp_path: Path) -> None:
    config = SimulatorConfig(bill_path=tmp_path / "bill.jsonl")
    with SimulatorProcess(config) as simulator:
        for text in TEXTS[:3]:
            await complete(litellm, simulator, text)
        before = simulator.bill()
    # A line that a crash cut short is dropped, and must not swallow the line that follows it.
    with (tmp_path / "bill.jsonl").open("ab") as file:
        file.write(b'{"response_id": "torn')
    with SimulatorProcess(config) as simulator:
        assert simulator.bill() == before
        await complete(litellm, simulator, TEXTS[0])
        after = simulator.bill()
    with SimulatorProcess(config) as simulator:
        assert simulator.bill() == after
        assert len({entry["response_id"] for entry in after["entries"]}) == after["requests"] == 4
        http(simulator, "DELETE", "/bill")
    with SimulatorProcess(config) as simulator:
        assert simulator.bill()["requests"] == 0
    (tmp_path / "bill.jsonl").write_text("not an entry\n")
    with pytest.raises(ConfigurationError, match="did not start"):
        SimulatorProcess(config).start()


async def test_bill_pages_and_summary(litellm: Any, simulator: SimulatorProcess) -> None:
    for text in TEXTS[:5]:
        await complete(litellm, simulator, text)
    bill = simulator.bill()
    assert http(simulator, "GET", "/bill?after=1&limit=2").json()["entries"] == bill["entries"][1:3]
    summary = http(simulator, "GET", "/bill?entries=0").json()
    assert summary == {key: value for key, value in bill.items() if key != "entries"}
    assert http(simulator, "GET", "/bill?after=-1").json()["error"]["param"] == "after"
    await complete(litellm, simulator, "hello", model="openai/nobody-knows-it")
    bill = simulator.bill()
    assert (bill["requests"], bill["unpriced"], bill["total_usd"]) == (6, 1, summary["total_usd"])
    assert bill["entries"][-1]["usd"] is None


async def test_stats_see_what_runs_at_once(litellm: Any, simulator: SimulatorProcess) -> None:
    simulator.set_faults([FaultRule(model="^herd$", latency_ms=1500), FaultRule(model="^ill$", rate_503=1)])
    headers = {"x-headwater-agent": "shepherd"}
    options = {"model": "openai/herd", "extra_headers": headers}
    running = asyncio.gather(*(complete(litellm, simulator, text, **options) for text in TEXTS[:6]))
    at_once = {"model:herd": 6, "agent:shepherd": 6}
    await asyncio.to_thread(wait_until, lambda: bool(simulator.stats()["in_flight"] == at_once), "six in flight")
    await running
    assert await outcome(litellm, simulator, "x", model="openai/ill") == "error 503"
    stats = simulator.stats()
    assert stats["in_flight"] == {}
    assert stats["max_in_flight"].items() >= at_once.items()
    assert stats["by_model"]["herd"] == {"200": 6}
    assert stats["by_model"]["ill"] == {"503": 1}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("GET", "/v1/nothing", None, 404, None),
        ("POST", "/v1/chat/completions", "not JSON", 400, None),
        ("POST", "/v1/chat/completions", {"messages": MESSAGES}, 400, "model"),
        ("POST", "/v1/chat/completions", {"model": "m", "messages": []}, 400, "messages"),
        ("POST", "/v1/chat/completions", {"model": "m", "messages": ["x"]}, 400, "messages.0"),
        ("POST", "/v1/chat/completions", {"model": "m", "messages": MESSAGES, "stream": "yes"}, 400, "stream"),
        ("POST", "/v1/embeddings", {"model": "m", "input": "x", "dimensions": -1}, 400, "dimensions"),
        ("PUT", "/faults", [{"rate_429": 2}], 400, "0.rate_429"),
        ("PUT", "/faults", [{"rate_4xx": 1}], 400, "0.rate_4xx"),
        ("PUT", "/faults", [{"model": "("}], 400, "0.model"),
        ("PUT", "/faults", [{"rate_429": 0.6, "rate_500": 0.6}], 400, "0"),
    ],
)
async def test_errors_have_openai_s_format(
    simulator: SimulatorProcess, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    response = http(simulator, method, path, content=body if isinstance(body, str) else json.dumps(body))
    assert response.status_code == status
    assert response.json()["error"].items() >= {"type": "invalid_request_error", "param": field}.items()
    assert simulator.bill()["requests"] == 0
    assert http(simulator, "GET", "/faults").json() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
async def test_it_dies_with_its_parent() -> None:
    code = """import os, signal
from headwater.simulator import SimulatorConfig, SimulatorProcess
print(SimulatorProcess(SimulatorConfig()).start().url, flush=True)
os.kill(os.getpid(), signal.SIGKILL)"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    url = (await parent.communicate())[0].decode().strip()
    assert (url[:7], parent.returncode) == ("http://", -9)

    def gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0

    await asyncio.to_thread(wait_until, gone, "the simulator is gone")
