"""The example's data keeps its promises: other tests, the demo and the documentation build on them."""

import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from examples.support_desk import agents
from handlers.semantic import SYSTEM as CHECK
from headwater.simulator.answers import Answers
from headwater.simulator.config import load_answers, load_prices
from schemas.task import NewTask

DESK = Path(agents.__file__).parent
TENANTS = {"lumen-pine", "rotaboard", "velo-harbor"}
SCRIPTS = {  # pattern of the script or of letters that one language only has, and how many tasks at least
    "Japanese": (r"[ぁ-んァ-ヶ]", 8),
    "Chinese": (r"^(?!.*[ぁ-んァ-ヶ]).*[一-鿿]", 6),
    "Arabic": (r"[ء-ي]", 5),
    "Hindi": (r"[अ-ह]", 4),
    "Korean": (r"[가-힣]", 3),
    "Ukrainian": (r"[іїє]", 2),
    "Greek": (r"[β-ω]{3}", 1),
    "Polish": (r"[ąęłśżź]", 5),
    "Spanish and Portuguese": (r"[¿ñõ]|ão\b|ción\b|\b(?:não|los|una)\b", 10),
    "French": (r"\b(?:je|vous|est|svp|une) |\b[jnc]'ai ", 6),
    "German": (r"\b(?:ich|nicht|Sie|Ihnen|mein|nix)\b", 8),
    "Italian": (r"\b(?:che|della|nella|ho|non) ", 4),
}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    text = (DESK / "tasks.jsonl").read_bytes().decode()
    assert text.endswith("\n")
    return text[:-1].split("\n")


@pytest.fixture(scope="module")
def tasks(lines: list[str]) -> list[NewTask]:
    """The distinct ones, in order."""
    return [NewTask.model_validate_json(line) for line in dict.fromkeys(lines)]


@pytest.fixture(scope="module")
def book() -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads((DESK / "knowledge.json").read_bytes())
    return value


@pytest.fixture(scope="module")
def script() -> Answers:
    return Answers(load_answers(DESK / "answers.json"))


def ask(script: Answers, system: str, prompt: str) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return script.text({"model": "sim-fast", "messages": messages}, bytes(32))


def test_there_are_300_lines_of_which_12_repeat_an_earlier_one(lines: list[str]) -> None:
    repeated = [line for line, count in Counter(lines).items() if count > 1]
    assert len(lines) == 300
    assert len(set(lines)) == 288
    assert len(repeated) == 12


def test_a_key_belongs_to_one_task_and_every_task_has_one(tasks: list[NewTask]) -> None:
    keys = [task.idempotency_key for task in tasks]
    assert None not in keys
    assert len(set(keys)) == len(tasks)


def test_tenants_are_three_and_share_the_work(tasks: list[NewTask]) -> None:
    counts = Counter(task.tenant for task in tasks)
    assert set(counts) == TENANTS
    assert min(counts.values()) >= 90
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", tenant) for tenant in counts)


def test_sessions_have_one_to_several_tasks_and_names_that_tenants_share(tasks: list[NewTask]) -> None:
    sessions = Counter((task.tenant, task.session) for task in tasks)
    tenants = defaultdict(set)
    for task in tasks:
        assert re.fullmatch(r"s-\d{4}", task.session)
        tenants[task.session].add(task.tenant)
    assert sum(count > 1 for count in sessions.values()) >= 15
    assert max(sessions.values()) >= 3
    assert tenants["s-0007"] == TENANTS


def test_types_and_priorities_are_mixed(tasks: list[NewTask]) -> None:
    types = Counter(task.type for task in tasks)
    assert set(types) == set(agents.CATEGORIES)
    assert min(types.values()) >= 10
    assert {task.priority for task in tasks} == set(agents.URGENCIES)


@pytest.mark.parametrize("language", SCRIPTS)
def test_languages(language: str, tasks: list[NewTask]) -> None:
    pattern, at_least = SCRIPTS[language]
    assert sum(bool(re.search(pattern, task.text, re.DOTALL)) for task in tasks) >= at_least


def test_one_text_has_exactly_20000_characters_and_the_next_longest_are_letters(tasks: list[NewTask]) -> None:
    lengths = sorted((len(task.text) for task in tasks), reverse=True)
    assert lengths[0] == 20_000
    assert all(1000 < length < 5000 for length in lengths[1:4])
    assert lengths[-1] <= 4


def test_one_text_is_only_emoji(tasks: list[NewTask]) -> None:
    symbols = {"So", "Sk", "Sm", "Cf", "Mn"}
    wordless = [t for t in tasks if all(unicodedata.category(c) in symbols for c in t.text)]
    assert len(wordless) == 1


def test_no_two_texts_are_one_template(tasks: list[NewTask]) -> None:
    words = [set(re.findall(r"[^\W\d]+", task.text.casefold())) for task in tasks]
    alike = [
        (tasks[i].text[:60], tasks[k].text[:60])
        for i in range(len(tasks))
        for k in range(i)
        if len(words[i] & words[k]) > 0.6 * len(words[i] | words[k])
    ]
    assert not alike
    assert len({re.sub(r"\d+", "#", task.text) for task in tasks}) == len(tasks)


def test_knowledge_has_english_for_every_article_and_nearly_every_order(
    tasks: list[NewTask], book: dict[str, Any]
) -> None:
    assert set(book) == TENANTS
    for tenant in book.values():
        assert all(
            a["text"]["en"] and a["keywords"] == [k.casefold() for k in a["keywords"]] for a in tenant["articles"]
        )
        assert len({a["id"] for a in tenant["articles"]}) == len(tenant["articles"])
    named = {(task.tenant, (task.data or {}).get("order")) for task in tasks if (task.data or {}).get("order")}
    assert {order for tenant, order in named if order not in book[tenant]["orders"]} == {"LP-9999"}


def test_lookups_stay_within_the_tenant() -> None:
    assert agents.lookup_order("lumen-pine", "LP-48213")
    assert agents.lookup_order("rotaboard", "LP-48213") is None
    assert agents.lookup_order("nobody", None) is None
    assert agents.search_knowledge("nobody", "refund")["articles"] == []
    assert [a["id"] for a in agents.search_knowledge("velo-harbor", "The DEPOSIT, please")["articles"]] == ["deposit"]


def test_the_script_classifies_as_the_customers_did(tasks: list[NewTask], script: Answers) -> None:
    found = [agents.json_object(ask(script, agents.TRIAGE, agents.excerpt(task.text))) for task in tasks]
    assert sum(not answer for answer in found) == 2, "all but the two messages without words get JSON"
    assert all(set(answer) == {"category", "language", "urgency", "summary"} for answer in found if answer)
    agreed = sum(answer.get("category") == task.type for answer, task in zip(found, tasks, strict=True))
    assert agreed >= 0.95 * len(tasks)
    assert sum(answer.get("language") != "en" for answer in found if answer) >= 80


def test_the_script_has_notes_and_a_reply_for_every_task(tasks: list[NewTask], script: Answers) -> None:
    for task in tasks:
        articles = agents.search_knowledge(task.tenant, task.text)["articles"]
        lines = [f"[{a['id']}/{lang}] {text}" for a in articles for lang, text in a["text"].items()]
        prompt = "\n".join(
            ["Language: unknown", f"Category: {task.type}", *lines, "Message:", agents.excerpt(task.text)]
        )
        notes = agents.json_object(ask(script, agents.RESEARCHER, prompt))
        assert set(notes) == {"notes", "language", "confidence"}, task.text
        head = f"Language: {notes['language']}\nCategory: {task.type}\nCompany: {task.tenant}\nOrder: none\n"
        reply = ask(script, agents.WRITER, f"{head}Notes: {notes['notes']}\nMessage:\n{agents.excerpt(task.text)}")
        assert task.tenant in reply or "Your support team" in reply, "every scripted reply is signed"
        assert "{{" not in reply
        fact = re.match(r"\[[\w-]+/(\w+)\] (.*)", notes["notes"])
        assert fact is None or fact[1] != notes["language"] or fact[2] in reply, task.text


def test_every_rule_names_its_agent_or_the_check() -> None:
    rules = load_answers(DESK / "answers.json")
    systems = {rule.system for rule in rules}
    assert len(systems) == 4, "a rule without an agent would answer for the system's own questions to the models"
    for prompt in (agents.TRIAGE, agents.RESEARCHER, agents.WRITER, CHECK):
        assert sum(bool(re.search(s, prompt)) for s in systems if s is not None) == 1


def test_prices_are_the_simulators() -> None:
    own, simulator = load_prices(DESK / "prices.json"), load_prices(None)
    assert set(own) == {"sim-fast", "sim-reasoning"}
    assert all(simulator[model] == entry for model, entry in own.items())
