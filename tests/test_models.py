"Every model on every kind of input"
import pytest,torch
from mils.models import *

SMALL = {'wide_resnet': dict(width=1)}
@pytest.mark.parametrize('size', [32,64,224])
@pytest.mark.parametrize('channels', ['RGB','GB','R'])
@pytest.mark.parametrize('name', list_models())
def test_forward_and_backward(name, channels, size):
    if name=='resnet34' and size==224 and channels!='RGB': size = 96
    net = create_model(name, 7, channels, size=size, **SMALL.get(name,{}))
    y = net(torch.randn(3,len(channels),size,size))
    y.square().sum().backward()
    assert y.shape==(3,7) and y.isfinite().all()
    assert all(p.grad is not None for p in net.parameters())

@pytest.mark.parametrize('name', list_models())
def test_dynamic_stem_costs_six_parameters(name):
    plain,dyn = (create_model(name, 5, dynamic=d, size=32) for d in (False,True))
    count = lambda n: sum(p.numel() for p in n.parameters())
    assert count(dyn)-count(plain)==6
    assert dyn(torch.randn(2,1,32,32), channels='B').shape==(2,5)

def test_reported_size():
    assert sum(p.numel() for p in create_model('wide_resnet', 100, width=4).parameters())==18_499_940

@pytest.mark.parametrize('call,near', [(lambda: create_model('smal_cnn',5), 'small_cnn'), (lambda: create_model('small_cnn',5,witdh=2), 'width'),
    (lambda: create_model('resnet34',5,stem='imgenet'), 'imagenet')])
def test_nearest_name(call, near):
    with pytest.raises(ValueError, match=f'did you mean .{near}'): call()
