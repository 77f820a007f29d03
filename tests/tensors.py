"Compare tensors and arrays: a failure tells shapes and the largest difference, not thousands of numbers"
import numpy as np,torch

def _tensor(o): return o.detach() if isinstance(o, torch.Tensor) else torch.tensor(np.array(o))

def _compare(got, want, tol):
    __tracebackhide__ = True
    got,want = _tensor(got),_tensor(want)
    if got.shape!=want.shape: raise AssertionError(f'shapes differ: {tuple(got.shape)} and {tuple(want.shape)}')
    if got.dtype!=want.dtype: raise AssertionError(f'dtypes differ: {got.dtype} and {want.dtype}')
    if not got.numel(): return
    got,want = got.double(),want.double()
    far = ~torch.isclose(got, want, rtol=tol, atol=tol)
    if not far.any(): return
    off = (got-want).abs().nan_to_num(torch.inf)
    at = torch.unravel_index(off.argmax(), off.shape)
    raise AssertionError(f'{int(far.sum())} of {far.numel()} numbers of shape {tuple(far.shape)} differ by more than {tol:g}; '
                         f'the largest difference is {off[at]:.3g}, at {[int(i) for i in at]}: {got[at]:.6g} and {want[at]:.6g}')

def assert_close(got, want, tol=1e-5):
    "Same shape and dtype, and every number within `tol`, and `tol` of its size"
    __tracebackhide__ = True
    _compare(got, want, tol)

def assert_same(got, want):
    "Same shape and dtype, and equal to the bit"
    __tracebackhide__ = True
    _compare(got, want, 0)

def assert_near(got, want, tol=1e-5):
    "Same shape and dtype, and no number off by more than `tol` of the largest one: what is summed in another order"
    __tracebackhide__ = True
    size = _tensor(want).abs().max().clamp(min=1e-30)
    assert_close(got/size, want/size, tol)
