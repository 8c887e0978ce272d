from fednode.net.clock import SystemClock


def test_the_monotonic_clock_never_goes_back_and_the_wall_clock_is_unix_time() -> None:
    clock = SystemClock()
    assert clock.now() <= clock.now()
    assert clock.wall_s() > 1_700_000_000
