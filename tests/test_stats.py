"Intervals and tests keep their promises: coverage and false positives, by simulation"
import numpy as np,pandas as pd,pytest
from hypothesis import given,settings,strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom,bootstrap
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from mils.stats import crossed,hit_table,wilson
from mils.pairs import paired
from mils.compare import cochran,mcnemar,non_inferior,permutation,wins
from mils.ranks import friedman

def near(hits, n, nominal, tail=1e-4):
    "Whether a count is plausible for a nominal rate"
    return binom.cdf(hits, n, nominal)>tail and binom.sf(hits-1, n, nominal)>tail

def world(rng, seeds, luck, n=400, means=(.40,.40)):
    "Two networks: pictures of different difficulty, trainings with luck"
    p = np.array(means)[:,None,None]+rng.normal(0, .15, n)+rng.normal(0, .08, (2,1,n))+rng.normal(0, luck, (2,seeds,1))
    return (rng.random((2,seeds,n))<p.clip(0, 1)).astype(float)

def as_promised(hits, n):
    "Whether so many of `n` intervals of 95 % may hold the truth; those of 90 %, and those that hold it always, may not"
    return binom.ppf(1e-3, n, .95)<=hits<n

def covered(seeds, luck, level, n=1000):
    "How many intervals hold the truth, which is zero, among experiments in `n` worlds"
    intervals = [paired(*world(np.random.default_rng(i), seeds, luck), level=level) for i in range(n)]
    return sum(r['low']<0<r['high'] for r in intervals),n

@pytest.mark.parametrize('seeds,luck', [(1,0.),(2,0.),(2,.01),(3,0.),(3,.01),(5,.02)])
def test_intervals_of_pairs_cover(seeds, luck): assert as_promised(*covered(seeds, luck, .95))

def test_intervals_that_are_too_short_are_found():
    assert not as_promised(*covered(1, 0., .90))
    assert not as_promised(900, 1000) and not as_promised(1000, 1000) and as_promised(940, 1000)

def test_ratio_interval_covers():
    n,hits = 1000,0
    for i in range(n):
        a,b = world(np.random.default_rng(i), 4, .01, means=(.5,.45))
        r = paired(a, b); hits += r['ratio_low']<.9<r['ratio_high']
    assert as_promised(hits, n)

def test_ratio_interval_is_near_scipys_bootstrap_where_pictures_are_the_only_luck():
    for i in range(20):
        rng = np.random.default_rng(i)
        a,b = rng.exponential(1, (1,400)),rng.exponential(2, (1,400))
        r = paired(a, b)
        ratio = lambda a,b,axis: b.mean(axis)/a.mean(axis)
        bca = bootstrap((a[0],b[0]), ratio, paired=True, n_resamples=2000, method='BCa', random_state=i).confidence_interval
        assert (r['ratio_low'],r['ratio_high'])==pytest.approx(tuple(bca), rel=.03)

def test_mcnemar_errs_as_often_as_promised():
    n = 1500
    wrong = sum(mcnemar(*(np.random.default_rng(i).random((2,300))<.4))['p']<.05 for i in range(n))
    assert wrong<binom.ppf(.9999, n, .05)                        # exact, therefore at most

def test_permutation_errs_as_often_as_promised():
    n = 300
    wrong = sum(permutation(*world(np.random.default_rng(i), 6, .01, 100))<=1/32 for i in range(n))
    assert near(wrong, n, 1/32)

def test_wilson_covers():
    n,p = 2000,.4
    k = np.random.default_rng(0).binomial(200, p, n)
    lo,hi = wilson(k, 200)
    assert near(((lo<p)&(p<hi)).sum(), n, .95, 1e-5)

@settings(deadline=None, max_examples=60)
@given(arrays(bool, st.tuples(st.just(2), st.integers(2, 40))))
def test_mcnemar_is_statsmodels(x):
    a,b = x
    if (a==b).all():
        with pytest.raises(ValueError, match='nothing to test'): mcnemar(a, b)
    else:
        t = [[(a&b).sum(),(a&~b).sum()],[(~a&b).sum(),(~a&~b).sum()]]
        assert mcnemar(a, b)['p']==pytest.approx(sm_mcnemar(t, exact=True).pvalue)

@settings(deadline=None, max_examples=60)
@given(arrays(float, st.tuples(st.integers(1, 5), st.integers(3, 30)), elements=st.floats(0, 1)))
def test_crossed_does_not_depend_on_order(d):
    r,s = crossed(d),crossed(d[::-1,::-1])
    assert r['low']<=r['mean']<=r['high'] and r['low']==pytest.approx(s['low'], abs=1e-9)
    assert crossed(2*d+1)['se']==pytest.approx(2*r['se'], abs=1e-9)

@pytest.mark.parametrize('call,say', [
    (lambda: paired(np.zeros((3,9)), np.zeros((4,9))), 'same seeds and images'),
    (lambda: permutation(np.zeros((5,9)), np.ones((5,9))), '6 pairs could'),
    (lambda: permutation(np.zeros((6,9)), np.ones((6,8))), 'takes pairs'),
    (lambda: mcnemar(np.zeros(9), np.zeros(8)), 'same images'),
    (lambda: mcnemar(np.zeros((2,9)), np.zeros((2,9))), 'one training'),
    (lambda: cochran(np.ones(9), np.ones(9), np.ones(9)), 'nothing to test'),
    (lambda: friedman(pd.DataFrame(dict(a=[1.,2],b=[2.,1]))), 'three or more'),
    (lambda: friedman(pd.DataFrame(dict(a=[1.,2],b=[2.,None],c=[1.,3]))), 'b lacks a seed'),
    (lambda: wins(np.zeros((2,9)), np.zeros((2,8))), 'the same'),
    (lambda: non_inferior(np.ones((3,9)), np.ones((2,9))), 'takes pairs'),
    (lambda: hit_table(pd.DataFrame(dict(run=['a','b'], image=['x','y'], channels='R', rank=0)), ['a','b']), 'same pictures')])
def test_unfit_designs_are_refused(call, say):
    with pytest.raises(ValueError, match=say): call()
