"""Commands on one connection: replies in order, lost connections made anew, nothing mixed up after a late reply."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError, TimeoutError

from headwater.embedded import Endpoints
from streams.pipe import NodePipe


@pytest.fixture
async def redis(endpoints: Endpoints) -> AsyncIterator[Redis]:
    client = Redis.from_url(endpoints.redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def pipe(redis: Redis) -> AsyncIterator[NodePipe]:
    found = NodePipe(redis, timeout_s=10)
    yield found
    await found.close()


async def test_everybody_gets_the_replies_to_his_own_commands(pipe: NodePipe) -> None:
    async def echoes(n: int) -> list[bytes]:
        # Of all sizes, so that replies are cut anywhere.
        return await pipe.execute([("ECHO", f"{n}-{m}-{'x' * (n * 700 % 9000)}") for m in range(n % 4 + 1)])

    for n, replies in enumerate(await asyncio.gather(*(echoes(n) for n in range(200)))):
        assert [reply.split(b"-")[:2] for reply in replies] == [
            [str(n).encode(), str(m).encode()] for m in range(n % 4 + 1)
        ]


async def test_what_redis_refuses_stands_in_its_place(pipe: NodePipe) -> None:
    first, refused, last = await pipe.execute([("SET", "k", "v"), ("LPOP", "k"), ("GET", "k")])
    assert (first, last) == (b"OK", b"v")
    assert await pipe.execute([]) == []
    assert isinstance(refused, ResponseError)
    assert "WRONGTYPE" in str(refused)


async def test_who_is_cancelled_leaves_the_others_their_replies(pipe: NodePipe) -> None:
    impatient = asyncio.create_task(pipe.execute([("BLPOP", "nothing", "0.2")]))
    others = [asyncio.create_task(pipe.execute([("ECHO", str(n))])) for n in range(5)]
    await asyncio.sleep(0)
    impatient.cancel()
    assert [await other for other in others] == [[str(n).encode()] for n in range(5)]
    assert impatient.cancelled()


async def test_a_connection_that_is_lost_is_made_anew(redis: Redis, pipe: NodePipe) -> None:
    (mine,) = await pipe.execute([("CLIENT", "ID")])
    waiting = asyncio.create_task(pipe.execute([("BLPOP", "later", "5")]))
    await asyncio.sleep(0)
    assert await redis.execute_command("CLIENT", "KILL", "ID", mine) == 1  # type: ignore[no-untyped-call]
    await redis.lpush("later", "here")
    assert await waiting == [[b"later", b"here"]], "it was sent again"
    (other,) = await pipe.execute([("CLIENT", "ID")])
    assert other != mine


async def test_it_connects_as_the_client_would(redis: Redis, endpoints: Endpoints) -> None:
    await redis.execute_command("ACL", "SETUSER", "teller", "on", ">secret", "~*", "+@all")  # type: ignore[no-untyped-call]
    client = Redis.from_url(endpoints.redis_url, username="teller", password="secret", db=3)
    found = NodePipe(client, timeout_s=10)
    who, info, _ = await found.execute([("ACL", "WHOAMI"), ("CLIENT", "INFO"), ("SET", "there", "1")])
    assert who == b"teller"
    assert b" db=3 " in info
    assert await redis.get("there") is None
    wrong = NodePipe(Redis.from_url(endpoints.redis_url, username="teller", password="wrong"), timeout_s=10)
    with pytest.raises(RedisConnectionError, match=r"WRONGPASS|invalid username"):
        await wrong.execute([("PING",)])
    for one in (found, wrong):
        await one.close()
    await client.aclose()
    await redis.execute_command("ACL", "DELUSER", "teller")  # type: ignore[no-untyped-call]


class Server:
    """Answers as it is told: late, with nonsense, or not."""

    def __init__(self) -> None:
        self.connections = 0
        self.answers: list[bytes | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while data := await reader.read(65536):
            for _ in range(data.count(b"*")):
                answer = self.answers.pop(0) if self.answers and b"CLIENT" not in data else b"+OK\r\n"
                if answer is not None:
                    writer.write(answer)
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Redis]]:
    found = Server()
    listening = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    client = Redis(host="127.0.0.1", port=port, protocol=2)
    yield found, client
    await client.aclose()
    listening.close()


async def test_a_late_reply_is_given_up_with_its_connection(server: tuple[Server, Redis]) -> None:
    there, client = server
    pipe = NodePipe(client, timeout_s=0.05)
    there.answers = [None] * 4
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        await pipe.execute([("PING",)])
    assert there.connections == 4, "it was tried three times more"
    assert await pipe.execute([("PING",)]) == [b"OK"]
    assert there.connections == 5
    await pipe.close()


async def test_nonsense_and_a_server_that_loads_are_no_replies(server: tuple[Server, Redis]) -> None:
    there, client = server
    pipe = NodePipe(client, timeout_s=10)
    there.answers = [b"nonsense\r\n", b"-LOADING Redis is loading the dataset in memory\r\n", b"+PONG\r\n"]
    assert await pipe.execute([("PING",)]) == [b"PONG"]
    assert there.connections == 2, "only the first answer makes the connection useless"
    await pipe.close()
    with pytest.raises(RedisConnectionError, match="was closed"):
        await pipe.execute([("PING",)])


async def test_nobody_answers() -> None:
    client = Redis(host="127.0.0.1", port=9)
    pipe = NodePipe(client, timeout_s=1)
    with pytest.raises(RedisConnectionError):
        await pipe.execute([("PING",)])
    await pipe.close()
    await client.aclose()
