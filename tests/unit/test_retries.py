"""When an LLM request is tried again."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from handlers.attempts import RetryPolicy, Tries
from handlers.provider_errors import Action, ProviderFailureError, retry_after_s
from schemas.errors import ProviderError

NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
NO_WAIT = RetryPolicy(attempts_per_model=2, base_delay_ms=0)


def _failure(action: Action, text: str = "not now", after_s: float | None = None) -> ProviderFailureError:
    return ProviderFailureError(text, outcome="error", action=action, error_class="X", retry_after_s=after_s)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90.0),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0.0),
        ({"retry-after": "Wed, 25 Nov 2026 12:00:30 -0000"}, 30.0),
        ({"retry-after": "Wed, 99 Nov 2026 12:00:30 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


async def test_each_model_has_its_attempts_and_then_the_next_one_is_asked() -> None:
    tries = Tries(NO_WAIT, "fast", ["a", "b"], 1)
    asked = [(tries.model, tries.number)]
    for _ in range(3):
        await tries.after(_failure("retry"))
        asked.append((tries.model, tries.number))
    assert asked == [("a", 1), ("a", 2), ("b", 3), ("b", 4)]
    with pytest.raises(ProviderError, match=r"tier 'fast' gave no answer in 4 attempts\. a: not now; b: not now"):
        await tries.after(_failure("retry"))


async def test_what_another_model_may_do_better_is_not_retried() -> None:
    tries = Tries(NO_WAIT, "fast", ["a", "b"], 1)
    await tries.after(_failure("next_model", "no such model"))
    assert (tries.model, tries.number) == ("b", 2)


async def test_what_nobody_can_do_ends_it() -> None:
    tries = Tries(NO_WAIT, "fast", ["a", "b"], 1)
    with pytest.raises(ProviderError, match=r"in 1 attempt\. a: bad request"):
        await tries.after(_failure("give_up", "bad request"))


async def test_a_wait_that_is_too_long_is_not_waited_for() -> None:
    tries = Tries(RetryPolicy(base_delay_ms=0, max_retry_after_s=5), "fast", ["a"], 1)
    with pytest.raises(ProviderError, match=r"not now \(it asks to wait for 3600 s\)"):
        await tries.after(_failure("retry", after_s=3600))
