"The layer in other people's networks and modes: it does what it says, or says why not"
import copy
from functools import partial
import numpy as np,pytest,torch
import torch.distributed as dist
from torch import nn
from tensors import assert_close,assert_same
from mils.core import channel_sets
from mils.imageset import ChannelStats
from mils.layer import DynamicConv2d
from mils.channels import convert

CORR = np.array([[1,.93,.84],[.93,1,.94],[.84,.94,1]])
STATS = ChannelStats(np.zeros(3), np.ones(3), CORR)
MASK = torch.tensor([[c in s for c in 'RGB'] for s in channel_sets()])
def pictures(size=12):
    torch.manual_seed(1)
    return torch.randn(7,3,size,size)
def dirty(x, value=torch.nan): return torch.where(MASK[:,:,None,None], x, value)
def small_net():
    return nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,2)).eval()
def clean(*ts): return all(torch.isfinite(t).all() for t in ts)

# Absent means not read, in every mode
@pytest.mark.parametrize('value', [torch.nan, torch.inf, torch.finfo(torch.float32).min])
def test_gradients_do_not_read_absent_channels(value):
    torch.manual_seed(0)
    a,b = (DynamicConv2d(3,4,3,'RGB',STATS) for _ in range(2))
    b.load_state_dict(a.state_dict())
    x = pictures()
    a(dirty(x,0.), mask=MASK).square().sum().backward()
    b(dirty(x,value), mask=MASK).square().sum().backward()
    for p,q in zip(a.parameters(), b.parameters()): assert_same(q.grad, p.grad)

@pytest.mark.filterwarnings('ignore')
def test_a_trace_does_not_read_absent_channels():
    layer,x = DynamicConv2d(3,4,3,'RGB',STATS).eval(),pictures()
    class WithMask(nn.Module):
        def __init__(self): super().__init__(); self.layer = layer
        def forward(self, x, mask): return self.layer(x, mask=mask)
    with torch.no_grad():
        traced = torch.jit.trace(WithMask(), (x, MASK), check_trace=False)
        assert_close(traced(dirty(x), MASK), layer(x, mask=MASK))
        other = pictures(11)[:3].contiguous(memory_format=torch.channels_last)
        assert_close(traced(dirty(torch.cat([other,other,other[:1]]))[:3], MASK[:3]), layer(other, mask=MASK[:3]))

def test_vmap_and_meta_tensors():
    layer,x = DynamicConv2d(3,4,3,'RGB',STATS).eval(),pictures()
    with torch.no_grad():
        y = torch.vmap(lambda x,m: layer(x[None], mask=m[None])[0])(dirty(x), MASK)
        assert_close(y, layer(x, mask=MASK))
    meta = copy.deepcopy(layer).to('meta')
    assert meta(x.to('meta'), mask=MASK.to('meta')).shape==y.shape

def test_an_exported_graph_takes_pictures_of_any_size():
    layer = DynamicConv2d(3,4,3,'RGB',STATS).eval()
    class WithMask(nn.Module):
        def __init__(self): super().__init__(); self.layer = layer
        def forward(self, x, mask): return self.layer(x, mask=mask)
    x = pictures(12).contiguous(memory_format=torch.channels_last)
    b,h,w = (torch.export.Dim(k, min=5 if k!='b' else 1, max=99) for k in 'bhw')
    graph = torch.export.export(WithMask(), (x, MASK), dynamic_shapes=dict(x={0:b,2:h,3:w}, mask={0:b})).module()
    for size in (9,12,47,66):
        x = pictures(size)
        assert_close(graph(dirty(x), MASK), layer(x, mask=MASK))

# Distributed training
def test_ddp_takes_a_full_batch(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(convert(small_net().train(), stats=STATS))
        x = pictures()
        for call in (dict(), dict(channels='RGB'), dict(mask=MASK), dict(mask=MASK|True), dict()): net(x, **call).sum().backward()
        for s in ('GB','R','BG'): net(x[:,:len(s)], channels=s).sum().backward()
        net(x).sum().backward()
        assert all(p.grad is not None for p in net.parameters())
    finally: dist.destroy_process_group()

def _rank(rank, store, out):
    "One of two processes; both have other sets in each step"
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(convert(small_net().train(), stats=STATS, attention=True))
    opt,x = torch.optim.SGD(net.parameters(), .01),pictures()
    steps = [(dict(),dict(mask=MASK)), (dict(channels='RGB'),dict(channels='BG')),
             (dict(channels='R'),dict()), (dict(mask=MASK|True),dict(channels='GB'))]
    for step in [*steps, *steps]:
        call = step[rank]
        opt.zero_grad()
        n = len(call.get('channels', 'RGB'))
        net(x[:,:n], **call).square().sum().backward()
        opt.step()
    torch.save([p.detach() for p in net.parameters()], f'{out}{rank}.pt')
    dist.destroy_process_group()

def test_ddp_with_sets_that_differ_by_rank(tmp_path):
    torch.multiprocessing.spawn(_rank, (tmp_path/'store', tmp_path/'rank'), nprocs=2)
    a,b = (torch.load(tmp_path/f'rank{r}.pt') for r in range(2))
    for p,q in zip(a, b): assert_same(p, q)
    assert clean(*a)

# Statistics
def test_bad_statistics_are_named():
    def stats(cov, std=None): return ChannelStats(np.zeros(3), np.ones(3) if std is None else np.array(std), np.array(cov, dtype=float))
    nan = CORR.copy(); nan[1,1] = np.nan
    with pytest.raises(ValueError, match='channel G are not finite'): convert(small_net(), stats=stats(nan))
    wild = CORR.copy(); wild[0,1] = wild[1,0] = 5
    with pytest.raises(ValueError, match='negative eigenvalue'): convert(small_net(), stats=stats(wild))
    with pytest.raises(ValueError, match='of 2 channels'): convert(small_net(), stats=ChannelStats(np.zeros(2), np.ones(2), np.eye(2)))
    flat = CORR.copy(); flat[2],flat[:,2] = 0,0
    net = convert(small_net(), stats=stats(flat, [1,1,0]))
    x = pictures()
    assert_close(net.stem(x[:,:2], channels='RG'), net.stem(dirty(x,0.)[1:2].expand(7,-1,-1,-1)*0+torch.cat([x[:,:2],0*x[:,:1]],1)))
    assert clean(net.stem(x[:,2:], channels='B'))

# Surgery keeps what an author did to the convolution
@pytest.mark.parametrize('generator', ['covariance','per_count'])
def test_frozen_layers_stay_frozen(generator):
    net = small_net().requires_grad_(False)
    net = convert(net, stats=STATS, generator=generator, attention=True)
    for change in (lambda n: n, lambda n: n.extend('N', like='R'), lambda n: n.fold('GB')):
        assert not any(p.requires_grad for p in change(net).parameters())

def test_hooks_ties_and_optimisers_are_kept():
    net,seen = small_net(),[]
    handle = net[0].register_forward_hook(lambda m,a,y: seen.append(m))
    net.twin = nn.Conv2d(3,4,3)
    net.twin.weight = net[0].weight
    weight = net[0].weight
    opt = torch.optim.SGD(net.parameters(), .1)
    new = DynamicConv2d.from_conv(net[0], stats=STATS)
    net[0] = new
    assert new.weight is weight is net.twin.weight
    x = pictures()
    new(x); new.fold('GB')(x[:,:2])
    assert len(seen)==2
    handle.remove()
    new(x)
    assert len(seen)==2
    new(x).sum().backward()
    opt.step()

@pytest.mark.parametrize('make', [partial(torch.optim.SGD, lr=.1, momentum=.9), torch.optim.Adam, partial(torch.optim.AdamW, fused=True)])
@pytest.mark.parametrize('generator', ['covariance','per_count','bank','adapter','corrected'])
def test_an_optimiser_made_before_extend_trains_the_new_stem(make, generator):
    torch.manual_seed(0)
    layer = DynamicConv2d(3,4,3,'RGB',STATS,generator,attention=True)
    opt,kept = make(layer.parameters()),[*layer.parameters()]
    for names,n in (('RGB',3),('RGBN',4)):
        if n==4: layer.extend('N', like='R')
        assert all(a is b for a,b in zip(layer.parameters(), kept))
        before = layer.weight.detach().clone()
        for _ in range(2):
            opt.zero_grad()
            for y in (layer(torch.randn(3,n,9,9), mask=torch.ones(3,n,dtype=torch.bool)), layer(torch.randn(3,1,9,9), channels='R')):
                y.square().sum().backward()
            opt.step()
        assert all(p.grad is not None and p.grad.shape==p.shape for p in kept)
        assert (layer.weight!=before)[:,-1].all()

def test_a_module_that_shared_the_weight_of_an_extended_stem_is_named():
    net = small_net()
    net.twin = nn.Conv2d(3,4,3)
    net.twin.weight = net[0].weight
    class Tied(nn.Module):
        def __init__(self): super().__init__(); self.net = net
        def forward(self, x): return self.net[:6](x)
    net = convert(Tied(), stats=STATS)
    with pytest.warns(UserWarning, match='net.twin shared its weight with the stem'): net.extend('N', like='R')
    assert net.net.net.twin(pictures()).shape==(7,4,10,10)

# A convolution of another class
timm = pytest.importorskip('timm')
from timm.layers import Conv2dSame,ScaledStdConv2d,StdConv2d,StdConv2dSame
OTHERS = {'same':partial(Conv2dSame, stride=2), 'std':partial(StdConv2d, padding=1), 'std same':partial(StdConv2dSame, stride=2),
          'scaled':partial(ScaledStdConv2d, padding=1)}
@pytest.mark.parametrize('generator', ['covariance','rescale','per_count'])
@pytest.mark.parametrize('kind', OTHERS)
def test_a_convolution_of_another_class(kind, generator):
    torch.manual_seed(0)
    conv = OTHERS[kind](3,4,kernel_size=3)
    if generator=='per_count' and kind!='same': return              # standardises over all slots: refused below
    x,want = pictures(13),conv(pictures(13))
    dyn = DynamicConv2d.from_conv(conv, stats=STATS, generator=generator)
    assert_same(dyn(x), want) if generator!='per_count' else assert_close(dyn(x), want, 1e-5)
    y = dyn(dirty(x), mask=MASK)
    for i,s in enumerate(channel_sets()):
        xs = x[i:i+1,dyn.rows(s)]
        assert_close(y[i:i+1], dyn(xs, channels=s), 1e-5)
        assert_close(y[i:i+1], dyn.fold(s)(xs), 1e-5)
        if kind=='same': assert type(dyn.fold(s)) is type(conv)
    assert_close(dyn.fold('BG')(x[:,[2,1]]), dyn.fold('GB')(x[:,[1,2]]), 1e-5)
    copied = copy.deepcopy(dyn)
    copied.load_state_dict(dyn.state_dict())
    assert copied.own.weight is copied.weight

# The wrapper and the network
class Inside(nn.Module):
    "Normalises with three means before its stem, and takes targets"
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.tensor([.1,.2,.3])[:,None,None])
        self.conv,self.config = nn.Conv2d(3,4,3),'its own'
    def forward(self, x, targets=None, scale=1.):
        if x.shape[1]!=3: raise ValueError('expected three channels')
        y = self.conv(x-self.mean).mean((2,3))*scale
        return y if targets is None else (y-targets).square().mean()
    def features(self, x): return self.conv(x-self.mean)

def test_arguments_and_attributes_are_the_networks():
    net,x = convert(Inside(), stats=STATS),pictures()
    plain,targets = copy.deepcopy(net.net),torch.randn(7,4)
    assert net.config=='its own' and net.between
    assert_same(net(x, targets), plain(x, targets))
    assert_same(net(x, scale=2.), plain(x, scale=2.))
    assert_same(net(x=x), plain(x))
    assert net(x, mask=MASK, targets=targets).ndim==0
    with net.using(channels='RGB'): assert net.features(x).shape==(7,4,10,10)
    with pytest.raises(AttributeError, match='nothing'): net.nothing

def test_code_before_the_stem_may_count_channels():
    net,x = convert(Inside(), stats=STATS),pictures()
    y = net(dirty(x), MASK)
    assert clean(y)
    for i,s in enumerate(channel_sets()):
        for o in (s, s[::-1]):
            xs = x[i:i+1,['RGB'.index(c) for c in o]]
            assert_close(net(xs, channels=o), y[i:i+1])
            assert_close(net.fold(o)(xs), y[i:i+1])

class Two(nn.Module):
    "Two convolutions and a pooled picture"
    def __init__(self, pooled):
        super().__init__()
        self.a,self.b,self.pool,self.pooled = nn.Conv2d(3,4,3,padding=1),nn.Conv2d(3,4,1),nn.AvgPool2d(1),pooled
    def forward(self, x): return (self.a(x)+self.b(x)).mean((2,3))+(self.pool(x).mean((1,2,3))[:,None] if self.pooled else 0)

def test_all_readers_of_the_picture_are_found():
    net,x = convert(Two(False), stats=STATS),pictures()
    assert len(net.stems)==2 and clean(net(dirty(x), MASK))
    assert_close(net(x[:1,1:], channels='GB'), net(x[:1], MASK[3:4]))
    assert_close(net.fold('BG')(x[:,[2,1]]), net(x[:,1:], channels='GB'))
    with pytest.raises(ValueError, match='Two reads the picture besides its stem a: .* by pool'): convert(Two(True))

def test_a_set_that_is_not_taken_up_is_an_error():
    net = convert(small_net())
    net.net[0] = nn.Conv2d(3,4,3)
    net.net.append(DynamicConv2d(3,4,3))
    net.net.forward = lambda x: net.net[0](x)
    with pytest.raises(RuntimeError, match='did not reach'): net(pictures(), MASK)

def test_a_module_with_two_names_is_replaced_under_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = small_net()
            self.first = self.base[0]
        def forward(self, x): return self.first(x)
    net = convert(Twice(), stats=STATS)
    assert clean(net(dirty(pictures()), MASK)) and type(net.fold('GB').first) is nn.Conv2d

def test_threads_do_not_meet():
    from concurrent.futures import ThreadPoolExecutor
    net,x = convert(Inside(), stats=STATS).eval(),pictures()
    with torch.no_grad():
        def one(k): return torch.equal(net(x[k:k+1], MASK[k:k+1]), alone[k])
        alone = [net(x[k:k+1], MASK[k:k+1]) for k in range(7)]
        with ThreadPoolExecutor(4) as pool: assert all(pool.map(one, [k%7 for k in range(400)]))

@pytest.mark.parametrize('reentrant', [False,True])
def test_a_checkpointed_stem_is_refused(reentrant):
    from torch.utils.checkpoint import checkpoint
    class Saving(nn.Module):
        def __init__(self): super().__init__(); self.net = small_net()
        def forward(self, x): return checkpoint(self.net, x, use_reentrant=reentrant)
    net,x = convert(Saving(), stats=STATS),pictures().requires_grad_()
    net(x).sum().backward()
    with pytest.raises(RuntimeError, match='leave it out of the checkpoint'): net(x, MASK).sum().backward()

def test_one_compiled_graph_takes_every_mask():
    net,x = convert(small_net(), stats=STATS),pictures()
    f = torch.compile(net, fullgraph=True, backend='eager')
    with torch.no_grad():
        for m in (MASK, MASK.flip(0)): assert_close(f(x, m), net(x, m))
        assert_close(f(x[:,1:], channels='GB'), net(x[:,1:], channels='GB'))

@pytest.mark.parametrize('name', ['mobileone_s0','repvgg_a0','fastvit_t8','tf_efficientnet_b0','resnetv2_50x1_bit','dm_nfnet_f0'])
def test_networks_of_timm(name):
    torch.manual_seed(0)
    plain,x = timm.create_model(name, num_classes=5).eval(),torch.randn(7,3,64,64)
    with torch.no_grad():
        before = plain(x)
        net = convert(plain, stats=STATS)
        assert_close(net(x), before, 1e-5)
        y = net(dirty(x), MASK)
        assert clean(y)
        assert_close(net(x[3:4,1:], channels='GB'), y[3:4], 1e-3)
        assert_close(net.fold('BG')(x[3:4,[2,1]]), y[3:4], 1e-3)

# A network is tried before it is believed
class Odd(nn.Module):
    "Takes no picture of a usual size, and what `extra` says besides"
    def __init__(self, leak=False): super().__init__(); self.conv,self.leak = nn.Conv2d(3,4,3),leak
    def forward(self, x, ids):
        if x.shape[-1]!=20 or ids is None: raise ValueError('pictures of 20 px and their ids')
        y = self.conv(x).mean((2,3))
        return y+(x.mean((1,2,3))[:,None] if self.leak else 0)

def test_a_network_that_takes_no_usual_picture_is_tried_with_an_example_or_at_its_first_call():
    x,ids = pictures(20),torch.arange(7)
    with pytest.raises(ValueError, match='Odd reads the picture besides its stem conv: .* by its forward'):
        convert(Odd(True), example=(x[:1],ids[:1]))
    assert convert(Odd(), stats=STATS, example=(x[:1],ids[:1])).between is False
    for leak in (False,True):
        with pytest.warns(UserWarning, match=r'Odd takes no picture of 299 x 299 \(.*is tried when it is first called'):
            net = convert(Odd(leak), stats=STATS)
        assert_same(net(x, ids), net.net(x, ids))
        with pytest.raises(ValueError, match='was not tried'): net.fold('GB')
        if leak:
            with pytest.raises(ValueError, match='besides its stem'): net(x, MASK, ids)
            with pytest.raises(ValueError, match='besides its stem'): net(x[:,1:], ids, channels='GB')
        else:
            assert clean(net(dirty(x), MASK, ids))
            assert_close(net.fold('BG')(x[:,[2,1]], ids), net(x[:,1:], ids, channels='GB'))

def test_a_refused_network_is_as_it_was():
    net = Two(True)
    a,b,state = net.a,net.b,copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError): convert(net)
    assert net.a is a and net.b is b and [*net.state_dict()]==[*state]

def test_a_trial_leaves_no_trace():
    net = small_net().train()
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    net = convert(net, stats=STATS)
    x = pictures()
    rng = torch.get_rng_state()
    assert net.try_with(x)=={}
    assert torch.equal(torch.get_rng_state(), rng) and net.training and not net.net[1].training
    assert all(torch.equal(v, net.net.state_dict()[k]) for k,v in before.items())

def test_a_stem_that_is_wrapped_later_is_tried_again():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    class Adapter(nn.Module):
        "A low-rank way around a convolution, as adapters have it"
        def __init__(self, base): super().__init__(); self.base_layer,self.lora_a,self.lora_b = base,nn.Conv2d(3,2,3),nn.Conv2d(2,4,1)
        def forward(self, x): return self.base_layer(x)+self.lora_b(self.lora_a(x))
    net,x = convert(small_net(), stats=STATS),pictures()
    want = net(dirty(x), MASK)
    net.net[0] = checkpoint_wrapper(net.net[0])
    assert_close(net(dirty(x), MASK), want)
    net.net[0] = Adapter(net.net[0])
    with pytest.raises(ValueError, match='besides its stem 0: .* by 0.lora_a'): net(dirty(x), MASK)

def test_a_class_number_tells_of_a_second_reader_too():
    class Decides(Two):
        def forward(self, x): return super().forward(x*100).argmax(1)
    with pytest.raises(ValueError, match='besides its stem'): convert(Decides(True))

# Names of the network's own
class Masked(nn.Module):
    "Has a mask of its own"
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(3,4,3)
    def forward(self, x, targets=None, mask=None):
        y = self.conv(x).mean((2,3))
        if mask is not None: y = y*mask
        return y if targets is None else y-targets

def test_a_mask_of_the_networks_own_is_left_to_it():
    net,x = convert(Masked(), stats=STATS),pictures()
    own,targets = torch.rand(7,4),torch.randn(7,4)
    assert_same(net(x, mask=own), net.net(x, mask=own))
    assert_same(net(x, targets, mask=own), net.net(x, targets, mask=own))
    assert_close(net(dirty(x), MASK, targets, mask=own), net(dirty(x), mask=MASK)*own-targets)

def test_a_set_belongs_to_its_own_network():
    teacher,net = (convert(small_net(), stats=STATS) for _ in range(2))
    x = pictures()
    want = teacher(x)
    with net.using(mask=MASK):
        assert_same(teacher(x), want)                               # another network is not told
        assert_same(net(dirty(x)), net(dirty(x), MASK))
    with pytest.raises(ValueError, match='not both'): net(x, MASK, channels='RGB')

# What cannot be converted is said in true words
def test_other_convolutions_are_refused_in_true_words():
    for conv,word in ((nn.Conv3d(3,4,3),'Conv3d'), (nn.Conv1d(3,4,3),'Conv1d')):
        with pytest.raises(ValueError, match=f'first convolution of Sequential, 0, is a {word}; only an nn.Conv2d'):
            convert(nn.Sequential(conv))
    with pytest.raises(TypeError, match='computed from others'):
        convert(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3,4,3))))

@pytest.mark.parametrize('kind', ['std','std same','scaled'])
def test_a_standardised_convolution_has_no_other_shape(kind):
    with pytest.raises(TypeError, match='not linear in its weight'):
        DynamicConv2d.from_conv(OTHERS[kind](3,4,kernel_size=3), generator='per_count')

def test_parameters_of_another_class_are_its_own():
    conv = ScaledStdConv2d(3,4,3)
    dyn = DynamicConv2d.from_conv(conv)
    assert {*map(id, conv.parameters())}<={*map(id, dyn.parameters())} and dyn.own.gain is conv.gain

class Standard(Inside):
    "A standardised stem behind three means"
    def __init__(self): super().__init__(); self.conv = StdConv2d(3,4,3)

@pytest.mark.parametrize('kind,generator', [(Inside,'covariance'), (Inside,'guessed'), (Standard,'covariance')])
def test_a_picture_that_is_changed_before_the_stem_is_folded_too(kind, generator):
    net,x = convert(kind(), stats=STATS, generator=generator),pictures()
    if net.stem.told is not None: nn.init.normal_(net.stem.told)
    for s in ('GB','BG','R'):
        xs = x[:,['RGB'.index(c) for c in s]]
        assert_close(net.fold(s)(xs), net(xs, channels=s))

def test_a_stem_that_cannot_be_folded_says_why():
    net = convert(Inside(), stats=STATS, attention=True)
    with pytest.raises(ValueError, match="changes the picture before its stem conv.*channels='GB'"): net.fold('GB')

# Half precision: rounding is no change of the picture, and a change of the picture is no rounding
class Deep(nn.Module):
    "Moves channels by their place, a little or not at all, before twenty layers"
    def __init__(self, off):
        super().__init__()
        self.conv,self.off = nn.Conv2d(3,8,3),off
        self.rest = nn.Sequential(*(nn.Sequential(nn.Conv2d(8,8,1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(20)))
    def forward(self, x): return self.rest(self.conv(x-self.off*torch.arange(x.shape[1]).to(x)[:,None,None])).mean((2,3))

@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16,torch.float32])
def test_rounding_is_not_taken_for_a_change_before_the_stem(dtype):
    from torchvision.models import mobilenet_v3_small,resnet18
    for make in (resnet18, mobilenet_v3_small, partial(timm.create_model, 'resnet10t')):
        torch.manual_seed(0)
        net = convert(make(num_classes=5).eval().to(dtype), stats=STATS)
        assert net.between is False
        fold = net.fold('BG')
        assert type(fold) is type(net.net) and type(fold.get_submodule(net.path)) is nn.Conv2d
    for off,between in ((0.,False),(.05,True),(.3,True)):
        assert convert(Deep(off).eval().to(dtype), stats=STATS).between is between

# What looks like a picture, and what is left of the stem
def test_only_what_held_all_channels_is_taken_for_a_picture():
    class Loss(nn.Module):
        "A segmenter that normalises inside and computes its own loss"
        def __init__(self): super().__init__(); self.conv,self.mean = nn.Conv2d(3,1,1),nn.Buffer(torch.tensor([.1,.2,.3])[:,None,None])
        def forward(self, pixels, masks=None):
            y = self.conv(pixels-self.mean)
            return y if masks is None else (y-masks).square().mean()
    net,x = convert(Loss(), stats=STATS),pictures()
    masks = (x[:,:1]>0).float()
    want = (net(x[:,2:], channels='B')-masks).square().mean()
    assert_close(net(x[:,2:], masks, channels='B'), want)
    assert_close(net(pixels=x[:,2:], masks=masks, channels='B'), want)
    assert_close(net.fold('B')(x[:,2:], masks=masks), want)

def test_a_stem_that_was_merged_away_is_an_error():
    from timm.utils import reparameterize_model
    net = convert(timm.create_model('mobileone_s0', num_classes=5).eval(), stats=STATS)
    net.net = reparameterize_model(net.net)
    with pytest.raises(RuntimeError, match='was replaced by one that knows nothing'): net(torch.randn(7,3,64,64), MASK)

def test_hooks_of_a_fold_are_called_as_those_of_the_stem():
    net,seen = convert(small_net(), stats=STATS),[]
    net.stem.register_forward_hook(lambda m, args, kwargs, y: seen.append(kwargs), with_kwargs=True)
    net.fold('GB')(pictures()[:,1:])
    assert seen==[{}]

@pytest.mark.parametrize('kind', OTHERS)
def test_parameters_of_another_class_keep_their_names(kind):
    conv = OTHERS[kind](3,4,kernel_size=3)
    before,x = copy.deepcopy(conv.state_dict()),pictures()
    dyn = DynamicConv2d.from_conv(conv, stats=STATS)
    assert {k for k in dyn.state_dict() if 'generator' not in k}=={*before,'_extra_state','told'}
    assert {k for k,_ in dyn.named_parameters() if 'generator' not in k}=={*before,'told'}
    other = DynamicConv2d.from_conv(OTHERS[kind](3,4,kernel_size=3), stats=STATS)
    other.load_state_dict(before, strict=False)                                              # a checkpoint of the plain network
    for o in (other, copy.deepcopy(other)):
        assert_same(o(x), dyn(x))
        assert_close(o.fold('BG')(x[:,[2,1]]), dyn(x[:,1:], channels='GB'))

class Rectified(nn.Conv2d):
    def forward(self, x): return super().forward(x).relu()
class Twice(nn.Conv2d):
    def forward(self, x): return 2*super().forward(x)
class Deaf(nn.Conv2d):
    def forward(self, x): return nn.functional.conv2d(x, self.weight, None, self.stride, self.padding)

@pytest.mark.parametrize('kind', [nn.Conv2d,Rectified,Twice,Deaf])
def test_a_fold_tells_what_the_layer_tells(kind):
    "Also where a class does more with its bias than to add it"
    torch.manual_seed(0)
    layer = DynamicConv2d.from_conv(kind(3, 4, 3, padding=1, bias=False), 'RGB', STATS)
    nn.init.normal_(layer.told)
    x = pictures()
    for s in channel_sets(): assert_close(layer.fold(s)(x[:,layer.rows(s)]), layer(x[:,layer.rows(s)], channels=s))

def test_what_a_fold_was_told_is_trained_where_the_layer_is():
    layer = DynamicConv2d(3, 4, 3, 'RGB', STATS)
    nn.init.normal_(layer.told)
    assert layer.fold('GB').bias.requires_grad
    layer.requires_grad_(False)
    assert not layer.fold('GB').bias.requires_grad

def test_a_state_of_other_layers_leaves_what_was_told():
    net = convert(small_net(), stats=STATS)
    nn.init.normal_(net.stem.told)
    told = net.stem.told.detach().clone()
    head = {k:v for k,v in net.state_dict().items() if k.startswith('net.5')}
    net.load_state_dict(head, strict=False)
    assert_same(net.stem.told, told)

def test_a_state_from_before_fills_a_network_without_memory():
    before = convert(small_net(), stats=STATS, generator='covariance').state_dict()
    with torch.device('meta'): net = convert(small_net(), stats=STATS)
    net.load_state_dict(before, assign=True)
    assert not any(p.is_meta for p in net.parameters()) and not net.stem.told.any()

def test_a_state_of_filters_that_were_told_nothing_is_read():
    "A network of the regression is one whose biases are zero"
    before,x = convert(small_net(), stats=STATS, generator='covariance'),pictures()
    now = convert(small_net(), stats=STATS)
    torch.nn.init.normal_(now.stem.told)
    now.load_state_dict(before.state_dict())
    assert_same(now(x, MASK), before(x, MASK))

# Networks that normalise, count and lose inside
def sets_agree(net, y, x, sets=('GB','BG','R'), of=lambda o: o):
    "Each way to give a set gives what the mask gives"
    for s in sets:
        xs = x[:1,['RGB'.index(c) for c in s]]
        want = of(net(x[:1], mask=net.stem.one_mask(s)))
        assert_close(of(net(xs, channels=s)), want, 1e-3)
        assert_close(of(net.fold(s)(xs)), want, 1e-3)

def test_inception_that_transforms_its_input():
    from torchvision.models import inception_v3
    torch.manual_seed(0)
    net = convert(inception_v3(transform_input=True, init_weights=False, num_classes=5).eval(), stats=STATS)
    x = torch.randn(7,3,96,96)
    with torch.no_grad():
        y = net(dirty(x), MASK)
        assert clean(y)
        sets_agree(net, y, x)

def test_a_detector_takes_lists_targets_and_sets():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
    torch.manual_seed(0)
    plain = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96).eval()
    x = [torch.rand(3,64,64), torch.rand(3,60,72)]
    net = convert(plain, stats=STATS, example=(x,))
    gb = torch.tensor([[False,True,True]]*2)
    hidden = [torch.where(m[:,None,None], o, torch.nan) for o,m in zip(x, gb)]
    bg = [o[[2,1]] for o in x]
    with torch.no_grad():
        for a,b,c in zip(net(hidden, gb), net(bg, channels='BG'), net.fold('BG')(bg)):
            assert_close(b['scores'], a['scores'], 1e-3)
            assert_close(c['scores'], a['scores'], 1e-3)
    targets = [dict(boxes=torch.tensor([[1.,1,20,20]]), labels=torch.tensor([1]))]*2
    net.train()
    for losses in (net(hidden, gb, targets), net(bg, targets, channels='BG')): assert clean(*losses.values())

def test_hugging_faces_names_and_checkpoints(tmp_path):
    hf = pytest.importorskip('transformers')
    cfg = hf.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, num_labels=5)
    net,x = convert(hf.ViTForImageClassification(cfg).eval(), stats=STATS),pictures(64)
    with torch.no_grad():
        y = net(pixel_values=dirty(x), mask=MASK, labels=torch.zeros(7, dtype=torch.long))
        assert clean(y.loss, y.logits) and net.config is cfg
        sets_agree(net, y, x, of=lambda o: o.logits)
        net.save_pretrained(tmp_path)
        assert_close(type(net.net).from_pretrained(tmp_path).eval()(x).logits, net(x).logits)

def test_timm_knows_the_means_of_a_converted_network():
    from timm.data import resolve_model_data_config
    plain = timm.create_model('vit_tiny_patch16_224', img_size=64)
    before = resolve_model_data_config(plain)
    assert resolve_model_data_config(convert(plain, stats=STATS))==before and before['mean']==(.5,.5,.5)

def test_gradients_of_each_picture():
    net,x = convert(small_net(), stats=STATS),pictures()
    params,buffers = dict(net.named_parameters()),dict(net.named_buffers())
    def loss(params, x, mask): return torch.func.functional_call(net, (params,buffers), (x[None],mask[None])).sum()
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None,0,0))(params, dirty(x), MASK)
    for i in range(7):
        net.zero_grad()
        net(x[i:i+1], MASK[i:i+1]).sum().backward()
        for k,p in net.named_parameters(): assert_close(each[k][i], torch.zeros_like(p) if p.grad is None else p.grad, 1e-4)

# Under a compiler
def test_an_empty_mask_row_under_a_compiler():
    net,x = convert(small_net(), stats=STATS),pictures()
    none = MASK.clone()
    none[3] = False
    f = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        assert_close(f(x, MASK), net(x, MASK), 1e-4)
        with pytest.raises(RuntimeError, match='no channel'): f(x, none)
        graph = torch.export.export(net, (x, MASK)).module()
        assert_close(graph(dirty(x), MASK), net(x, MASK))
        y = graph(x, none)
        assert y[3].isnan().all() and clean(y[:3], y[4:])

def test_a_compiler_that_gives_up_half_way_still_knows_the_set():
    class Breaks(nn.Module):
        def __init__(self): super().__init__(); self.net = small_net()
        def forward(self, x):
            torch._dynamo.graph_break()
            return self.net(x)
    net,x = convert(Breaks(), stats=STATS),pictures()
    f = torch.compile(net, backend='eager')
    with torch.no_grad():
        assert_close(f(dirty(x), MASK), net(dirty(x), MASK))
        assert_close(f(x[:,1:], channels='GB'), net(x[:,1:], channels='GB'))
        assert_close(f(x), net(x))

@pytest.mark.parametrize('part', ['','0'])
def test_a_network_that_is_compiled_within_knows_the_set(part):
    net,x = convert(small_net(), stats=STATS),pictures()
    several = MASK,MASK.flip(0)
    want = [net(x, m) for m in several]
    net.net.get_submodule(part).compile(backend='eager')
    for m,y in zip(several, want): assert_close(net(torch.where(m[:,:,None,None], x, torch.nan), m), y)
    assert_close(net(x[:1,[2,1]], channels='BG'), net(x[:1], MASK[3:4]))

def test_impossible_input_under_a_compiler():
    net,x = convert(small_net(), stats=STATS),pictures()
    for call,words in ((lambda f: f(x, MASK, channels='RGB'),'not both'), (lambda f: f(x[:,:2], channels='RX'),"'X'"),
                       (lambda f: f(x, MASK[:,:2]),'expected torch.bool')):
        with pytest.raises(Exception, match=words): call(torch.compile(net, backend='eager'))

def test_fifteen_compiled_sets_are_told_to_use_the_mask():
    from torch._dynamo.testing import CompileCounter
    torch._dynamo.reset()
    net,x = convert(nn.Sequential(nn.Conv2d(4,4,3), nn.ReLU()), 'RGBN'),torch.randn(15,4,9,9)
    sets,count = channel_sets('RGBN'),CompileCounter()
    f = torch.compile(net, fullgraph=True, backend='eager')
    with torch.no_grad():
        with pytest.warns(UserWarning, match='is one graph for all'):
            for s in sets[:3]: f(x[:1,net.stem.rows(s)], channels=s)
        g = torch.compile(net, fullgraph=True, backend=count)
        masks = torch.tensor([[c in s for c in 'RGBN'] for s in sets])
        for i in range(15): assert_close(g(x[:2], masks[[i,i]]), net(x[:2], masks[[i,i]]))
    assert count.frame_count==1

# A trial finds what it would take luck to see
class Reads(nn.Module):
    "A stem, and a second way for the picture"
    def __init__(self, how): super().__init__(); self.conv,self.aux,self.how = nn.Conv2d(3,4,3),nn.Conv2d(3,4,1,groups=1),how
    def forward(self, x):
        if self.how=='exchanged': return self.conv(x.flip(0)).mean((2,3)).flip(0)
        y = self.conv(x.nan_to_num() if self.how=='no nan' else x).mean((2,3))
        if self.how=='no nan': return y+x.nan_to_num().mean((1,2,3))[:,None]
        if self.how=='sign': return y+(x>0).float().mean((1,2,3))[:,None]
        if self.how=='training' and self.training: return y+x.mean((1,2,3))[:,None]
        return y

@pytest.mark.parametrize('how', ['exchanged','no nan','sign','training'])
def test_a_second_reader_that_hides_is_found(how):
    with pytest.raises(ValueError, match='Reads reads the picture besides its stem conv'): convert(Reads(how))
    with pytest.raises(ValueError, match='besides its stem conv'): convert(Reads(how), example=pictures())

def test_a_convolution_that_reads_in_training_only_is_converted():
    class Aux(nn.Module):
        def __init__(self): super().__init__(); self.conv,self.aux = nn.Conv2d(3,4,3),nn.Conv2d(3,4,1)
        def forward(self, x): return self.conv(x).mean((2,3))+(self.aux(x).mean((2,3)) if self.training else 0)
    net = convert(Aux().eval(), stats=STATS).train()
    assert len(net.stems)==2 and clean(net(dirty(pictures()), MASK))

def test_a_network_that_draws_lots_of_its_own_is_converted():
    import random
    class Lots(Reads):
        def forward(self, x): return super().forward(x)+(random.random() if self.training else 0)
    assert clean(convert(Lots('')).train()(dirty(pictures()), MASK))

def test_a_trial_does_not_seed_gpus(monkeypatch):
    def seeded(seed): raise AssertionError('GPUs were seeded')
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeded)
    convert(small_net(), stats=STATS)

def test_a_network_is_not_converted_twice():
    with pytest.raises(ValueError, match='net.0, serves every channel set already'): convert(convert(small_net()))

def test_a_generator_that_says_something_of_absent_channels_is_not_believed(monkeypatch):
    from mils.generators import Generator,generators
    class Careless(Generator):
        def forward(self, mask): return torch.eye(self.n).expand(len(mask), -1, -1)
    monkeypatch.setitem(generators, 'careless', Careless)
    net,x = convert(small_net(), generator='careless'),pictures()
    y = net(dirty(x, 5.), MASK)
    assert_same(y, net(dirty(x, 0.), MASK))
    assert_close(y[3:4], net(x[3:4,1:], channels='GB'))

# The wrapper is the network
def test_a_new_head_is_the_networks():
    class Headed(nn.Module):
        def __init__(self): super().__init__(); self.conv,self.fc,self.classes = nn.Conv2d(3,4,3),nn.Linear(4,2),2
        def forward(self, x): return self.fc(self.conv(x).mean((2,3)))
    net,x = convert(Headed()),pictures()
    net.fc,net.classes = nn.Linear(4,9),9
    assert net(x).shape==net.fold('GB')(x[:,1:]).shape==(7,9) and net.net.fc is net.fc and net.net.classes==9
    assert not hasattr(net, 'novel') and len([*net.parameters()])==6
    net.novel = 1
    assert net.novel==1 and not hasattr(net.net, 'novel')
    net.set_submodule('fc', nn.Linear(4,3))
    assert net(x).shape==(7,3)

@pytest.mark.parametrize('mode', [False,True])
def test_the_wrapper_is_in_the_mode_of_its_network(mode):
    net = convert(Inside().train(mode))
    assert net.training==net.stem.training==net.fold('GB').training==mode

# The weight of a stem of another class is one weight, whatever becomes of it
def same_padded():
    net = small_net()
    net[0] = Conv2dSame(3,4,3)
    return convert(net, stats=STATS)
def loaded(net): net.load_state_dict({k:v*1 for k,v in net.state_dict().items()}, assign=True)
def emptied(net):
    state = copy.deepcopy(net.state_dict())
    net.to('meta').to_empty(device='cpu').load_state_dict(state)
def given(net): net.stem.weight = nn.Parameter(net.stem.weight.detach()*2)

@pytest.mark.parametrize('change', [loaded, emptied, given])
def test_a_stem_of_another_class_keeps_one_weight(change):
    net,x = same_padded(),pictures()
    change(net)
    net(x).sum().backward()
    assert net.stem.own.weight is net.stem.weight and net.stem.weight.grad is not None
    with torch.no_grad():
        net.stem.weight.mul_(3)
        assert_close(net.fold('BG')(x[:,[2,1]]), net(x[:,1:], channels='GB'))
        assert_close(net.fold('RGB')(x), net(x))

def test_a_computed_weight_is_refused_after_conversion():
    from torch.nn.utils import prune
    for change in (nn.utils.parametrizations.weight_norm, lambda m: prune.random_unstructured(m, 'weight', .5)):
        net = same_padded()
        change(net.stem)
        with pytest.raises(RuntimeError, match='weight of this Conv2dSame is computed from others now'): net(pictures())
