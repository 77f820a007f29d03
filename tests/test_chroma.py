"What a notebook cannot show of chroma: a process of its own, and properties over many seeds"
import subprocess,sys
import pytest
from mils.ceiling import chroma_ceiling
from mils.paint import chroma_shapes,paint,scenes
from mils.chroma import chroma

def test_no_torch():
    code = "import sys; from mils.chroma import *; from mils.ceiling import *; chroma_ceiling(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable,'-c',code]).returncode==0

@pytest.mark.parametrize('seed', range(1,6))
def test_levels_are_in_the_pixels(seed):
    _,v,lots = scenes(600, seed)
    for s in chroma_shapes:
        x = paint(s, v, lots).astype(int)
        assert ((x.max((1,2))-80)==5*v).all()
        assert (x[:,[0,0,-1,-1],[0,-1,0,-1]]<=44).all()  # corners are background

@pytest.mark.parametrize('split,name', [(0,'train'),(1,'val'),(2,'test')])
def test_split_is_its_own_stream(split, name):
    a,b = chroma(40,20,20),chroma(60,40,30)
    n = len(a.splits[name])
    assert (a.images[a.splits[name]]==b.images[b.splits[name]][:n]).all()
    assert a.key!=b.key

def test_a_changed_series_does_not_change_the_ceiling():
    c = chroma_ceiling()
    c['R'] = 0
    assert chroma_ceiling()['R']>.25

def test_negative_seed():
    with pytest.raises(ValueError): chroma(40,20,20,seed=-1)
