import numpy as np

from confed.data.dawid_skene import ABSTAINS, counts_of, estimate, majority

# Dawid and Skene (1979), table 1: 45 patients; three readings of the first observer, one of each of the other four.
PATIENTS = [
    "1111111",
    "3334334",
    "1122122",
    "2223121",
    "2223222",
    "2223322",
    "1222111",
    "3333433",
    "2222223",
    "2322223",
    "4444444",
    "2223343",
    "1111111",
    "2223212",
    "1211111",
    "1112111",
    "1111111",
    "1111111",
    "2222221",
    "2221322",
    "2222222",
    "2222221",
    "2223222",
    "2212222",
    "1111111",
    "1111111",
    "2322222",
    "1111111",
    "1111111",
    "1121121",
    "1111111",
    "3333233",
    "1111111",
    "2222222",
    "2223232",
    "4334343",
    "2212232",
    "2323233",
    "3333432",
    "1111111",
    "1111111",
    "1212111",
    "2322222",
    "1211111",
    "2222222",
]


def counts_of_patients():
    seen = np.zeros((45, 5, 4))
    for patient, readings in enumerate(PATIENTS):
        for place, reading in enumerate(readings):
            seen[patient, max(0, place - 2), int(reading) - 1] += 1
    return seen


def test_the_source_s_own_example_gives_its_result():
    # Table 4: shares of the four classes.
    found = estimate(counts_of_patients(), iterations=1000)
    np.testing.assert_allclose(found.shares, [0.40, 0.42, 0.11, 0.07], atol=0.005)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(found.errors.sum(axis=2), 1)
    # Table 4: of these nobody is in doubt.
    for patient, kind in ((1, 1), (11, 4), (13, 1), (21, 2), (32, 3)):
        assert found.probabilities[patient - 1].argmax() == kind - 1
        assert found.probabilities[patient - 1].max() > 0.99


def test_a_source_that_errs_often_counts_less_than_one_that_does_not():
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 2, 2000)
    rates = (0.95, 0.6, 0.6, 0.6)
    votes = np.stack([np.where(generator.random(2000) < rate, truth, 1 - truth) for rate in rates], axis=1)
    seen = counts_of(votes, classes=2)
    estimated = estimate(seen, iterations=500).probabilities.argmax(axis=1)
    voted = majority(seen).argmax(axis=1)
    assert (estimated == truth).mean() > 0.93
    assert (voted == truth).mean() < 0.85


def test_who_abstains_changes_nothing():
    votes = np.array([[0, 0, ABSTAINS], [1, 1, ABSTAINS], [1, 1, ABSTAINS]])
    with_it, without = (estimate(counts_of(part, classes=2), iterations=10) for part in (votes, votes[:, :2]))
    np.testing.assert_array_equal(with_it.probabilities, without.probabilities)


def test_rows_that_nothing_explains_have_a_class_all_the_same():
    seen = counts_of(np.array([[0, 1], [1, 0], [0, 0], [1, 1]]), classes=2)
    assert np.isfinite(estimate(seen, iterations=100).probabilities).all()
