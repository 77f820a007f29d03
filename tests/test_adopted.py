"Layers solved anew in networks of others, and the recorded adoption of ImageNet's weights"
import mils  # noqa: F401   # before PyTorch
from copy import deepcopy
import pandas as pd,pytest,timm,torch
from timm.layers import Conv2dSame
from torch import nn
from mils.chains import chain,solve_chain
from mils.channels import convert
from mils.solved import solve_layers
from mils.imagenet import _way_sets,adoption
from mils.tables import results_dir

def batches_of(rows, size=32, n=2):
    "Pictures whose channels nearly agree, with and without the absent ones"
    g = torch.Generator().manual_seed(0)
    full = [torch.randn(8, 1, size, size, generator=g)+.1*torch.randn(8, 3, size, size, generator=g) for _ in range(n)]
    return [(o[:,rows].contiguous(),o) for o in full]

def error(net, full, pairs):
    with torch.no_grad(): return sum((net(a)-full(b)).square().sum().item() for a,b in pairs)

def head(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()

networks = {'same': lambda: head(nn.Conv2d(3, 8, 3, padding='same'), nn.ReLU()),
    'even kernel': lambda: head(nn.Conv2d(3, 8, 4, padding='same'), nn.ReLU()),
    'depthwise': lambda: head(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 5, groups=16), nn.ReLU(), nn.Conv2d(16, 8, 1)),
    'groups': lambda: head(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3, groups=4, dilation=2)),
    'TensorFlow': lambda: head(Conv2dSame(3, 16, 3, stride=2), nn.ReLU(), Conv2dSame(16, 8, 3, stride=2, groups=8))}

@pytest.mark.parametrize('solve', [solve_layers,solve_chain])
@pytest.mark.parametrize('kind', networks)
@pytest.mark.filterwarnings('ignore:Using padding')
def test_convolutions_of_any_kind_are_solved(kind, solve):
    "On pictures that say everything, weights that were spoilt come back"
    net,pairs = networks[kind](),batches_of([0,1,2])
    one = deepcopy(net)
    for p in one.parameters(): p.data += .3*torch.randn_like(p)
    before = error(one, net, pairs)
    solve(one, net, pairs, ridge=1e-7)
    assert error(one, net, pairs)<before/1000

def test_what_cannot_be_solved_is_refused_by_name():
    from torchvision.models import vit_b_16
    vit = vit_b_16(image_size=32)
    for solve in (solve_layers,solve_chain):
        with pytest.raises(ValueError, match=r'self_attention \(MultiheadAttention\): only nn.Conv2d'): solve(vit, vit, batches_of([0,1,2]))
    standardised = timm.create_model('resnetv2_50x1_bit', num_classes=5)
    with pytest.raises(ValueError, match=r'StdConv2d\)'): solve_layers(standardised, standardised, [])
    reflected = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode='reflect'))
    with pytest.raises(ValueError, match="padding_mode='reflect'"): solve_layers(reflected, reflected, batches_of([0,1,2]))

def test_linear_layers_over_tokens_are_solved():
    net = timm.create_model('vit_tiny_patch16_224', img_size=32, depth=1, num_classes=5).eval()
    one,pairs = convert(deepcopy(net), 'RGB').fold('GB'),batches_of([1,2], n=4)
    before = error(one, net, pairs)
    solve_chain(one, net, pairs)
    assert error(one, net, pairs)<before/2

def test_a_chain_gives_what_the_network_gives():
    x = torch.randn(2, 3, 64, 64)
    net = timm.create_model('tf_efficientnet_lite0').eval()
    with torch.no_grad():
        h,parts = x,chain(net, x)
        for part in parts: h = part(h)
        assert len(parts)>1 and torch.equal(h, net(x))

def test_the_recorded_adoption_is_whole():
    t = pd.read_csv(results_dir()/'imagenet'/'adopted.csv')
    ways = list(t.way.unique())
    assert t.n.nunique()==1 and len(t)==len(_way_sets(ways)) and set(ways)<=set(adoption['ways'])
    top1 = t.set_index(['way','channels']).top1
    assert top1['plain','RGB']==top1['covariance','RGB']
    for s in ('RG','RB','GB','R','G','B'): assert top1['zero_fill',s]<min(top1[w,s] for w in ways[2:]), s
