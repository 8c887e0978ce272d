from fednode.model.units import Instant
from router.policy.leases import LEASES_MAX, Lease, Leases

T0 = Instant(10.0)


def grant(leases: Leases, now: Instant = T0, predicted_s: float = 10.0) -> Lease:
    lease = leases.grant(
        holder="ann", key="home/big", prompt_tokens=900, kv_tokens=1_200, predicted_s=predicted_s, now=now
    )
    assert lease is not None
    return lease


def test_a_lease_sets_headroom_aside_until_it_is_released() -> None:
    leases = Leases()
    lease = grant(leases)
    assert (leases.kv_tokens("home/big"), leases.held_by("ann"), leases.held_by("bob")) == (1_200, 1, 0)
    leases.started(lease)
    assert leases.kv_tokens("home/big") == 300
    assert leases.release(lease)
    assert not leases.release(lease)
    assert (leases.kv_tokens("home/big"), len(leases)) == (0, 0)
    leases.started(lease)
    assert leases.kv_tokens("home/big") == 0


def test_a_lease_nobody_releases_ends_at_twice_the_prediction() -> None:
    leases = Leases()
    lease = grant(leases)
    assert leases.expire(Instant(T0 + 24.9)) == ()
    assert leases.expire(Instant(T0 + 25)) == (lease,)
    assert len(leases) == 0


def test_a_full_table_grants_nothing_until_something_ends() -> None:
    leases = Leases()
    for _ in range(LEASES_MAX):
        grant(leases)
    refused = leases.grant(holder="a", key="k", prompt_tokens=1, kv_tokens=1, predicted_s=1, now=T0)
    assert refused is None
    grant(leases, now=Instant(T0 + 60))
    assert len(leases) == 1
