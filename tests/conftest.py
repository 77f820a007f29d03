import os
os.environ.setdefault('TQDM_DISABLE', '1')
if 'PYTEST_XDIST_WORKER' in os.environ: os.environ.setdefault('OMP_NUM_THREADS', '1')         # workers fill the cores already
import mils           # noqa: F401 - before PyTorch, which reads how threads wait when it is loaded
import pytest
from hypothesis import settings

# how many examples a property is tried on: `HYPOTHESIS_PROFILE=long pytest` takes its time
settings.register_profile('quick', max_examples=12, derandomize=True, deadline=None)             # the same examples each time
settings.register_profile('long', max_examples=200, deadline=None)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'quick'))

@pytest.fixture
def tiny():
    "A small chroma set: 32 px, 20 classes"
    from mils.chroma import chroma
    return chroma(n_train=240, n_val=100, n_test=100)
