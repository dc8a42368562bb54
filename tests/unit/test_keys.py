"""Key names: a shard's hash tag in each, a tenant's name in its own only."""

from collections.abc import Callable

import pytest
from redis.crc import key_slot

from schemas.errors import InvalidInputError
from streams.keys import META, Keys

KEYS = Keys(16)
OF_TENANT: list[Callable[[str], str]] = [
    KEYS.log,
    KEYS.readers,
    KEYS.parked,
    KEYS.done,
    KEYS.prefix,
    lambda tenant: KEYS.blob(tenant, "0" * 64),
]


def test_names_are_as_documented() -> None:
    shard = KEYS.shard_of("acme")
    assert KEYS.log("acme") == f"hw:{{s{shard:02}}}:acme:log"
    assert KEYS.blob("acme", "ff") == f"hw:{{s{shard:02}}}:acme:blob:ff"
    assert KEYS.ready(7, "decider") == "hw:{s07}:ready:decider"
    assert KEYS.bell(7, "worker") == "hw:{s07}:bell:worker"
    assert KEYS.leases(7) == "hw:{s07}:leases"
    assert META == "hw:meta"


def test_all_keys_of_a_shard_are_on_one_node() -> None:
    for tenant in ("acme", "globex", "x" * 63):
        shard = KEYS.shard_of(tenant)
        names = [key(tenant) for key in OF_TENANT]
        names += [KEYS.ready(shard, "decider"), KEYS.bell(shard, "worker"), KEYS.leases(shard)]
        assert len({key_slot(name.encode()) for name in names}) == 1


def test_shards_are_spread_over_the_slots_and_tenants_over_the_shards() -> None:
    assert len({key_slot(prefix.encode()) for prefix in KEYS.prefixes}) == 16
    found = [KEYS.shard_of(f"tenant-{n}") for n in range(1600)]
    assert set(found) == set(range(16))
    assert max(map(found.count, set(found))) < 200


def test_a_tenants_shard_never_changes() -> None:
    # Recorded: another hash would lose every tenant's log.
    assert [KEYS.shard_of(tenant) for tenant in ("acme", "globex", "velo-harbor")] == [14, 10, 8]
    assert Keys(5000).prefixes[7] == "hw:{s0007}"
    assert Keys(1).prefixes == ("hw:{s00}",)


@pytest.mark.parametrize("tenant", ["", "a:b", "{a}", "a}", "a\n", "A", "x" * 64])
@pytest.mark.parametrize("key", OF_TENANT)
def test_no_key_is_made_for_a_tenant_id_that_could_leave_it(key: Callable[[str], str], tenant: str) -> None:
    with pytest.raises(InvalidInputError, match="tenant id"):
        key(tenant)
