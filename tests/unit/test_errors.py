import pickle

from confed import errors


def all_errors(kind=errors.ConfedError):
    return [kind, *(found for child in kind.__subclasses__() for found in all_errors(child))]


def test_every_class_has_a_code_of_its_own():
    codes = [kind.code for kind in all_errors() if kind.__module__ == "confed.errors"]
    assert len(set(codes)) == len(codes)


def test_every_class_is_drawn_in_the_tree_at_the_top():
    for kind in all_errors():
        if kind.__module__ == "confed.errors":
            assert kind.__name__ in errors.__doc__


def test_a_code_gives_its_class_back():
    for kind in all_errors():
        if kind.__module__ == "confed.errors":
            assert type(errors.error_for(kind.code, "x")) is kind


def test_an_unknown_code_is_refused_by_name():
    found = errors.error_for("no-such-code", "broker")
    assert type(found) is errors.RefusedError
    assert "no-such-code" in str(found)


def test_a_message_has_field_expected_and_got():
    error = errors.NormError("norm", expected="at most 1", got=2)
    assert str(error) == "norm: expected at most 1, got 2"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(again), again.field, again.expected, again.got) == (errors.NormError, "norm", "at most 1", 2)


def test_a_user_s_mistake_exits_with_2_and_a_refusal_with_3():
    assert errors.ConfigError("x").exit_code == 2
    assert errors.TamperedError("x").exit_code == 3
