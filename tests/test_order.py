"A set means what it says, in the order it says it: from `Config` to the exported file"
import itertools,json
import numpy as np,pytest,torch
from tensors import assert_close
from mils.chroma import chroma
from mils.models import create_model
from mils.config import Config
from mils.learner import get_learner
from mils.weights import load_classifier,save_classifier
from mils.prediction import predict
from mils.live import write_onnx

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

def test_an_exported_file_lists_its_channels_in_order(ds, tmp_path):
    onnx,ort = pytest.importorskip('onnx'),pytest.importorskip('onnxruntime')
    net = create_model('strict3', 3, dynamic=True, stats=ds.stats, size=64, width=.1).eval()
    x = torch.randn(2,3,64,64)
    for s in ('GB','BG'):
        write_onnx(net, tmp_path/f'{s}.onnx', 64, s)
        names = {p.key:p.value for p in onnx.load(tmp_path/f'{s}.onnx').metadata_props}
        assert json.loads(names['channels'])==list(s)
        xs = x[:,['RGB'.index(c) for c in s]]
        y, = ort.InferenceSession(tmp_path/f'{s}.onnx').run(None, {'x':xs.numpy()})
        with torch.no_grad(): assert_close(torch.from_numpy(y), net(xs, channels=s), 1e-4)
