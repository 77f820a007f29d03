"`DynamicConv2d` and `convert`: what must hold for every generator, shape, set and network"
import copy,itertools,subprocess,sys
from functools import partial
import numpy as np,pytest,torch
from hypothesis import given,strategies as st
from torch import nn
from tensors import assert_close,assert_near,assert_same
from mils.core import channel_sets
from mils.imageset import ChannelStats
from mils.generators import Generator,generators
from mils.layer import DynamicConv2d
from mils.channels import ChannelAdaptive,convert

rng = np.random.default_rng(0)
def stats(n=3):
    a = rng.normal(size=(n,n))+2
    cov = a@a.T/n+.05*np.eye(n)
    return ChannelStats(np.full(n,.5), np.sqrt(np.diag(cov)), cov)
STATS = stats()

def trained(layer, size=.3):
    "The layer as training might leave it: no parameter of the generator or the attention at its start"
    with torch.no_grad():
        for part in (layer.generator, layer.attention):
            for p in (part.parameters() if part else ()): p.add_(size*torch.randn_like(p))
    return layer
def source(o): return nn.Conv2d(3, **o)
def masks_of(sets, names='RGB'): return torch.tensor([[c in s for c in names] for s in sets])

shapes = st.fixed_dictionaries(dict(out_channels=st.integers(1,6), kernel_size=st.sampled_from([1,2,3,5,7,(3,5)]), stride=st.integers(1,3),
    padding=st.integers(0,3), dilation=st.integers(1,2), bias=st.booleans(), padding_mode=st.sampled_from(['zeros','reflect','circular'])))
every = pytest.mark.parametrize('attention', [False,True])
each = pytest.mark.parametrize('name', generators)

# What a generator does not promise, and why. A new one is held to everything until it stands here.
NOT_EXACT = ['gray','bank','adapter']                # the full set's kernel is computed, too: equal up to rounding, or not at all
FORGETS_COLOUR = ['gray']                            # even where all channels are there
BY_PLACE = ['per_count','shared','adapter']          # kernels go by the place among those present: R, G and B are one picture
def but(*left_out): return pytest.mark.parametrize('name', [g for g in generators if g not in left_out])

@but(*FORGETS_COLOUR)
@given(shapes, st.integers(0,10**6))
def test_full_set_is_the_source(name, o, seed):
    torch.manual_seed(seed)
    conv,x = source(o),torch.randn(3,3,17,18)
    for attention in (False,True):
        dyn = DynamicConv2d.from_conv(conv, stats=STATS, generator=name, attention=attention)
        assert_close(dyn(x), conv(x))
        if dyn.generator.exact:
            assert_same(dyn(x), conv(x))
            if not attention: assert_same(dyn.fold('RGB').weight, conv.weight)

@each
def test_who_promises_the_source_to_the_bit(name):
    assert generators[name](3).exact==(name not in NOT_EXACT)

@each
@every
@given(shapes, st.integers(0,10**6))
def test_fold_is_forward(name, attention, o, seed):
    torch.manual_seed(seed)
    dyn,x = trained(DynamicConv2d.from_conv(source(o), stats=STATS, generator=name, attention=attention)),torch.randn(3,3,17,18)
    for s in channel_sets():
        xs = x[:,dyn.rows(s)]
        fold = dyn.fold(s)
        if not attention: assert type(fold) is nn.Conv2d and fold.in_channels==len(s)
        assert not any(isinstance(m, DynamicConv2d) for m in fold.modules())
        want = fold(xs)
        assert_near(dyn(xs, channels=s), want)
        rubbish = torch.tensor([torch.nan,torch.inf,1e30])[:,None,None,None]
        garbage = torch.where(masks_of([s])[:,:,None,None], x, rubbish)
        assert_near(dyn(garbage, mask=masks_of([s]*3)), want)          # borders and garbage in absent channels included

@each
@every
@given(st.integers(1,8), st.integers(1,9), st.integers(0,10**6))
def test_mixed_masks_are_single_samples(name, attention, n, batch, seed):
    torch.manual_seed(seed)
    names = 'abcdefgh'[:n]
    dyn,x = trained(DynamicConv2d(n, 4, 3, names, stats(n), name, attention, padding=1), .1),torch.randn(batch,n,9,8)
    mask = torch.rand(batch,n)>.5
    mask[torch.arange(batch),torch.randint(n,(batch,))] = True
    y = dyn(x, mask=mask)
    for i in range(batch):
        s = [c for c,m in zip(names,mask[i]) if m]
        assert_close(y[i:i+1], dyn(x[i:i+1,mask[i]], channels=s), 1e-4)

@each
def test_all_255_sets_of_eight_channels(name):
    torch.manual_seed(0)
    names = 'abcdefgh'
    sets = channel_sets(names)
    dyn,x = trained(DynamicConv2d(8, 4, 3, names, stats(8), name), .05),torch.randn(1,8,6,6)
    y = dyn(x.expand(255,-1,-1,-1), mask=masks_of(sets, names))
    for i in range(0,255,7): assert_close(y[i:i+1], dyn.fold(sets[i])(x[:,dyn.rows(sets[i])]), 1e-4)

@but(*BY_PLACE)
@pytest.mark.parametrize('order', list(itertools.permutations(range(3)))[1:])
def test_channels_and_kernels_permuted_together(name, order):
    torch.manual_seed(0)
    o = list(order)
    a = DynamicConv2d(3, 5, 3, 'RGB', STATS, name)
    b = DynamicConv2d(3, 5, 3, ''.join('RGB'[i] for i in o), ChannelStats(STATS.mean[o], STATS.std[o], STATS.cov[np.ix_(o,o)]), name)
    with torch.no_grad():
        slots = [i+k for k in range(0, a.generator.slots, 3) for i in o]        # one or two a channel
        b.weight.copy_(a.weight[:,slots]); b.bias.copy_(a.bias)
        if hasattr(a.generator, 'correction'):
            nn.init.normal_(a.generator.correction.net[2].weight)
            b.generator.correction.load_state_dict(a.generator.correction.state_dict())
            b.generator.correction.embed.copy_(a.generator.correction.embed[o])
    x,mask = torch.randn(7,3,8,8),masks_of(channel_sets())
    assert_close(a(x, mask=mask), b(x[:,o], mask=mask[:,o]))

@pytest.mark.parametrize('name', BY_PLACE)
def test_counting_designs_cannot_tell_channels_apart(name):
    dyn,x = trained(DynamicConv2d(3, 5, 3, 'RGB', STATS, name)),torch.randn(2,1,8,8)
    assert_same(dyn(x, channels='R'), dyn(x, channels='B'))

@each
@every
def test_batch_size_has_no_effect(name, attention):
    torch.manual_seed(0)
    dyn,x,mask = trained(DynamicConv2d(3, 5, 3, 'RGB', STATS, name, attention)),torch.randn(14,3,8,8),masks_of(channel_sets()*2)
    assert_close(torch.cat([dyn(x[i:i+1], mask=mask[i:i+1]) for i in range(14)]), dyn(x, mask=mask))

@but(*BY_PLACE, *FORGETS_COLOUR)
def test_kernels_know_which_channel(name):
    torch.manual_seed(0)
    dyn,x = trained(DynamicConv2d(3, 8, 3, 'RGB', STATS, name), .05),torch.randn(1,2,9,9)
    for sets in (('R','G','B'), ('RG','RB','GB')):
        for a,b in itertools.combinations(sets, 2):
            off = (dyn(x[:,:len(a)], channels=a)-dyn(x[:,:len(b)], channels=b)).abs().max().item()
            assert off>1e-3, (a,b)

def test_zero_fill_without_statistics():
    dyn,x = DynamicConv2d(3, 8, 3),torch.randn(2,3,9,9)
    zeroed = torch.cat([x[:,:1], torch.zeros(2,1,9,9), x[:,2:]], 1)
    assert_close(dyn(x[:,[0,2]], channels='RB'), dyn(zeroed))

@each
@every
def test_gradients_reach_every_parameter(name, attention):
    torch.manual_seed(0)
    dyn = trained(DynamicConv2d(3, 8, 3, 'RGB', STATS, name, attention))
    dyn(torch.randn(14,3,9,9)+.5, mask=masks_of(channel_sets()*2)).square().sum().backward()
    for k,p in dyn.named_parameters(): assert p.grad is not None and p.grad.abs().sum()>0, k

@each
@every
def test_state_dict_and_deepcopy(name, attention):
    a,b = (trained(DynamicConv2d(3, 8, 3, 'RGB', s, name, attention)) for s in (STATS,None))
    b.load_state_dict(a.state_dict())
    x = torch.randn(2,2,9,9)
    for o in (b, copy.deepcopy(a)): assert_same(o(x, channels='GB'), a(x, channels='GB'))

@each
@every
def test_bf16_and_channels_last(name, attention):
    torch.manual_seed(0)
    dyn,x,m = trained(DynamicConv2d(3, 8, 3, 'RGB', STATS, name, attention), .05),torch.randn(7,3,9,9),masks_of(channel_sets())
    want = dyn(x, mask=m)
    assert_close(dyn(x.contiguous(memory_format=torch.channels_last), mask=m), want)
    half = copy.deepcopy(dyn).bfloat16()
    assert_close(half(x.bfloat16(), mask=m).float(), want, .1)
    with torch.autocast('cpu', torch.bfloat16): assert_close(dyn(x, mask=m).float(), want, .1)

@each
@every
def test_extend_keeps_what_was(name, attention):
    torch.manual_seed(0)
    dyn,x = trained(DynamicConv2d(3, 6, 3, 'RGB', STATS, name, attention, padding=1), .1),torch.randn(2,5,9,9)
    for new,like,n in (('NIR','R',4), ('T','NIR',5)):
        before = {s:dyn(x[:,dyn.rows(s)], channels=s) for s in channel_sets(dyn.channels)}
        assert dyn.extend(new, like=like) is dyn and dyn.channels[-1]==new and len(channel_sets(dyn.channels))==2**n-1
        for s,y in before.items(): assert_close(dyn(x[:,dyn.rows(s)], channels=s), y)
    mask = masks_of(channel_sets(dyn.channels), dyn.channels)
    y = dyn(x[:1].expand(31,-1,-1,-1), mask=mask)
    for i in (0,1,7,30): assert_close(y[i:i+1], dyn(x[:1,mask[i]], channels=channel_sets(dyn.channels)[i]), 1e-4)
    y.square().sum().backward()
    assert all(p.grad is not None for p in dyn.parameters())
    with pytest.raises(ValueError): dyn.extend('NIR', like='R')
    with pytest.raises(ValueError): dyn.extend('X', like='Q')

@pytest.mark.parametrize('name', ['rescale','per_count','covariance'])
def test_an_extended_layer_is_saved_and_loaded(name):
    "Into a layer that was made with four channels"
    old,new = (DynamicConv2d(len(c), 8, 3, c, generator=name, attention=True) for c in ('RGB','RGBN'))
    new.load_state_dict(old.extend('N', like='R').state_dict())
    for s in ('RGB','RGBN','BN'): assert_same(old.kernel(s), new.kernel(s))
    x = torch.randn(2,3,9,9)
    assert_same(old(x, channels='RGB'), new(x, channels='RGB'))

@st.composite
def set_in_any_order(draw, most=5):
    "Names of the channels there are, and some of them in an order of their own"
    names = draw(st.permutations('RGBNT'[:draw(st.integers(1,most))]))
    return names,draw(st.permutations(names))[:draw(st.integers(1,len(names)))]

@each
@every
@given(set_in_any_order(), st.integers(0,10**6))
def test_x_holds_a_set_in_the_order_in_which_it_is_written(name, attention, drawn, seed):
    torch.manual_seed(seed)
    names,s = drawn
    dyn = trained(DynamicConv2d(len(names), 4, 3, names, stats(len(names)), name, attention, padding=1), .1)
    x = torch.randn(2, len(names), 8, 9)
    known = sorted(s, key=names.index)                                   # the set in the layer's own order
    want = dyn(x[:,[names.index(c) for c in known]], channels=known)
    assert_close(dyn(x, mask=masks_of([s]*2, names)), want, 1e-4)         # a mask goes by the layer's order
    xs = x[:,[names.index(c) for c in s]]
    assert_close(dyn(xs, channels=s), want, 1e-4)
    assert_close(dyn.fold(s)(xs), want, 1e-4)

@pytest.mark.parametrize('order', [''.join(o) for n in (2,3) for o in itertools.permutations('RGB', n)])
def test_a_network_takes_channels_in_the_order_they_are_written(order):
    torch.manual_seed(0)
    net,x = convert(nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.ReLU()).eval(), 'BGR', STATS),torch.randn(2,3,9,9)
    xs,known = x[:,['BGR'.index(c) for c in order]],sorted(order, key='BGR'.index)
    want = net(x[:,['BGR'.index(c) for c in known]], channels=known)
    assert_close(net(xs, channels=order), want)
    assert_close(net.fold(order)(xs), want)

@each
def test_weights_know_their_channels(name):
    rgb,bgr,same = (DynamicConv2d(3, 4, 3, c, generator=name) for c in ('RGB','BGR','RGB'))
    state,before = trained(rgb).state_dict(),copy.deepcopy(bgr.state_dict())
    with pytest.raises(RuntimeError, match='for channels R, G, B; the layer has B, G, R'): bgr.load_state_dict(state)
    assert_same(bgr.weight, before['weight'])                                 # they were not taken over
    same.load_state_dict(state)
    assert_same(same.kernel('GB'), rgb.kernel('GB'))
    nameless = {k:v for k,v in state.items() if k!='_extra_state'}            # as they were saved before weights knew
    bgr.load_state_dict(nameless)
    net,other = (convert(nn.Sequential(nn.Conv2d(3,4,3), nn.ReLU()), c, generator=name) for c in ('RGB','BGR'))
    with pytest.raises(RuntimeError, match='weights of net.0'): other.load_state_dict(net.state_dict())

def test_names_in_no_order_are_refused():
    for f in (lambda o: DynamicConv2d(3, 4, 3)(torch.randn(1,2,8,8), channels=o), lambda o: DynamicConv2d(2, 4, 3, o)):
        for o in ({'G','B'}, frozenset('GB')):
            with pytest.raises(ValueError, match='has no order'): f(o)

def test_halved_and_averaged_weights_know_their_channels():
    a,b,bgr = (DynamicConv2d(3, 4, 3, c) for c in ('RGB','RGB','BGR'))
    state = a.state_dict()
    for how in (lambda v: v.half(), lambda v: v.bfloat16(), lambda v: (v+v+v)/3, lambda v: v.to(torch.uint8)
        if v.dtype==torch.int16 else v):
        changed = {k:how(v) for k,v in state.items()}
        b.load_state_dict(changed)
        assert_close(b.weight, a.weight, .01)
        with pytest.raises(RuntimeError, match='for channels R, G, B'): bgr.load_state_dict(changed)

@but(*FORGETS_COLOUR)
def test_a_new_channel_works_alone(name):
    torch.manual_seed(0)
    dyn,x = DynamicConv2d(3, 64, 3, 'RGB', STATS, name).extend('NIR', like='R'),torch.randn(2,1,9,9)
    red,new = dyn(x, channels='R').flatten(),dyn(x, channels=['NIR']).flatten()
    assert torch.corrcoef(torch.stack([red,new]))[0,1]>.9

x,yes = torch.randn(2,3,8,8),torch.ones(2,3,dtype=torch.bool)
@pytest.mark.parametrize('call,words', [
    (lambda d: d(x, channels='RX'), ["'X'",'possible: R, G, B']),
    (lambda d: d(x, channels='NIR'), ["'N', 'I'","one alone ends in it: 'NIR+'"]),
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
    for f in (lambda: DynamicConv2d(4, 4, 3), lambda: DynamicConv2d(3, 6, 3, groups=3), lambda: DynamicConv2d(3, 4, 3, stats=stats(4)),
              lambda: DynamicConv2d(3, 4, 3, generator='bnak')):
        with pytest.raises(ValueError): f()
    class Lost(nn.Conv2d):
        def forward(self, x, position): return super().forward(x+position)
    with pytest.raises(TypeError, match='Lost cannot be converted: .*position'): DynamicConv2d.from_conv(Lost(3,4,3))
    with pytest.raises(ValueError): convert(nn.Sequential(nn.Conv2d(1,4,3)))

timm = pytest.importorskip('timm')
import torchvision.models as tv
from torchvision.models.convnext import CNBlockConfig,ConvNeXt
from torchvision.models.vision_transformer import VisionTransformer
two_blocks = partial(ConvNeXt, [CNBlockConfig(96, 192, 1), CNBlockConfig(192, None, 1)])
two_layers = partial(VisionTransformer, 224, 16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768)
NETS = {'resnet18': tv.resnet18, 'convnext': two_blocks, 'efficientnet_b0': tv.efficientnet_b0, 'vit': two_layers,
        **{f'timm {n}': partial(timm.create_model, n) for n in ('resnet10t','convnext_atto','efficientnet_lite0','vit_tiny_patch16_224')}}
@pytest.mark.parametrize('name', NETS)
def test_convert_known_networks(name):
    torch.manual_seed(0)
    net,x = NETS[name]().eval(),torch.randn(2,3,224,224)
    with torch.no_grad():
        before = net(x)
        net = convert(net, stats=STATS)
        assert_same(net(x), before)
        folded = net.fold('GB')
        assert not any(isinstance(m,(DynamicConv2d,ChannelAdaptive,Generator)) for m in folded.modules())
        want = folded(x[:,1:])
        assert_close(net(x[:,1:], channels='GB'), want, 1e-4)
        mixed = net(x, torch.tensor([[True]*3,[False,True,True]]))
        assert_close(mixed, torch.stack([before[0],want[1]]), 1e-4)
    assert net.stem.given=={}

def test_a_generator_in_a_module_of_its_own_is_known(tmp_path):
    "One file is all that it takes; the command line offers its name, and no protocol grows"
    (tmp_path/'own.py').write_text('''
from mils.generators import Generator,register_generator
@register_generator(name='keep_first', version=2)
class KeepFirst(Generator):
    def forward(self, mask): return mask.float().diag_embed()
''')
    run = f'''
import sys,mils.kernels
mils.kernels.__path__.append({str(tmp_path)!r})
from mils.cli import main
from mils.config import Config
from mils.identity import declared
from mils.protocols import protocols
assert declared(Config(dynamic=True, generator='keep_first'))['generator']==2
assert 'keep_first' not in str(protocols)
sys.exit(main(['train','small_cnn:dynamic:generator=keep_frist']))
'''
    done = subprocess.run([sys.executable,'-W','ignore','-c',run], capture_output=True, text=True)
    assert done.returncode==1 and "did you mean 'keep_first'?" in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize('name', generators)
@pytest.mark.parametrize('like,r', [('R',.8), ({'R':.5,'G':.5},.8), (None,.8), ('G',-.5)])
def test_a_new_channel_is_like_one_like_some_or_like_none(name, like, r):
    "Known sets are served as before; the covariance says what was said"
    dyn,x = DynamicConv2d(3, 8, 3, 'RGB', STATS, name),torch.randn(2,3,9,9)
    before = {s:dyn(x[:,:len(s)], channels=s) for s in map(tuple, ('RGB','GB','R'))}
    assert dyn.extend('NIR', like=like, r=r).channels==('R','G','B','NIR')
    for s,y in before.items(): assert torch.allclose(dyn(x[:,:len(s)], channels=s), y, atol=1e-5)
    dyn(torch.randn(2,4,9,9)).sum().backward()
    if not hasattr(dyn.generator, 'cov'): return
    cov = dyn.generator.cov().detach()
    d = cov.diag().sqrt()
    w = {'R':[1.,0,0], 'G':[0,1.,0]}.get(like) if isinstance(like, str) else [.5,.5,0] if like else None
    if w is None: assert cov[3,:3].abs().max()<1e-6
    else:
        w = torch.tensor(w)
        assert abs((w@cov[:3,3])/((w@cov[:3,:3]@w).sqrt()*d[3])-r)<1e-4

@pytest.mark.parametrize('kwargs,say', [(dict(like='X'),'possible: R, G, B'), (dict(like='R', r=1.),'between -1 and 1'),
    (dict(like={}),'unrelated')])
def test_what_a_new_channel_cannot_be_like(kwargs, say):
    with pytest.raises(ValueError, match=say): DynamicConv2d(3, 8, 3).extend('NIR', **kwargs)
