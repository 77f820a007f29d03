"A network with a dynamic stem compiles, exports and runs in onnxruntime; tutorials/deploy.ipynb shows how"
import json,shutil
from pathlib import Path
import pytest,torch
from tensors import assert_close
from mils.classifier import Classifier
from mils.core import channel_sets
from mils.generators import generators
from mils.models import create_model
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

x,mask = torch.randn(7,3,32,32),torch.tensor([[c in s for c in 'RGB'] for s in channel_sets()])
batch = torch.export.Dim('batch', min=1, max=1024)
SHAPES = dict(x={0:batch}, mask={0:batch})
@pytest.fixture
def net(request):
    torch.manual_seed(0)
    torch._dynamo.reset()
    attention = request.param in ('covariance','per_count')
    return create_model('small_cnn', 5, dynamic=True, generator=request.param, attention=attention, size=32).eval()
every = pytest.mark.parametrize('net', generators, indirect=True)

@every
def test_export_and_onnx(net, tmp_path):
    with torch.no_grad(): want = net(x, mask)
    program = torch.export.export(net, (x,mask), dynamic_shapes=SHAPES)
    torch.onnx.export(program, dynamo=True, input_names=['x','mask'], verbose=False).save(tmp_path/'net.onnx')
    session = ort.InferenceSession(tmp_path/'net.onnx')
    dirty = torch.where(mask[:,:,None,None], x, torch.nan)
    for n in (1,2,7):
        assert_close(program.module()(dirty[:n], mask[:n]), want[:n], 1e-4)
        got, = session.run(None, dict(x=dirty[:n].numpy(), mask=mask[:n].numpy()))
        assert_close(got, want[:n], 1e-4)

@every
def test_compile_is_one_graph(net):
    f = torch.compile(net, fullgraph=True, backend='inductor' if shutil.which('g++') and net.stem.attention else 'aot_eager')
    with torch.no_grad():
        assert_close(f(x, mask), net(x, mask), 1e-4)
        assert_close(f(x[:,1:], channels='GB'), net(x[:,1:], channels='GB'), 1e-4)
    f(x, mask).sum().backward()
    assert all(p.grad is not None for p in net.parameters())

def test_the_live_page_has_the_network_that_comes_along():
    live = Path(__file__).resolve().parent.parent/'nbs'/'report'/'live'
    net,about = Classifier.from_pretrained('mils/photos-64'),json.loads((live/'photos.json').read_text())
    assert about['classes']==list(net.classes) and about['epochs']==net.origin['config']['epochs']
    assert about['top1']=={a['channels']:round(a['top1'], 4) for a in net.origin['accuracy'] if a['split']=='test'}
    x,mask = torch.rand(1, 3, net.size, net.size),torch.tensor([[True,False,True]])
    got = ort.InferenceSession(live/'photos.onnx').run(None, dict(x=x.numpy(), mask=mask.numpy()))[0]
    with torch.no_grad(): assert_close(torch.tensor(got), net.net(x, mask), 1e-4)
