"`mils` as a user types it"
import json,re,subprocess,sys
import pandas as pd,pytest
from mils.commands import commands
from mils.cli import main

names = ['data','train','sweep','results','export','ship','predict','show','convert','fuse','costs','bench','audit','facts','live','report']

@pytest.mark.parametrize('command', names)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as e: main([command,'--help'])
    out = capsys.readouterr().out
    assert e.value.code==0 and f'usage: mils {command}' in out and len(out.splitlines())>5

def test_every_command_is_known(): assert list(commands)==names

@pytest.mark.parametrize('command', ['train','sweep','costs'])
def test_help_knows_what_is_registered(command, capsys):
    from mils.generators import generators
    from mils.models import list_models
    with pytest.raises(SystemExit): main([command,'--help'])
    words = set(re.findall(r'\w+', capsys.readouterr().out))
    assert {*list_models(), *generators}<=words

def test_usage(capsys):
    assert main(['--help'])==0 and main([])==2
    out = capsys.readouterr().out
    assert all(c in out for c in names)

@pytest.mark.parametrize('words,say', [
    (['trian','x'], "did you mean 'train'?"), (['train','resnet43'], "did you mean 'resnet34'?"),
    (['train','small_cnn:dynamic:generator=bnak'], "did you mean 'bank'?"), (['train','small_cnn','--data','chrom'], "'chroma'"),
    (['train','small_cnn','--set','rl=1'], "recipe setting"), (['train','small_cnn','--channels','RX'], 'possible: R, G, B'),
    (['train','small_cnn','--epochs','0'], 'expected 1 or more'), (['train','small_cnn','--classes','a'], '0-49'),
    (['train','small_cnn:width=1,2'], 'mils sweep'), (['sweep','chroma','--on','rya'], "did you mean 'ray'?"),
    (['sweep','chroma','--address','localhost:6379'], 'is for ray'), (['results','chroma','--runs','/nowhere'], 'no finished run')])
def test_errors_are_one_line(words, say, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)                 # a run folder may be there before the error is
    assert main(words)==1
    err = capsys.readouterr().err
    assert err.startswith('mils: ') and say in err and len(err.splitlines())==1

@pytest.mark.parametrize('command,goes_on', [('sweep',True),('costs',False)])
def test_an_interrupted_command_says_whether_it_goes_on(command, goes_on, monkeypatch, capsys):
    def stopped(protocol:str): raise KeyboardInterrupt
    monkeypatch.setitem(commands, command, stopped)
    assert main([command,'chroma'])==130
    assert ('the same command continues' in capsys.readouterr().err)==goes_on

def test_unknown_option_is_status_2():
    with pytest.raises(SystemExit) as e: main(['train','small_cnn','--colour','red'])
    assert e.value.code==2

@pytest.fixture
def small(monkeypatch):
    "chroma, a few pictures of it"
    from mils.chroma import chroma
    ds = chroma(n_train=400, n_val=100, n_test=100)
    monkeypatch.setattr('mils.sets.load_data', lambda *args,**kw: ds)

def test_main_road(tmp_path, monkeypatch, small):
    "sweep, results, and both again"
    monkeypatch.setenv('MILS_RESULTS', str(tmp_path/'results'))
    monkeypatch.chdir(tmp_path)
    from mils.protocols import protocols
    monkeypatch.setitem(protocols['chroma'], 'arms', [dict(model='small_cnn', dynamic=True, sampling='sample')])
    for _ in range(2): assert main(['sweep','chroma','--epochs','1','--seeds','0'])==0
    assert main(['results','chroma'])==0 and not (tmp_path/'results').exists()          # recorded tables change when asked
    assert (tmp_path/'runs/results/chroma/runs.csv').exists()
    assert main(['results','chroma','--record'])==0
    assert (tmp_path/'results/chroma/runs.csv').exists() and len(list((tmp_path/'runs/chroma').glob('*/DONE')))==1
    assert main(['convert','chroma'])==0 and (tmp_path/'runs/results/chroma/kernels.csv').exists()        # no plain network: its stem alone
    assert not (tmp_path/'results/chroma/kernels.csv').exists()
    assert main(['convert','chroma','--record'])==0 and (tmp_path/'results/chroma/kernels.csv').exists()

def test_full_plan_in_small(tmp_path, monkeypatch, capsys, small):
    "Every run of the plan for a GPU has a name of its own; its commands and all its recipes, on small networks and a few pictures"
    monkeypatch.setenv('MILS_RESULTS', str(tmp_path/'results'))
    monkeypatch.chdir(tmp_path)
    from mils import sweeps
    from mils.identity import run_name
    from mils.protocols import protocols
    from mils.recorded import Recorded
    asked = []
    note = lambda cfgs, ds, *args, **kw: asked.extend((run_name(c, ds),c) for c in cfgs) or {}
    with monkeypatch.context() as m:
        m.setattr(sweeps, 'sweep_runs', note)
        assert main(['sweep','task-b-full'])==0 and len({n for n,c in asked})==len(asked)>200
    recipes = {json.dumps([c.recipe,c.overrides], sort_keys=True):dict(recipe=c.recipe, overrides=c.overrides) for n,c in asked}
    small_net = dict(model='strict2', options=dict(width=.125))
    with monkeypatch.context() as m:
        m.setitem(protocols['task-b-full'], 'arms', [{**small_net, **recipe} for recipe in recipes.values()])
        assert len(recipes)>10 and main('sweep task-b-full --epochs 1 --seeds 2 --runs recipes'.split())==0
    two_nets = 'sweep task-b-full --epochs 1 --seeds 0-1 --networks'.split()+['strict2:width=0.125 strict4:fine=2:width=0.125']
    for _ in range(2): assert main(two_nets)==0
    assert main(['results','task-b-full','--record'])==0 and main(['fuse','task-b-full','--record'])==0
    rec = Recorded('task-b-full')
    assert rec.compare(rec.find(model='strict2'), rec.find(model='strict4')).seeds==2
    merged = pd.read_csv(tmp_path/'results/task-b-full/deployed.csv')
    assert len(merged)==4 and (merged.same==merged.images).all() and merged.gap.max()<1e-4

def test_folds(tmp_path, monkeypatch, capsys, small):
    "Each seed on its own fold, and what is recorded is known again"
    monkeypatch.setenv('MILS_RESULTS', str(tmp_path/'results'))
    monkeypatch.chdir(tmp_path)
    from mils.recorded import Recorded
    from mils.protocols import protocols
    changed = dict(folds=True, seeds=range(2), epochs=1, arms=[dict(model='small_cnn'), dict(model='small_cnn', options=dict(width=2))])
    for k,v in changed.items(): monkeypatch.setitem(protocols['chroma'], k, v)
    assert main(['sweep','chroma','--skip-recorded'])==0 and main(['results','chroma','--record'])==0        # nothing is recorded yet
    rec = Recorded('chroma')
    assert rec.runs.data_key.nunique()==2 and rec.runs.groupby('seed').data_key.nunique().eq(1).all()
    plain,wide = (rec.find(options=o) for o in ('{}','{"width": 2}'))
    r = rec.compare(plain, wide)
    assert r.seeds==2 and rec.share(plain)>0 and rec.hits(wide).shape==(2,1) and r.lower<r.ratio
    assert main(['convert','chroma','--methods','gray','--record'])==0
    kept = pd.read_csv(tmp_path/'results/chroma/conversions.csv')
    assert set(kept.method)=={'gray'} and set(kept.run)==set(rec.runs.run) and kept.channels.nunique()==7
    capsys.readouterr()
    assert main(['sweep','chroma','--skip-recorded'])==0 and '0 of 0 runs' in capsys.readouterr().out

def test_results_grow_and_shrink_when_told(tmp_path, monkeypatch, capsys, small):
    "Rows of runs that are elsewhere stay; the same settings under another version are named; a row goes when its run is named"
    from mils.models import models
    monkeypatch.setenv('MILS_RESULTS', str(tmp_path/'results'))
    monkeypatch.chdir(tmp_path)
    runs = lambda: pd.read_csv(tmp_path/'results/chroma/runs.csv').run.tolist()
    sweep = 'sweep chroma --epochs 1 --networks small_cnn --set bs=50'.split()
    assert main(sweep)==0 and main(['results','chroma','--record'])==0
    (old,) = runs()
    monkeypatch.setitem(models.versions, 'small_cnn', 2)
    capsys.readouterr()
    assert main([*sweep,'--runs','later'])==0 and main(['results','chroma','--record','--runs','later'])==0
    (new,) = set(runs())-{old}
    assert f'{old} and {new} have the same settings' in capsys.readouterr().out and len(runs())==2
    assert main(['results','chroma','--record','--remove',f'{old}x'])==1 and f"did you mean '{old}'" in capsys.readouterr().err
    assert main(['results','chroma','--record','--remove',old])==0 and runs()==[new]
    for t in ('epochs','channels','gradients'): assert set(pd.read_csv(tmp_path/f'results/chroma/{t}.csv').run)=={new}
    assert set(pd.read_parquet(tmp_path/'results/chroma/predictions.parquet').run)=={new}

def test_sweep_options(monkeypatch, small):
    "What is typed wins over the protocol, for every arm"
    from mils import sweeps
    from mils.protocols import protocols
    asked = []
    monkeypatch.setattr(sweeps, 'sweep_runs', lambda cfgs,*args,**kw: asked.extend(cfgs) or {})
    arms = [dict(model='small_cnn'), dict(model='small_cnn', overrides=dict(lr=.1, wd=.3)), dict(model='small_cnn', recipe='seed')]
    for k,v in dict(arms=arms, overrides=dict(lr=.01)).items(): monkeypatch.setitem(protocols['chroma'], k, v)
    assert main(['sweep','chroma'])==0 and [c.overrides for c in asked]==[dict(lr=.01), dict(lr=.1, wd=.3), dict(lr=.01)]
    asked.clear()
    assert main('sweep chroma --set bs=10,20 --recipe same --seeds 3'.split())==0
    assert [c.overrides for c in asked]==[{**o,'bs':b} for b in (10,20) for o in (dict(lr=.01), dict(lr=.1, wd=.3), dict(lr=.01))]
    assert {(c.recipe,c.seed) for c in asked}=={('same',3)}
    assert main('sweep chroma --epochs 0'.split())==1 and main('sweep chroma --seeds 5-1'.split())==1

def test_light_imports():
    "Help, lists and the package itself need no PyTorch"
    code = '''
import sys,time
start = time.perf_counter()
import mils
seconds = time.perf_counter()-start
import mils.core,mils.check,mils.cache,mils.sets,mils.chroma,mils.cli
assert 'torch' not in sys.modules
print(seconds)'''
    def seconds(): return float(subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout)
    assert min(seconds() for _ in range(3))<.3       # the best of three: a busy machine delays one

def test_skip_bad(tmp_path, monkeypatch, capsys):
    "The spelling that messages and help name"
    from PIL import Image
    monkeypatch.setenv('MILS_CACHE', str(tmp_path/'cache'))
    (tmp_path/'images').mkdir()
    for s in ('train','val','test'):
        for i in range(2): Image.new('RGB', (9,9), (i*90,)*3).save(tmp_path/f'images/{s}{i}.png')
        (tmp_path/f'{s}.txt').write_text(f'{s}0.png 0\n{s}1.png 1\n')
    (tmp_path/'images/val1.png').write_bytes(b'no image')
    assert main(['data','cache',str(tmp_path)])==1
    err = capsys.readouterr().err
    assert 'val1.png' in err and 'val.txt line 2' in err and '--skip-bad' in err
    assert main(['data','cache',str(tmp_path),'--skip-bad'])==0 and 'val 1' in capsys.readouterr().out
    assert main(['data','check',str(tmp_path)])==1 and 'unreadable 1' in capsys.readouterr().out
    monkeypatch.setenv('MILS_RESULTS', str(tmp_path/'results'))
    monkeypatch.chdir(tmp_path)
    from mils.protocols import protocols
    for k,v in dict(data=str(tmp_path), classes=None, size=9).items(): monkeypatch.setitem(protocols['task-b'], k, v)
    assert main('fuse task-b'.split())==1 and 'val1.png' in capsys.readouterr().err
    assert main('fuse task-b --skip-bad'.split())==1          # the data are read, and there are no runs
    assert 'no plain network' in capsys.readouterr().err
