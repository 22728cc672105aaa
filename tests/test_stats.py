"""The statistics of the harness, against closed forms, scipy, and simulation."""

import statistics

import numpy as np
import pytest
from scipy import stats as scipy_stats

from vtc.eval.results import stats


def test_the_interval_of_a_mean_is_the_normal_one_for_many_samples():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    low, high = stats.bootstrap(values.tolist(), is_mean=True)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_function_gets_the_interval_that_the_short_cut_gives():
    values = np.random.default_rng(1).random(60).tolist()
    short, function = stats.bootstrap(values, is_mean=True), stats.bootstrap(values, statistics.fmean)
    width = short[1] - short[0]
    assert function == pytest.approx(short, abs=0.15 * width)


def test_it_agrees_with_scipy():
    values = np.random.default_rng(2).exponential(size=80)
    theirs = scipy_stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, random_state=0)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert stats.bootstrap(values.tolist(), is_mean=True) == pytest.approx(
        tuple(theirs.confidence_interval), abs=0.08 * width
    )


def test_it_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        low, high = stats.bootstrap(generator.normal(size=80).tolist(), is_mean=True)
        held += low <= 0 <= high
    assert 0.915 <= held / 400 <= 0.975  # three standard errors about 0.945, what 80 samples give


def test_clusters_are_drawn_whole():
    """Ten equal answers about each of 20 pictures tell no more than 20."""
    pictures = np.random.default_rng(4).random(20)
    values, clusters = np.repeat(pictures, 10).tolist(), np.repeat(np.arange(20), 10).tolist()
    of_pictures, of_answers = stats.bootstrap(pictures.tolist(), is_mean=True), stats.bootstrap(values, is_mean=True)
    clustered = stats.bootstrap(values, is_mean=True, clusters=clusters)
    assert clustered == pytest.approx(of_pictures)
    assert clustered[1] - clustered[0] > 2.5 * (of_answers[1] - of_answers[0])
    pairs: list[int] = []
    stats.bootstrap(
        [(c, v) for c, v in zip(clusters, values)], lambda some: pairs.append(len(some)) or 0.0, clusters=clusters
    )
    assert set(pairs) == {200}


def test_a_paired_difference_draws_the_same_questions_for_both():
    without = np.random.default_rng(5).random(50)
    shifted = (without + 0.25).tolist()
    assert stats.paired_bootstrap(shifted, without.tolist(), is_mean=True) == pytest.approx((0.25, 0.25))
    assert stats.paired_bootstrap(shifted, without.tolist(), statistics.fmean) == pytest.approx((0.25, 0.25))
    low, high = stats.bootstrap(shifted, is_mean=True)
    assert high - low > 0.1


@pytest.mark.parametrize(("values", "interval"), [([0.5], (0.5, 0.5)), ([1.0] * 9, (1.0, 1.0))])
def test_one_sample_or_equal_ones_leave_no_room(values, interval):
    assert stats.bootstrap(values, is_mean=True) == interval
    assert stats.bootstrap(values, statistics.fmean) == interval


def test_the_same_arguments_give_the_same_interval():
    values = np.random.default_rng(6).random(30).tolist()
    assert stats.bootstrap(values, is_mean=True) == stats.bootstrap(values, is_mean=True)
    assert stats.bootstrap(values, is_mean=True) != stats.bootstrap(values, is_mean=True, seed=1)


@pytest.mark.parametrize("lost", range(7))
@pytest.mark.parametrize("won", range(7))
def test_mcnemar_is_the_binomial_test(lost, won):
    expected = scipy_stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert stats.mcnemar(lost, won) == pytest.approx(expected)


def test_flips_and_agreement_count_questions():
    flips = stats.flips([True, True, False, False, True], [False, True, True, False, False])
    assert (flips.right_to_wrong, flips.wrong_to_right, flips.p_value) == (2, 1, 1.0)
    assert stats.agreement(["Red.", "two", " a  b", ""], ["red", "three", "A, b", ""]) == 0.75


def test_ratios_are_averaged_over_tasks_and_those_without_one_left_out():
    assert stats.mean_relative({"mme": 0.9, "gqa": 1.1, "pope": None}) == pytest.approx(1.0)
    assert stats.mean_relative({"pope": None}) is None
