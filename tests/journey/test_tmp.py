import time, numpy as np
def test_it(road, land, make_road):
    for number in (1, 2, 3):
        t = time.perf_counter()
        closed = road.round(number)
        print("round", number, time.perf_counter() - t, closed.seconds)
        base = land.model if number == 1 else road.open_version(number - 1)
        got = road.open_version(number)
        want = road.mean(land.sites, base)
        for n in got: np.testing.assert_allclose(got[n], want[n], rtol=1e-5)
    road.aggregators[-1].governor.close_run()
    t = time.perf_counter(); make_road(); print("make", time.perf_counter() - t)
