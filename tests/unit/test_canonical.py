import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from confed import canonical
from confed.errors import EncodingError, SizeError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_what_is_encoded_decodes_to_itself(value):
    encoded = canonical.encode(value)
    assert canonical.encode(canonical.decode(encoded)) == encoded


@given(JSON)
def test_the_quick_way_writes_what_the_reference_writes(value):
    assert canonical.encode(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": 1}, 2**53, float("nan"), {1: 2}, b"", object()])
def test_what_the_reference_refuses_is_refused(value):
    with pytest.raises(EncodingError):
        canonical.encode(value)


def test_keys_are_in_the_order_of_utf_16_where_code_points_differ():
    assert canonical.encode({"\ufb33": 1, "\U0001f600": 2}) == '{"\U0001f600":2,"\ufb33":1}'.encode()


# RFC 8785, section 3.2.2 and 3.2.3: numbers in ECMAScript form, keys by UTF-16 code units.
def test_the_rfc_s_own_example_has_its_bytes():
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical.encode(value) == expected.encode()


@pytest.mark.parametrize(
    ("sentence", "data", "error"),
    [
        ("white space is refused", b'{"a": 1}', EncodingError),
        ("keys in another order are refused", b'{"b":1,"a":2}', EncodingError),
        ("a key twice is refused", b'{"a":1,"a":1}', EncodingError),
        ("another spelling of a number is refused", b'{"a":1.0}', EncodingError),
        ("trailing bytes are refused", b'{"a":1}\n', EncodingError),
        ("bytes that are not JSON are refused", b"\xff\xfe", EncodingError),
        ("nesting without end is refused", b"[" * 100_000, EncodingError),
        ("NaN is refused", b'{"a":NaN}', EncodingError),
        ("more than the bound is refused", b'"' + b"a" * 100 + b'"', SizeError),
    ],
)
def test_other_spellings_are_refused(sentence, data, error):
    limit = 64 if error is SizeError else canonical.LIMIT_BYTES
    with pytest.raises(error):
        canonical.decode(data, limit_bytes=limit)
