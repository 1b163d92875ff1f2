from lawa_jax.trajectory.gaps import missing_between, stride


def test_missing_between():
    assert missing_between([1, 2, 4]) == (3,)
    assert missing_between([10, 20, 40, 50]) == (30,)
    assert missing_between([5]) == missing_between([1, 100]) == ()


def test_what_never_was_is_not_missing():
    assert missing_between([500, 1000, 1250]) == ()
    assert missing_between([1, 10, 20, 30]) == ()
    assert missing_between([4, 9, 12]) == missing_between([3, 7, 8, 20, 31]) == ()
    assert missing_between([1, 5, 10, 15, 25, 28]) == (20,)


def test_stride():
    assert stride([7]) == 1
    assert stride([500, 1000, 1500, 1600]) == 500
