"""Which chapters a walk has."""

from dev.chapters import CHAPTERS


def chapters_shown(*, simulated: bool, pays_out_by_hand: bool) -> set[str]:
    return {
        chapter.title.partition(":")[0]
        for chapter in CHAPTERS
        if not chapter.obstacle(simulated=simulated, pays_out_by_hand=pays_out_by_hand)
    }


def test_the_simulator_has_all_of_them() -> None:
    assert len(chapters_shown(simulated=True, pays_out_by_hand=True)) == len(CHAPTERS)


def test_stripe_itself_has_those_that_need_neither_its_clock_nor_its_banks() -> None:
    at_stripe = chapters_shown(simulated=False, pays_out_by_hand=True)
    assert {"Captured", "Three milestones"} <= at_stripe
    assert "Promoted" not in at_stripe


def test_a_platform_that_is_paid_out_by_itself_holds_nothing() -> None:
    automatic = chapters_shown(simulated=False, pays_out_by_hand=False)
    assert "Captured" in automatic
    assert "Three milestones" not in automatic
