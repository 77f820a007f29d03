"A failing comparison is one line"
import pytest,torch
from tensors import assert_close,assert_same

a = torch.arange(30_000.).view(3,100,100)
@pytest.mark.parametrize('compare,b,words', [
    (assert_close, a+a.eq(12_345)*.7,                 ['1 of 30000','(3, 100, 100)','0.7','[1, 23, 45]']),
    (assert_same,  torch.nextafter(a, a+1),           ['30000 of 30000']),
    (assert_close, torch.where(a==7, torch.nan, a),   ['1 of 30000','nan','[0, 0, 7]']),
    (assert_close, a[0],                              ['(3, 100, 100) and (100, 100)']),
    (assert_same,  a.double(),                        ['float32 and torch.float64'])])
def test_a_difference_is_told_in_a_line(compare, b, words):
    with pytest.raises(AssertionError) as e: compare(a, b)
    for w in words: assert w in str(e.value)
    assert len(str(e.value))<200

def test_what_is_close_passes():
    assert_same(a, a.clone())
    assert_close(a, a*(1+1e-6))
    assert_close(a.numpy(), a.numpy())
