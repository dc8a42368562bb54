"""The simulator's parts without HTTP: answers, usage, faults and bill are functions of seed and request."""

import json
import math
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headwater.simulator.answers import Answers, count_tokens, embedding, request_hash, usage
from headwater.simulator.bill import Bill, price
from headwater.simulator.config import AnswerRule, FaultRule, SimulatorConfig, load_answers, load_prices
from headwater.simulator.faults import Faults
from schemas.errors import ConfigurationError

DIGESTS = [request_hash(0, {"n": n}) for n in range(2000)]


def body(user: str = "hello", model: str = "sim-fast", system: str = "", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {"model": model, "messages": [*messages, {"role": "user", "content": user}], **more}


def answer(rules: list[AnswerRule], request: dict[str, Any], seed: int = 0) -> str:
    return Answers(rules).text(request, request_hash(seed, request))


def test_the_same_request_has_the_same_hash_and_only_the_same() -> None:
    assert request_hash(1, body()) == request_hash(1, body())
    # How an answer is sent, and for whom, is no part of what is asked.
    assert request_hash(1, body()) == request_hash(1, body() | {"stream": True, "stream_options": {}, "user": "u"})
    others = [body("bye"), body(model="m"), body(system="s"), body(temperature=0), body(temperature=1)]
    assert len({request_hash(1, other) for other in [body(), *others]}) == 6
    assert request_hash(1, body()) != request_hash(2, body())


def test_answers_without_a_script_are_made_up_and_stay() -> None:
    texts = {answer([], body(f"question {n}")) for n in range(50)}
    assert len(texts) > 20
    assert answer([], body("question 7")) == answer([], body("question 7"))
    assert json.loads(answer([], body(response_format={"type": "json_object"})))["answer"]


def test_the_first_rule_that_fits_answers() -> None:
    rules = [
        AnswerRule(model="reason", answer="by model"),
        AnswerRule(system="triage", user="refund", json={"category": "refund"}),
        AnswerRule(user=r"order (?P<number>\d+)", answer="about {{user.number}}: {{user}}"),
        AnswerRule(user="refund", answer="by user"),
    ]
    assert answer(rules, body(model="sim-reasoning")) == "by model"
    assert json.loads(answer(rules, body("REFUND please", system="You are triage."))) == {"category": "refund"}
    assert answer(rules, body("a refund please")) == "by user"
    assert answer(rules, body("order 77")) == "about 77: order 77"


def test_what_a_user_writes_does_not_break_an_answer_in_json() -> None:
    rule = AnswerRule(user="(?P<word>.*)", json={"echo": "{{user}}", "word": "{{user.word}}"})
    nasty = 'a "quote", a \\ and a\nline {{user}}'
    found = json.loads(answer([rule], body(nasty)))
    assert found["word"] == nasty
    assert found["echo"] == nasty


def test_several_answers_are_picked_by_the_request() -> None:
    rule = AnswerRule(answer=["a", "b", "c"])
    assert {answer([rule], body(str(n))) for n in range(40)} == {"a", "b", "c"}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"answer": "a", "json": {}},
        {"answer": []},
        {"answer": "a", "user": "("},
        {"answer": "{{user.name}}", "user": "x"},
        {"answer": "a", "colour": "red"},
    ],
)
def test_a_wrong_rule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AnswerRule(**wrong)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "the file"), ("{}", "the file"), ('[{"answer": "a"}, {}]', "rule 2"), ('[{"answer": 7}]', "rule 1")],
)
def test_a_wrong_script_is_named_with_its_rule(tmp_path: Path, text: str, said: str) -> None:
    script = tmp_path / "script.json"
    script.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load_answers(script)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_answers(tmp_path / "nothing.json")


def test_tokens_are_counted_by_bytes_and_usage_adds_up() -> None:
    assert [count_tokens(t) for t in ("", "abcd", "abcde", "\N{GRINNING FACE}")] == [1, 1, 2, 1]
    cached = 0
    for digest in DIGESTS[:60]:
        found = usage(body("x" * 400), "y" * 40, digest)
        assert found["total_tokens"] == found["prompt_tokens"] + found["completion_tokens"]
        assert found["prompt_tokens"] == 104
        assert found["completion_tokens"] == 10
        cached += bool(found["prompt_tokens_details"]["cached_tokens"])
    assert 10 < cached < 30
    thinking = usage(body(model="sim-reasoning"), "y", DIGESTS[0])["completion_tokens_details"]["reasoning_tokens"]
    assert thinking >= 20


def test_embeddings_are_unit_vectors_and_near_for_shared_words() -> None:
    one, other, far = (embedding(text, 256) for text in ("red bike brake", "the red bike", "invoice tax number"))
    assert math.isclose(sum(x * x for x in one), 1)

    def near(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert near(one, other) > 0.4 > near(one, far)
    assert embedding("red bike brake", 256) == one
    assert math.isclose(sum(x * x for x in embedding("", 8)), 1)


def test_faults_happen_in_their_shares_and_can_be_repeated() -> None:
    rule = FaultRule(rate_429=0.2, rate_500=0.1, rate_drop=0.05, rate_drop_billed=0.05, rate_malformed=0.1)
    kinds = [Faults([rule], 7).fate("m", digest).kind for digest in DIGESTS]
    assert kinds == [Faults([rule], 7).fate("m", digest).kind for digest in DIGESTS]
    assert kinds != [Faults([rule], 8).fate("m", digest).kind for digest in DIGESTS]
    counts = Counter(kinds)
    for kind, share in {"429": 0.2, "500": 0.1, "drop": 0.05, "drop_billed": 0.05, "malformed": 0.1}.items():
        assert abs(counts[kind] / len(DIGESTS) - share) < 0.03  # type: ignore[index]  # the kinds of faults
    assert not {"503", "quota"} & set(counts)


def test_a_retry_has_a_fate_of_its_own() -> None:
    faults = Faults([FaultRule(rate_500=0.5)], 0)
    assert {faults.fate("m", DIGESTS[0]).kind for _ in range(30)} == {"500", None}
    first = Faults([FaultRule(fail_first=2)], 0)
    assert [first.fate("m", DIGESTS[0]).kind for _ in range(3)] == ["503", "503", None]
    first.set([FaultRule(fail_first=1)])
    assert [first.fate("m", DIGESTS[0]).kind for _ in range(2)] == ["503", None]


def test_the_first_rule_for_a_model_counts() -> None:
    rules = [FaultRule(model="^slow$", latency_ms=1000, jitter_ms=500), FaultRule(model="s", rate_429=1)]
    faults = Faults(rules, 0)
    assert faults.fate("slow", DIGESTS[0]).kind is None
    assert 1.0 <= faults.fate("slow", DIGESTS[1]).wait_s <= 1.5
    assert faults.fate("fast", DIGESTS[0]).kind == "429"
    assert faults.fate("other", DIGESTS[0]) == Faults([], 0).fate("other", DIGESTS[0])


@pytest.mark.parametrize(
    "wrong",
    [{"rate_429": 1.1}, {"rate_429": -0.1}, {"latency_ms": -1}, {"rate_429": 0.6, "rate_500": 0.6}, {"model": "("}],
)
def test_a_wrong_fault_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FaultRule(**wrong)
    FaultRule(**dict.fromkeys([f"rate_{k}" for k in ("429", "500", "503", "quota", "drop")], 0.2))


USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "prompt_tokens_details": {"cached_tokens": 40},
    "completion_tokens_details": {"reasoning_tokens": 20},
}
PRICES: Any = {
    "m": {
        "input_cost_per_token": 1e-06,
        "cache_read_input_token_cost": "0.0000005",
        "output_cost_per_token": 2e-06,
        "output_cost_per_reasoning_token": 3e-06,
    },
    "bare": {"input_cost_per_token": 1, "output_cost_per_token": 2},
    "half": {"input_cost_per_token": 1},
}


def test_the_bills_arithmetic() -> None:
    # 60 uncached, 40 cached, 30 text, 20 reasoning
    assert price(PRICES, "m", USAGE) == sum(map(Decimal, ("0.00006", "0.00002", "0.00006", "0.00006")))
    assert price(PRICES, "bare", USAGE) == 100 + 2 * 50
    assert price(PRICES, "half", USAGE) is None
    assert price(PRICES, "nobody", USAGE) is None


def _charge(bill: Bill, model: str, number: int) -> None:
    bill.add(response_id=f"r{number}", attempt_id=f"a{number}", model=model, usage=USAGE, at=1.0)


def test_a_bill_survives_a_restart_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "bill.jsonl"
    bill = Bill(PRICES, path)
    for number, model in enumerate(["m", "m", "nobody"]):
        _charge(bill, model, number)
    before = bill.summary()
    assert before == {"requests": 3, "unpriced": 1, "total_usd": "0.0004", "by_model": {"m": "0.0004", "nobody": "0"}}
    bill.close()
    with path.open("ab") as file:
        file.write(b'{"response_id": "torn')
    again = Bill(PRICES, path)
    assert again.summary() == before
    _charge(again, "m", 3)
    assert [json.loads(line)["response_id"] for line in path.read_text().splitlines()] == ["r0", "r1", "r2", "r3"]
    again.reset()
    assert again.summary()["requests"] == 0
    again.close()
    assert path.read_bytes() == b""


def test_a_wrong_bill_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bill.jsonl"
    path.write_text("not json\n")
    with pytest.raises(ConfigurationError, match="line 1 is not JSON"):
        Bill(PRICES, path)
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        Bill(PRICES, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ("[]", "dictionary|object"),
        ('{"m": {"input_cost_per_token": "cheap"}}', "m: input_cost_per_token"),
        ('{"m": {"input_cost_per_token": -1}}', "m: input_cost_per_token"),
        ('{"m": {"input_cost_per_token": "NaN"}}', "m: input_cost_per_token"),
    ],
)
def test_a_wrong_price_file_is_named_with_its_model(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load_prices(path)


def test_prices_leave_out_what_is_no_rate_and_the_provider(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"openai/m": {"input_cost_per_token": 1, "mode": "chat", "output_cost_per_token": null}}')
    assert load_prices(path) == {"m": {"input_cost_per_token": 1}}
    assert "sim-fast" in SimulatorConfig().prices
