import os
os.environ.setdefault('TQDM_DISABLE', '1')
if 'PYTEST_XDIST_WORKER' in os.environ: os.environ.setdefault('OMP_NUM_THREADS', '1')         # workers fill the cores already
import pytest
from hypothesis import settings

# how many examples a property is tried on: `HYPOTHESIS_PROFILE=long pytest` takes its time
for name,n in dict(quick=8, long=200).items(): settings.register_profile(name, max_examples=n, deadline=None)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'quick'))

@pytest.fixture
def tiny():
    "A small chroma set: 32 px, 20 classes"
    from mils.chroma import chroma
    return chroma(n_train=240, n_val=100, n_test=100)
