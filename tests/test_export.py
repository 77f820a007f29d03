"One function writes any converted network for other programs, checks the file, and leaves the network as it was"
import json
import numpy as np,pytest,torch
from torch import nn
from tensors import assert_close
from mils.channels import convert
from mils.core import channel_sets
from mils.export import export
from mils.imageset import ChannelStats
from mils.architecture import Architecture
from mils.classifier import Classifier
from mils.cli import main
from mils.models import models
onnx,ort = pytest.importorskip('onnx'),pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

STATS = ChannelStats(np.array([.4,.5,.6]), np.array([.2,.25,.3]), np.array([[.04,.045,.05],[.045,.0625,.07],[.05,.07,.09]]))
MASK = torch.tensor([[c in s for c in 'RGB'] for s in channel_sets()])
def small_net(): return nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,2))
def pictures(n=7, h=12, w=12):
    torch.manual_seed(1)
    return torch.randn(n,3,h,w)
def run(path, **inputs): return torch.from_numpy(ort.InferenceSession(path).run(None, {k:v.numpy() for k,v in inputs.items()})[0])

@pytest.mark.parametrize('attention', [False,True])
def test_a_file_with_a_mask_takes_any_batch_and_size(attention, tmp_path):
    net = convert(small_net(), stats=STATS, attention=attention)
    assert export(net, tmp_path/'net.onnx', pictures())['size']=='any'
    for n,h,w in ((7,47,66),(1,12,12),(3,13,200)):
        x,mask = pictures(n,h,w),MASK[:n]
        dirty = torch.where(mask[:,:,None,None], x, torch.nan)
        with torch.no_grad(): assert_close(run(tmp_path/'net.onnx', x=dirty, mask=mask), net.eval()(x, mask), 1e-4)

@pytest.mark.parametrize('attention', [False,True])
def test_a_fold_takes_its_channels_in_their_order(attention, tmp_path):
    net,x = convert(small_net(), stats=STATS, attention=attention),pictures()
    for kind in ('onnx','pt2'): export(net, tmp_path/f'BG.{kind}', x, 'BG')
    bg = x[:5,[2,1],:9]
    with torch.no_grad(): want = net.eval()(bg, channels='BG')
    assert_close(run(tmp_path/'BG.onnx', x=bg), want, 1e-4)
    with torch.no_grad(): assert_close(torch.export.load(tmp_path/'BG.pt2').module()(bg), want, 1e-4)
    told = {'channels':''}
    torch.export.load(tmp_path/'BG.pt2', extra_files=told)
    file = onnx.load(tmp_path/'BG.onnx')
    assert json.loads(told['channels'])==['B','G']==json.loads({p.key:p.value for p in file.metadata_props}['channels'])
    assert 'in this order: B, G' in file.graph.input[0].doc_string

def test_the_network_stays_as_it_was(tmp_path):
    net = convert(small_net(), stats=STATS).double()
    net.net[0].eval()
    before = [(m.training,[(p.dtype,p.data_ptr(),p.requires_grad) for p in m.parameters()]) for m in net.modules()]
    export(net, tmp_path/'net.pt2', pictures(), 'RG')
    assert before==[(m.training,[(p.dtype,p.data_ptr(),p.requires_grad) for p in m.parameters()]) for m in net.modules()]

def test_half_precision_runs_or_is_refused(tmp_path):
    net = convert(small_net(), stats=STATS)
    export(net.half(), tmp_path/'half.onnx', pictures(), 'GB')
    assert run(tmp_path/'half.onnx', x=pictures()[:,1:].half()).dtype==torch.float16
    with pytest.raises(ValueError, match=r'bfloat16.*nearest: export net.float\(\)'):
        export(net.bfloat16(), tmp_path/'b.onnx', pictures(), 'GB')
    assert not (tmp_path/'b.onnx').exists()

class Spectrum(nn.Module):
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(3,4,3)
    def forward(self, x): return torch.linalg.svdvals(self.conv(x).mean(1))

def test_what_cannot_be_written_is_told_and_the_old_file_stays(tmp_path):
    (tmp_path/'net.onnx').write_text('old')
    with pytest.raises(ValueError, match='Spectrum cannot be written as .onnx: .* operator for aten._linalg_svd; nearest: .*net.pt2'):
        export(convert(Spectrum()), tmp_path/'net.onnx', pictures(), 'GB')
    assert (tmp_path/'net.onnx').read_text()=='old'
    with pytest.raises(ValueError, match="kind of file '.h5'.*onnx"): export(convert(small_net()), tmp_path/'net.h5', pictures())
    with pytest.raises(ValueError, match='channels= names what it takes'): export(small_net(), tmp_path/'net.onnx', pictures())
    with pytest.raises(ValueError, match='two or more'): export(convert(small_net()), tmp_path/'net.onnx', pictures(1))

def test_a_saved_network_that_cannot_be_exported_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models, 'spectrum', lambda n_classes, c_in=3, size=64: Spectrum())
    monkeypatch.setitem(models.versions, 'spectrum', 1)
    monkeypatch.chdir(tmp_path)
    arch = Architecture('spectrum', dynamic=True)
    Classifier(None, 'RGB', STATS, ['cat','dog'], 12, arch).save_pretrained(tmp_path/'saved')
    assert main(['export','saved','--channels','GB'])==1
    err = capsys.readouterr().err
    assert 'operator for aten._linalg_svd; nearest:' in err and len(err.strip().splitlines())==1
    assert not list((tmp_path/'saved').glob('*.onnx'))

def test_a_classifier_takes_its_normalisation_along(tmp_path):
    net = Classifier(convert(small_net().eval(), stats=STATS), 'RGB', STATS, ['cat','dog'], 12).eval()
    x = pictures().mul(40).add(128).clamp(0,255)
    export(net, tmp_path/'net.onnx', x, 'BG', about=dict(classes=net.classes))
    bg = x[:,[2,1]]
    with torch.no_grad(): assert_close(run(tmp_path/'net.onnx', x=bg), net(bg, channels='BG'), 1e-4)

def test_without_onnx_it_is_named(monkeypatch, tmp_path):
    import sys
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match='pip install onnxruntime'): export(convert(small_net()), tmp_path/'net.onnx', pictures(), 'GB')
    export(convert(small_net()), tmp_path/'net.pt2', pictures(), 'GB')
