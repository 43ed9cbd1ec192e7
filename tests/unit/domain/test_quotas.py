"""A bucket of tokens for each caller."""

from __future__ import annotations

import pytest

from payment_service.domain.quotas import Buckets, Quota, quotas_of


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    buckets = Buckets(Quota(rate=2, burst=3), {})
    assert [buckets.take("gigs", 0.0) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("gigs", 0.0) == pytest.approx(0.5)
    assert buckets.take("gigs", 0.5) == 0
    assert buckets.take("gigs", 0.5) > 0


def test_a_long_pause_does_not_save_more_than_the_burst() -> None:
    buckets = Buckets(Quota(rate=2, burst=3), {})
    assert buckets.take("gigs", 0.0) == 0
    taken = [buckets.take("gigs", 1_000.0) for _ in range(4)]
    assert taken[:3] == [0, 0, 0]
    assert taken[3] > 0


def test_callers_do_not_share_a_bucket() -> None:
    buckets = Buckets(Quota(rate=1, burst=1), {"batch": Quota(rate=1, burst=2)})
    assert buckets.take("gigs", 0.0) == 0
    assert buckets.take("gigs", 0.0) > 0
    assert buckets.take("users", 0.0) == 0
    assert [buckets.take("batch", 0.0) > 0 for _ in range(3)] == [False, False, True]


def test_a_token_is_given_back_but_never_more_than_the_burst() -> None:
    buckets = Buckets(Quota(rate=1, burst=1), {})
    assert buckets.take("gigs", 0.0) == 0
    buckets.give_back("gigs")
    buckets.give_back("gigs")
    assert buckets.take("gigs", 0.0) == 0
    assert buckets.take("gigs", 0.0) > 0


def test_a_rate_of_zero_is_no_limit() -> None:
    buckets = Buckets(Quota(rate=0, burst=1), {})
    assert {buckets.take("gigs", 0.0) for _ in range(10)} == {0}


def test_the_caller_that_was_idle_longest_is_forgotten() -> None:
    """Names come from callers, so their number is bounded."""
    buckets = Buckets(Quota(rate=1, burst=1), {})
    for number in range(5_000):
        buckets.take(f"caller-{number}", 0.0)
    assert buckets.take("caller-4999", 0.0) > 0
    assert buckets.take("caller-0", 0.0) == 0
    assert len(buckets._buckets) == 1_024


def test_overrides_are_read_from_the_settings() -> None:
    assert quotas_of(("gig-service=400/800", "batch=0.5/20")) == {
        "gig-service": Quota(400, 800),
        "batch": Quota(0.5, 20),
    }


@pytest.mark.parametrize("text", ["gigs", "gigs=1", "gigs=1/0", "gigs=-1/1", "=1/1", "a=b=1/1"])
def test_what_is_no_quota_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="write caller=rate/burst"):
        quotas_of((text,))
