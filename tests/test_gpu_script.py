"What benchmarks/gpu.py measures, at a tiny scale and without processes of their own, and that it goes on where it was cut"
import pandas as pd,pytest
import mils.bench
from scripts import script,trained_here
from mils.facts.gpu import NETWORKS,OURS,PARTS,RESNET,STEPPED,read

@pytest.fixture(scope='module')
def gpu(): return script('gpu')

@pytest.fixture
def run(gpu, monkeypatch, tmp_path):
    "The script, as a function of what is typed after `--tiny --out FOLDER`; its status"
    monkeypatch.setattr(mils.bench, '_in_child', trained_here)
    monkeypatch.setattr(gpu, 'default_device', lambda: gpu.torch.device('cpu'))
    monkeypatch.setattr(gpu, 'alone', lambda f, *args: f(*args))
    monkeypatch.setitem(gpu.TINY, 'p4', dict(epochs=1, seeds=1))
    monkeypatch.setitem(gpu.TINY, 'p5', dict(epochs=1, each=1, jobs=(1,)))
    return lambda *words: gpu.main(['--tiny','--out',str(tmp_path),*words])

def tables(folder): return {p.stem:p.read_text() for p in sorted(folder.glob('*.csv'))}

def test_every_part_is_measured_once(gpu, run, monkeypatch, tmp_path, capsys):
    assert run('--minutes', '0')==0 and not tables(tmp_path)          # nothing is started that would not end in time
    assert run('--only', 'p1,memory')==0
    cut = tables(tmp_path)
    assert list(cut)==['memory','p1']
    (tmp_path/'memory.csv').write_text(''.join(cut['memory'].splitlines(True)[:-1]))       # as if it had been cut before the last row
    assert run()==0
    rows = tables(tmp_path)
    assert list(rows)==sorted(PARTS)
    assert rows['p1']==cut['p1'] and rows['memory'].startswith(''.join(cut['memory'].splitlines(True)[:-1]))
    for t in (pd.read_csv(tmp_path/f'{p}.csv') for p in PARTS):
        assert t[['device','torch','cores','date','data','size']].notna().all(axis=None)
    steps = pd.read_csv(tmp_path/'steps.csv').set_index('switch')
    assert steps.gain[['plain','compile']].notna().all() and steps.why['graphs']=='RuntimeError: CUDA graphs need a GPU'
    (seconds,) = read(tmp_path).seconds.values()
    assert seconds.keys()=={OURS,RESNET}
    def never(*args): raise AssertionError('measured twice')
    monkeypatch.setattr(gpu, 'measure', never)
    assert run()==0 and tables(tmp_path)==rows

def test_a_failure_stops_nothing_else(gpu, run, monkeypatch, tmp_path, capsys):
    def fails(*args, **kwargs): raise RuntimeError('out of memory')
    monkeypatch.setattr(gpu, 'train_memory', fails)
    assert run('--only', 'memory,p5')==1
    assert list(tables(tmp_path))==['p5'] and 'out of memory' in capsys.readouterr().out

def test_the_page_knows_what_is_planned(gpu):
    planned = {p:{m.key['network'] for m in gpu.plan(gpu.FULL) if m.part==p} for p in ('memory','steps')}
    assert planned==dict(memory={*NETWORKS}, steps={*STEPPED})
    with pytest.raises(SystemExit): gpu.main(['--only','p9'])

def test_another_card_is_measured_anew(gpu, tmp_path):
    lab = gpu.Lab('chroma', None, tmp_path, tiny=True)
    m = gpu.plan(gpu.TINY)[0]
    row = {k:str(v) for k,v in (m.key | lab.machine).items()}
    assert gpu.is_done(m, lab, [row]) and not gpu.is_done(m, lab, [dict(row, device='another')])
