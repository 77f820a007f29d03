"What benchmarks/peers.py does: fastai and ours are trained on a few pictures, and timm's script is given what it needs"
import json,subprocess
import pandas as pd,pytest
import mils.bench
from mils.bench import prepared
from mils.chroma import chroma
from mils.config import Config
from scripts import script,trained_here

@pytest.fixture(scope='module')
def peers(): return script('peers')

@pytest.fixture(scope='module')
def told(peers, tmp_path_factory):
    "What a peer is told of a few pictures"
    few = chroma(n_train=40, n_val=20, n_test=20)
    job,ds,_ = prepared(few, tmp_path_factory.mktemp('peers'), photo_size=48, workers=0, device='cpu')
    return peers.known_to_peers(job, ds)

def test_ours_and_fastai_are_trained(peers, monkeypatch, capsys, tmp_path):
    def prepared_here(*args): return prepared(chroma(n_train=140, n_val=20, n_test=20), args[1], workers=0, device='cpu')
    monkeypatch.setattr(mils.bench, '_in_child', trained_here)
    monkeypatch.setattr(peers, 'fastai_alone', peers.train_fastai)
    monkeypatch.setattr(peers, 'prepared', prepared_here)
    monkeypatch.setattr(mils.bench, 'results_dir', lambda: tmp_path)
    t = peers.main(['--only','ours,fastai','--epochs','2','--rounds','1','--record'])
    assert list(t.way)==['ours','fastai']
    assert t.images_per_s.gt(0).all() and t.val_top1.between(0, 1).all()
    assert 'ours is faster by' in capsys.readouterr().out
    recorded = pd.read_csv(tmp_path/'speed'/'peers.csv')
    assert list(recorded.way)==['ours','fastai'] and recorded.timm.notna().all()

def test_fastai_reads_the_same_pictures(peers, told):
    cfg = Config(overrides=dict(bs=10))
    dls = peers.fastai_loaders(cfg, told)
    x,y = dls.one_batch()
    assert x.shape==(10,3,32,32) and len(dls.train_ds)==40 and len(dls.valid_ds)==20
    assert abs(x.mean())<.5 and .5<x.std()<1.5

def test_the_rows_of_the_script_of_timm(peers, tmp_path):
    line = 'Train: {} [{:>4d}/38 ({:>3.0f}%)]  Loss: 3.21 (3.45)  Time: 0.083s, {}/s  (0.085s, {:>7.2f}/s)  LR: 1.0e-3  Data: 0.01 (0.02)'
    log = [line.format(e, u, 100*(u+1)/38, 1, rate) for e,rate in enumerate((90.,128.)) for u in (0,37)]
    table = tmp_path/'summary.csv'
    table.write_text('epoch,train_loss,eval_top1\n0,3,10.0\n1,2,25.5\n')
    first,second = peers.read_log('\n'.join(log), table, 128)
    assert second['images_per_s']==128 and second['seconds']==38 and second['val_top1']==.255

def test_the_script_of_timm_gets_what_it_needs(peers, told, tmp_path):
    pytest.importorskip('timm')
    clone = tmp_path/'clone'
    clone.mkdir()
    (clone/'train.py').write_text('import json,sys; from timm import create_model; print(json.dumps(sys.argv))\n'
                                  'print(create_model("network_of_mils", num_classes=20, in_chans=3, drop_rate=0.)[-1].out_features)')
    root = tmp_path/'root'
    root.mkdir()
    command = peers.timm_command(Config(epochs=4, precision='bfloat16'), told, clone, root)
    typed,outputs = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(typed)==command[3:] and outputs=='20'
    assert len(list(root.glob('train/*/*.jpg')))==40 and len(list(root.glob('val/*/*.jpg')))==20
    assert command[command.index('--epochs')+1:][0]=='3' and command[command.index('--warmup-epochs')+1:][0]=='1'

def test_what_is_not_possible_is_said(peers, capsys):
    for words in (['--only','timm'], ['--only','others'], ['--epochs','1']):
        with pytest.raises(SystemExit): peers.main(words)
