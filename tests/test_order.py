"A set means what it says, in the order it says it: from `Config` to the exported file"
import itertools,json
from dataclasses import replace
import numpy as np,pytest,torch
from hypothesis import given,strategies as st
from torch import nn
from torchvision.models import resnet18
from tensors import assert_close
from mils.core import channel_set,set_name
from mils.chroma import chroma
from mils.channels import convert
from mils.models import create_model,models
from mils.architecture import Architecture
from mils.config import Config
from mils.learner import get_learner
from mils.classifier import Classifier,load_classifier,save_classifier
from mils.prediction import predict,predict_sets
from mils.export import export

@pytest.fixture(scope='module')
def ds(): return chroma(256, 40, 60)
def trained(ds, **kwargs):
    learn = get_learner(Config('strict3', dict(width=.1), epochs=1, **kwargs), ds, 'cpu')
    learn.fit(1)
    return learn.classifier()
def pictures(ds, channels):
    x = torch.from_numpy(np.array(ds.images[:6])).permute(0,3,1,2)
    return x[:,[ds.channels.index(c) for c in channels]]

@pytest.mark.parametrize('dynamic', [False,True])
def test_a_config_says_what_the_network_takes_and_in_which_order(ds, dynamic, tmp_path):
    net = trained(ds, channels='BG', dynamic=dynamic)
    assert net.channels==('B','G')
    got = predict(net, ds)
    x,labels = (torch.from_numpy(np.array(o[ds.splits['test']])) for o in (ds.images,ds.labels))
    x = x.permute(0,3,1,2)[:,[2,1]]
    with torch.inference_mode(): p = net(x).softmax(1).gather(1, labels[:,None])[:,0]
    assert_close(torch.tensor(got.p), p, 1e-4)                                # what `predict` gives it is blue, then green
    assert_close(torch.tensor(predict(net, ds, channels='GB').p), p, 1e-4)    # pictures are taken by name
    save_classifier(tmp_path/'net.safetensors', net)
    back = load_classifier(tmp_path/'net.safetensors')
    with torch.inference_mode(): assert_close(back(x), net(x))

def test_every_way_to_give_a_set_keeps_its_order(ds, tmp_path):
    net = trained(ds, dynamic=True, sampling='sample')
    for s in (''.join(o) for n in (2,3) for o in itertools.permutations('RGB', n)):
        known = ''.join(sorted(s, key='RGB'.index))
        with torch.inference_mode():
            want = net(pictures(ds, known), channels=known)
            assert_close(net(pictures(ds, s), channels=s), want, 1e-4)
            fold = net.fold(s)
            assert_close(fold(pictures(ds, s)), want, 1e-4)
        assert fold.channels==tuple(s)
        save_classifier(tmp_path/'fold.safetensors', fold)
        with torch.inference_mode(): assert_close(load_classifier(tmp_path/'fold.safetensors')(pictures(ds, s)), want, 1e-4)
        assert_close(torch.tensor(predict(net, ds, channels=s).p), torch.tensor(predict(net, ds, channels=known).p), 1e-4)

class TwoStems(nn.Module):
    "Two convolutions look at the picture"
    def __init__(self, n_classes, c_in):
        super().__init__()
        self.a,self.b,self.head = *(nn.Conv2d(c_in, 4, 3, bias=False) for _ in range(2)),nn.Linear(4, n_classes)
    def forward(self, x): return self.head((self.a(x).relu()+self.b(x).tanh()).mean((2,3)))

class Shifted(TwoStems):
    "They look at a picture that was changed before"
    def forward(self, x): return super().forward(x-torch.tensor([.4,.5,.6])[:,None,None])

@pytest.mark.parametrize('kind', [TwoStems,Shifted])
def test_folds_of_unusual_networks(kind, ds, tmp_path, monkeypatch):
    "Every stem keeps what it was told; what cannot be built again is not saved"
    monkeypatch.setitem(models, 'unusual', lambda n_classes, c_in=3, size=64: kind(n_classes, c_in))
    monkeypatch.setitem(models.versions, 'unusual', 1)
    torch.manual_seed(0)
    net = Classifier(None, 'RGB', ds.stats, ds.classes, ds.size, Architecture('unusual', dynamic=True)).eval()
    for stem in net.net.stems: nn.init.normal_(stem.told)
    fold,x = net.fold('GB'),pictures(ds, 'GB')
    with torch.inference_mode(): assert_close(fold(x), net(x, channels='GB'), 1e-4)
    if kind is Shifted:
        with pytest.raises(ValueError, match='no architecture'): save_classifier(tmp_path/'fold.safetensors', fold)
        return
    assert fold.architecture.biased==['a','b']
    save_classifier(tmp_path/'fold.safetensors', fold)
    with torch.inference_mode(): assert_close(load_classifier(tmp_path/'fold.safetensors')(x), fold(x))

def test_an_exported_file_lists_its_channels_in_order(ds, tmp_path):
    onnx,ort = pytest.importorskip('onnx'),pytest.importorskip('onnxruntime')
    net = create_model('strict3', 3, dynamic=True, stats=ds.stats, size=64, width=.1).eval()
    x = torch.randn(2,3,64,64)
    for s in ('GB','BG'):
        export(net, tmp_path/f'{s}.onnx', x, s)
        names = {p.key:p.value for p in onnx.load(tmp_path/f'{s}.onnx').metadata_props}
        assert json.loads(names['channels'])==list(s)
        xs = x[:,['RGB'.index(c) for c in s]]
        y, = ort.InferenceSession(tmp_path/f'{s}.onnx').run(None, {'x':xs.numpy()})
        with torch.no_grad(): assert_close(torch.from_numpy(y), net(xs, channels=s), 1e-4)

# Names of several letters: one way to write a set, everywhere
name = st.text(min_size=1, max_size=6).filter(lambda c: c==c.strip() and not set(c)&set('+,'))
names = st.lists(name, min_size=1, max_size=6, unique=True)
@given(names, st.randoms(use_true_random=False))
def test_what_a_table_calls_a_set_can_be_typed(names, rnd):
    s = tuple(rnd.sample(names, rnd.randint(1, len(names))))
    assert channel_set(set_name(s), names)==channel_set(set_name(s), set_name(names))==s
    assert channel_set(set_name(s), names)==channel_set(s, names)

def infrared(ds): return replace(ds, channels='R+NIR+B')

def test_longer_names_from_a_config_to_an_exported_file(ds, tmp_path):
    ds = infrared(ds)
    assert ds.channels==('R','NIR','B')
    net = trained(ds, channels='B+NIR+R', dynamic=True, sampling='sample', held_out=['B+NIR','NIR+'])
    assert net.channels==('B','NIR','R') and Config(channels=['NIR']).channels=='NIR+' and Config(channels='NIR+').names==('NIR',)
    table = predict_sets(net, ds)
    assert list(table.channels.unique())==['B+NIR+R','B+NIR','BR','NIR+R','B','NIR+','R']
    for s,rows in table.groupby('channels'): assert_close(torch.tensor(predict(net, ds, channels=s).p), torch.tensor(list(rows.p)))
    save_classifier(tmp_path/'net.safetensors', net)
    back = load_classifier(tmp_path/'net.safetensors')
    for s in ('NIR+','NIR+B','R+NIR'):
        x = pictures(ds, channel_set(s, ds.channels))
        with torch.inference_mode():
            assert_close(back(x, channels=s), net(x, channels=s))
            fold = net.fold(s)
            assert_close(fold(x), net(x, channels=s), 1e-4)
        assert set_name(fold.channels)==fold.architecture.channels==s
        save_classifier(tmp_path/'fold.safetensors', fold)
        with torch.inference_mode(): assert_close(load_classifier(tmp_path/'fold.safetensors')(x), fold(x))
    own = convert(resnet18(), 'R+NIR+B').extend('SWIR 1', like='NIR')
    with torch.inference_mode(): own.eval()(torch.randn(2,2,64,64), channels='SWIR 1+R')
    onnx = pytest.importorskip('onnx')
    export(net.net, tmp_path/'net.onnx', torch.randn(2,3,64,64), 'NIR+B')
    names = {p.key:p.value for p in onnx.load(tmp_path/'net.onnx').metadata_props}
    assert json.loads(names['channels'])==['NIR','B']

def test_the_command_line_takes_longer_names(ds, tmp_path, monkeypatch, capsys):
    import mils.commands
    from mils.cli import main
    monkeypatch.setattr(mils.commands, 'load_typed', lambda *args, **kwargs: infrared(ds))
    train = ['train','strict3:width=.1:dynamic','--epochs','1','--runs',str(tmp_path)]
    assert main([*train,'--channels','NIR+R'])==0
    lines = capsys.readouterr().out.splitlines()
    assert [l.split()[1] for l in lines if l.startswith('test')]==['NIR+R','NIR+','R']
    assert main([*train,'--channels','NIR'])==1
    err = capsys.readouterr().err
    assert "possible: R, NIR, B" in err and "one alone ends in it: 'NIR+'" in err
