"""`streams/subscriber.py` builds on private bases of FastStream: what it relies on is still there."""

import inspect
from importlib.metadata import version

from faststream._internal.broker.registrator import Registrator
from faststream._internal.endpoint.subscriber.call_item import CallsCollection
from faststream.redis.subscriber.config import RedisSubscriberConfig
from faststream.redis.subscriber.usecases import LogicSubscriber

from streams.subscriber import CallSubscriber, LogSubscriber


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_version_is_the_one_this_was_written_for() -> None:
    assert version("faststream").startswith("0.7."), "check the tests below, then move the pin in pyproject.toml"


def test_the_subscribers_replace_what_the_base_calls() -> None:
    # `start` begins `_consume` with a signal, which calls `_get_msgs` for as long as `running` is true.
    assert parameters(LogicSubscriber._consume) == ["self", "args", "start_signal"]
    assert "_consume" in inspect.getsource(LogicSubscriber.start)
    for subscriber in (LogSubscriber, CallSubscriber):
        assert subscriber._consume is not LogicSubscriber._consume
        assert subscriber._get_msgs is not LogicSubscriber._get_msgs
    assert {"running", "lock", "calls"} <= set(dir(LogicSubscriber))


def test_a_message_goes_through_the_middlewares_and_its_errors_come_out() -> None:
    # `consume` swallows errors; `process_message` does not, and holds the lock that a graceful stop waits for.
    source = inspect.getsource(LogicSubscriber.process_message)
    assert "self.lock" in source
    assert "consume_scope" in source
    assert parameters(LogicSubscriber.process_message) == ["self", "msg"]


def test_the_configuration_takes_what_we_give_it() -> None:
    assert {"stream_sub", "no_reply", "_outer_config", "_ack_policy"} <= set(parameters(RedisSubscriberConfig))
    assert parameters(Registrator.subscriber)[:2] == ["self", "subscriber"]
    assert hasattr(CallsCollection, "add_call")
    assert "restart_on_failure" in parameters(LogicSubscriber.add_task)
