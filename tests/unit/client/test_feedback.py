"""What compression left out is carried over once, and only from an update that counted."""

import numpy as np

from confed.client.feedback import Feedback


def numbers(value):
    return np.full(3, value, np.float32)


def value_of(carried):
    return None if carried is None else float(carried[0])


def test_what_an_update_that_counted_left_out_is_carried_over():
    feedback = Feedback({1: ("t1",), 2: ("t2",)}.__getitem__)
    assert feedback.carried("north", round_number=1) is None
    feedback.note("north", round_number=1, ticket="t1", residual=numbers(1))
    assert feedback.carried("south", round_number=2) is None
    assert value_of(feedback.carried("north", round_number=2)) == 1
    feedback.note("north", round_number=2, ticket="t2", residual=numbers(2))
    assert value_of(feedback.carried("north", round_number=5)) == 2
    assert value_of(feedback.carried("north", round_number=6)) == 2


def test_an_update_that_did_not_count_leaves_what_was_before_it():
    feedback = Feedback({1: ("t1",), 2: ("another",)}.__getitem__)
    feedback.note("north", round_number=1, ticket="t1", residual=numbers(1))
    assert value_of(feedback.carried("north", round_number=2)) == 1
    feedback.note("north", round_number=2, ticket="t2", residual=numbers(2))
    assert value_of(feedback.carried("north", round_number=3)) == 1


def test_a_further_attempt_starts_from_what_was_before_the_first():
    feedback = Feedback({1: ("second",)}.__getitem__)
    feedback.note("north", round_number=1, ticket="first", residual=numbers(1))
    assert feedback.carried("north", round_number=1) is None
    feedback.note("north", round_number=1, ticket="second", residual=numbers(2))
    assert value_of(feedback.carried("north", round_number=2)) == 2
