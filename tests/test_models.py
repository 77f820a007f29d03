"Every model on every kind of input"
from pathlib import Path
import pandas as pd,pytest,torch
from ptflops import get_model_complexity_info
from tensors import assert_close,assert_same
from mils.models import create_model,list_models
from mils.profile import deployed,multiply_adds
from mils.core import typed_value

SMALL = {'wide_resnet': dict(width=1)}
count = lambda net: sum(p.numel() for p in net.parameters())

INPUTS = [(size, batch, channels) for size,batch in ((32,5),(64,3)) for channels in ('RGB','GB','R')]+[(224, 3, 'RGB')]

@pytest.mark.parametrize('size,batch,channels', INPUTS)
@pytest.mark.parametrize('name', list_models())
def test_forward_and_backward(name, size, batch, channels):
    net = create_model(name, 7, channels, size=size, **SMALL.get(name, {}))
    x = torch.randn(batch, len(channels), size, size).contiguous(memory_format=torch.channels_last)
    y = net(x)
    y.square().sum().backward()
    assert y.shape==(batch,7) and y.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert_same(net.eval()(x[:1]), net(x[:1]))

@pytest.mark.parametrize('name', list_models())
def test_learns_sixteen_pictures(name):
    torch.manual_seed(0)
    options = dict(stem='half') if name=='resnet34' else SMALL.get(name, {})
    net,x,y = create_model(name, 4, size=32, **options),torch.randn(16,3,32,32),torch.arange(16)%4
    opt,losses = torch.optim.AdamW(net.parameters(), 5e-4),[]
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
        if losses[-1]<.6*losses[0]: break
    assert losses[-1]<.6*losses[0], losses

@pytest.mark.parametrize('name', list_models())
def test_dynamic_stem_costs_little_and_serves_every_set(name):
    "Six numbers of a covariance, and for each filter a bias a channel"
    plain,dyn = (create_model(name, 5, dynamic=d, size=32, **SMALL.get(name, {})).eval() for d in (False,True))
    assert count(dyn)-count(plain)==6+3*dyn.stem.out_channels
    x = torch.randn(2,3,32,32)
    for s,rows in (('RGB',[0,1,2]),('GB',[1,2]),('B',[2])):
        assert_close(dyn(x[:,rows], channels=s), dyn.fold(s)(x[:,rows]), 1e-4)

@pytest.mark.parametrize('parts', ['conv','conv+point','double','conv+point+double'])
@pytest.mark.parametrize('name', [name for name in list_models() if name.startswith('strict')])
def test_fused_is_the_same_network(name, parts):
    torch.manual_seed(0)
    net,x = create_model(name, 7, size=32, width=.25, parts=parts),torch.randn(32,3,32,32)
    for _ in range(20): net(x+torch.randn_like(x))
    plain = net.eval().fuse()
    a,b = net(x),plain(x)
    assert_close(a, b, 1e-4)
    assert_same(a.argmax(1), b.argmax(1))
    assert sum(isinstance(m, (torch.nn.Conv2d,torch.nn.Linear)) for m in plain.modules())==int(name[6:])

recorded = pd.read_csv(Path(__file__).resolve().parent.parent/'results'/'task-b'/'costs.csv')

@pytest.mark.parametrize('network', recorded.network)
def test_recorded_size_and_arithmetic(network):
    name,*options = network.split()
    options = {k:typed_value(v) for k,v in (o.split('=') for o in options)}
    r = recorded.set_index('network').loc[network]
    shape = (3,int(r['size']),int(r['size']))
    net = create_model(name, int(r.classes), size=shape[1], **options)
    assert count(net)==r.parameters and multiply_adds(net, (1,*shape))==r.multiply_adds
    theirs,_ = get_model_complexity_info(deployed(net), shape, as_strings=False, print_per_layer_stat=False, backend='aten')
    assert theirs==pytest.approx(r.multiply_adds, rel=.01)

def test_reported_size():
    assert count(create_model('wide_resnet', 100, width=4))==18_499_940

@pytest.mark.parametrize('name,options,near', [
    ('smal_cnn', {}, 'small_cnn'),
    ('small_cnn', dict(witdh=2), 'width'),
    ('resnet34', dict(stem='imgenet'), 'imagenet'),
    ('strict5', {}, 'strict'),
    ('mini_swim', {}, 'mini_swin')])
def test_nearest_name(name, options, near):
    with pytest.raises(ValueError, match=f'did you mean .{near}'): create_model(name, 5, **options)
