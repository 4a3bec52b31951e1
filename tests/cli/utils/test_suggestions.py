from __future__ import annotations

from flowblend_cli.utils.suggestions import closest, did_you_mean

KNOWN = ["height", "width", "num_frames"]


def test_a_mistyped_name_is_answered_with_the_nearest_one() -> None:
    assert did_you_mean("heigth", KNOWN) == "; did you mean 'height'?"


def test_a_name_that_is_near_nothing_gets_the_other_words_or_none() -> None:
    assert did_you_mean("zzz", KNOWN, "known are all") == "; known are all"
    assert did_you_mean("zzz", KNOWN) == ""
    assert did_you_mean("zzz", ()) == ""


def test_the_cutoff_decides_how_near_is_near() -> None:
    assert closest("wide", KNOWN, cutoff=0.5) == "width"
    assert closest("wide", KNOWN, cutoff=0.9) is None
