"""How long a failed LLM request waits before it is tried again (row A5)."""

import pytest

from handlers.attempts import RetryPolicy


def test_the_delay_doubles_up_to_the_maximum() -> None:
    policy = RetryPolicy(base_delay_ms=500, max_delay_ms=20_000)
    assert [policy.delay_s(n, None) for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 20, 20]


@pytest.mark.parametrize(("asked", "waited"), [(0, 0.5), (0.1, 0.5), (3, 3), (30, 30)])
def test_a_provider_that_asks_for_more_gets_it(asked: float, waited: float) -> None:
    assert RetryPolicy(base_delay_ms=500).delay_s(1, asked) == waited


def test_no_delay_is_a_choice() -> None:
    assert RetryPolicy(base_delay_ms=0).delay_s(50, None) == 0
