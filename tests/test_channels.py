"`DynamicConv2d` and `convert`: what must hold for every shape, set and network"
import copy,itertools
import numpy as np,pytest,torch
from hypothesis import given,settings,strategies as st
from torch import nn
from mils.core import channel_sets,set_name
from mils.channels import *
from mils.data import ChannelStats

rng = np.random.default_rng(0)
def stats(n=3):
    a = rng.normal(size=(n,n))+2
    cov = a@a.T/n+.05*np.eye(n)
    return ChannelStats(np.full(n,.5), np.sqrt(np.diag(cov)), cov)
STATS = stats()
def rows(names, s): return [names.index(c) for c in s]

shapes = st.fixed_dictionaries(dict(out=st.integers(1,6), ks=st.sampled_from([1,2,3,5,7,(3,5)]), stride=st.integers(1,3), padding=st.integers(0,3),
    dilation=st.integers(1,2), bias=st.booleans(), padding_mode=st.sampled_from(['zeros','reflect','circular'])))

@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0,10**6))
def test_fold_is_forward(o, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, o['out'], o['ks'], o['stride'], o['padding'], o['dilation'], bias=o['bias'], padding_mode=o['padding_mode'])
    dyn,x = DynamicConv2d.from_conv(conv, stats=STATS),torch.randn(3,3,17,18)
    assert torch.equal(dyn(x), conv(x))
    for s in channel_sets():
        xs,full = x[:,rows('RGB',s)],torch.where(torch.tensor([c in s for c in 'RGB'])[None,:,None,None], x, torch.nan)
        fold = dyn.fold(s)
        assert type(fold) is nn.Conv2d and fold.in_channels==len(s)
        want = fold(xs)
        torch.testing.assert_close(dyn(xs, channels=s), want, atol=1e-5, rtol=1e-5)
        mask = torch.tensor([[c in s for c in 'RGB']]*3)
        torch.testing.assert_close(dyn(full, mask=mask), want, atol=1e-5, rtol=1e-5)   # borders and garbage in absent channels included
    assert torch.equal(dyn.fold('RGB').weight, conv.weight)

@settings(max_examples=25, deadline=None)
@given(st.integers(1,8), st.integers(1,9), st.integers(0,10**6))
def test_mixed_masks_are_single_samples(n, batch, seed):
    torch.manual_seed(seed)
    names = 'abcdefgh'[:n]
    dyn,x = DynamicConv2d(n, 4, 3, names, stats(n), padding=1),torch.randn(batch,n,9,8)
    mask = torch.rand(batch,n)>.5
    mask[torch.arange(batch),torch.randint(n,(batch,))] = True
    y = dyn(x, mask=mask)
    for i in range(batch):
        s = [c for c,m in zip(names,mask[i]) if m]
        torch.testing.assert_close(y[i:i+1], dyn(x[i:i+1,mask[i]], channels=s), atol=1e-4, rtol=1e-4)

def test_kernels_know_which_channel():
    dyn = DynamicConv2d(3, 8, 3, stats=STATS)
    ks = {set_name(s):dyn.kernel(s) for s in channel_sets()}
    for sets in (('R','G','B'), ('RG','RB','GB')):
        for a,b in itertools.combinations(sets,2): assert not torch.allclose(ks[a], ks[b], atol=1e-3)

def test_zero_fill_without_statistics():
    dyn,x = DynamicConv2d(3, 8, 3),torch.randn(2,3,9,9)
    zeroed = torch.cat([x[:,:1], torch.zeros(2,1,9,9), x[:,2:]], 1)
    torch.testing.assert_close(dyn(x[:,[0,2]], channels='RB'), dyn(zeroed), atol=1e-5, rtol=1e-5)

def test_gradients_reach_every_parameter():
    dyn = DynamicConv2d(3, 8, 3, stats=STATS)
    dyn(torch.randn(4,3,9,9), mask=torch.tensor([[1,1,0],[0,1,0],[1,0,1],[1,1,1]]).bool()).square().sum().backward()
    for k,p in dyn.named_parameters(): assert p.grad is not None and p.grad.abs().sum()>0, k

def test_state_dict_and_deepcopy():
    a,b = (DynamicConv2d(3, 8, 3, stats=STATS) for _ in range(2))
    b.load_state_dict(a.state_dict())
    x = torch.randn(2,2,9,9)
    for o in (b, copy.deepcopy(a)): assert torch.equal(o(x, channels='GB'), a(x, channels='GB'))

def test_bf16_and_channels_last():
    dyn,x,m = DynamicConv2d(3, 8, 3, stats=STATS),torch.randn(2,3,9,9),torch.tensor([[1,0,1],[0,1,1]]).bool()
    want = dyn(x, mask=m)
    torch.testing.assert_close(dyn(x.contiguous(memory_format=torch.channels_last), mask=m), want)
    half = copy.deepcopy(dyn).bfloat16()
    torch.testing.assert_close(half(x.bfloat16(), mask=m).float(), want, atol=.1, rtol=.1)
    with torch.autocast('cpu', torch.bfloat16): torch.testing.assert_close(dyn(x, mask=m).float(), want, atol=.1, rtol=.1)

x,yes = torch.randn(2,3,8,8),torch.ones(2,3,dtype=torch.bool)
@pytest.mark.parametrize('call,words', [
    (lambda d: d(x, channels='RX'), ["'X'",'possible: R, G, B']),
    (lambda d: d(x, channels=''), ['empty','R, G, B']),
    (lambda d: d(x[:,:2], channels='RR'), ['twice']),
    (lambda d: d(x[:,:2]), ['2 channels','RGB']),
    (lambda d: d(x, channels='GB'), ['3 channels','GB has 2']),
    (lambda d: d(x, mask=torch.tensor([[1,1,1],[0,0,0]]).bool()), ['row 1','no channel']),
    (lambda d: d(x, mask=yes[:,:2]), ['(2, 2)','(2, 3)']),
    (lambda d: d(x, mask=yes.float()), ['float32','bool']),
    (lambda d: d(x[:,:2], mask=yes), ['2 channels']),
    (lambda d: d(x, channels='RGB', mask=yes), ['not both']),
    (lambda d: d.fold('Q'), ["'Q'"])])
def test_impossible_input_is_named(call, words):
    with pytest.raises(ValueError) as e: call(DynamicConv2d(3, 4, 3))
    for w in words: assert w in str(e.value)

def test_impossible_layers_are_refused():
    for f in (lambda: DynamicConv2d(4, 4, 3), lambda: DynamicConv2d(3, 6, 3, groups=3), lambda: DynamicConv2d(3, 4, 3, stats=stats(4))):
        with pytest.raises(ValueError): f()
    class Own(nn.Conv2d): pass
    with pytest.raises(TypeError): DynamicConv2d.from_conv(Own(3,4,3))
    with pytest.raises(ValueError): convert(nn.Sequential(nn.Conv2d(1,4,3)))

timm = pytest.importorskip('timm')
import torchvision.models as tv
NETS = {'resnet18': tv.resnet18, 'convnext_tiny': tv.convnext_tiny, 'efficientnet_b0': tv.efficientnet_b0,
        **{f'timm {n}': (lambda n=n: timm.create_model(n)) for n in ('resnet10t','convnext_atto','efficientnet_lite0','vit_tiny_patch16_224')}}
@pytest.mark.parametrize('name', NETS)
def test_convert_known_networks(name):
    torch.manual_seed(0)
    net,x = NETS[name]().eval(),torch.randn(2,3,224,224)
    with torch.no_grad():
        before = net(x)
        net = convert(net, stats=STATS)
        assert torch.equal(net(x), before)
        assert torch.equal(net(x, torch.ones(2,3,dtype=torch.bool)), net(x, torch.ones(2,3,dtype=torch.bool)))
        folded = net.fold('GB')
        assert not any(isinstance(m,(DynamicConv2d,ChannelAdaptive)) for m in folded.modules())
        torch.testing.assert_close(net(x[:,1:], channels='GB'), folded(x[:,1:]), atol=1e-4, rtol=1e-4)
    assert net.stem.given=={}
