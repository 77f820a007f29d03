"A run has one name, whoever writes the code better, and a folder is never taken for another run"
import ast,importlib,inspect,json,shutil,subprocess,sys
from dataclasses import replace
from pathlib import Path
import pytest
from mils.core import digest
from mils.models import models,register_model,small_cnn
from mils.config import Config
from mils.learner import get_learner
from mils.arms import describe,planned
from mils.protocols import protocols
from mils.identity import identity,run_name
from mils.trained import load_run
from mils.runs import train_run
from mils.sweeps import sweep_runs
from mils.tables import collect_runs

package = Path(inspect.getsourcefile(run_name)).parent

# ---- protocols ----

def settings(cfg): return digest(identity(cfg, {}, {})['config'], 4)

@pytest.mark.parametrize('name', protocols)
def test_a_protocol_is_what_it_was(name):
    "Every planned run, in order: `tests/protocols.json` has a few digits for each. A protocol that is to change changes there, too"
    want = json.loads(Path(__file__).with_name('protocols.json').read_text())[name].split()
    cfgs = planned(protocols[name])
    for i,(cfg,was) in enumerate(zip(cfgs, want), 1):
        assert settings(cfg)==was, f'run {i} of {name}, {describe(cfg)} of seed {cfg.seed}, is not the one that was planned'
    assert len(cfgs)==len(want)

def test_all_protocols_are_known(): assert list(protocols)==list(json.loads(Path(__file__).with_name('protocols.json').read_text()))

def test_a_new_generator_joins_no_protocol(monkeypatch):
    from mils.generators import generators
    before = [len(planned(p)) for p in protocols.values()]
    monkeypatch.setitem(generators, 'new', generators['bank'])
    monkeypatch.setitem(models, 'new', small_cnn)
    assert [len(planned(p)) for p in protocols.values()]==before

# ---- names ----

NAMES = '''
import json,os,sys
import fastai.vision.all,pandas,torch                # what takes long to load; mils itself is loaded anew for each folder
for folder in sys.stdin:
    if os.fork():
        failed = os.wait()[1]
        if failed: print('null', flush=True)
        continue
    sys.path.insert(0, folder.strip())
    from mils.chroma import chroma; from mils.config import Config; from mils.identity import run_name,source_digest
    ds = chroma(n_train=60, n_val=20, n_test=20)
    cfgs = [Config(precision='float32'), Config('resnet34', dict(stem='half'), precision='float32'),
        Config('strict4', dict(width=.5), precision='float32'),
        Config(dynamic=True, generator='bank', sampling='sample', views=3, precision='float32')]
    print(json.dumps(dict(code=source_digest(), names=[run_name(c, ds) for c in cfgs])), flush=True)
    os._exit(0)
'''
@pytest.fixture(scope='module')
def names():
    "A function that tells how runs are called by the package in a folder"
    p = subprocess.Popen([sys.executable,'-W','ignore','-c',NAMES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def names(folder):
        print(folder, file=p.stdin, flush=True)
        found = json.loads(p.stdout.readline())
        assert found, f'the package in {folder} failed; its error stands above'
        return found
    yield names
    p.stdin.close()
    p.wait()

def rename_locals(source):
    "One local variable of every plain function has another name"
    scopes = (ast.FunctionDef,ast.Lambda,ast.ClassDef,ast.Global,ast.ListComp,ast.DictComp,ast.SetComp,ast.GeneratorExp)
    tree = ast.parse(source)
    for f in ast.walk(tree):
        if not isinstance(f, ast.FunctionDef): continue
        inside = [n for o in f.body for n in ast.walk(o)]
        if any(isinstance(n, scopes) for n in inside): continue
        given = {a.arg for a in ast.walk(f.args) if isinstance(a, ast.arg)}
        made = [t.id for n in inside if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name) and t.id not in given]
        for n in inside:
            if made and isinstance(n, ast.Name) and n.id==made[0]: n.id = f'{made[0]}_in_better_words'
    return ast.unparse(tree)

def add_docstrings(source):
    tree = ast.parse(source)
    for f in ast.walk(tree):
        if isinstance(f, ast.FunctionDef) and not ast.get_docstring(f): f.body.insert(0, ast.Expr(ast.Constant('What it does')))
    return ast.unparse(tree)

def split(path):
    "All that a module defines is in another one now"
    shutil.move(path, path.with_name(f'rest_of_{path.name}'))
    everything = '{k:v for k,v in vars(rest).items() if not k.startswith("__")}'
    path.write_text(f'from mils import rest_of_{path.stem} as rest\nglobals().update({everything})\n')

@pytest.fixture(scope='module')
def before(names): return names(package.parent)

def edited(edit):
    return lambda home: [p.write_text(edit(p.read_text())) for p in home.rglob('*.py')]
def split_modules(home):
    for f in (get_learner, small_cnn): split(home/Path(inspect.getsourcefile(f)).name)
def star_imports(home):
    path = home/Path(inspect.getsourcefile(get_learner)).name
    path.write_text(path.read_text()+'\nfrom mils.core import *\nfrom mils.models import *\n')

@pytest.mark.xdist_group('names')                # one worker loads what all of them need
@pytest.mark.parametrize('change,text_changes', [
    (edited(rename_locals),True), (edited(add_docstrings),False), (split_modules,True), (star_imports,True)],
    ids=['locals','docstrings','split','star'])
def test_better_code_keeps_names(tmp_path, names, before, change, text_changes):
    shutil.copytree(package, tmp_path/'mils', ignore=shutil.ignore_patterns('__pycache__'))
    change(tmp_path/'mils')
    after = names(tmp_path)
    assert after['names']==before['names']
    assert (after['code']!=before['code'])==text_changes

def test_a_version_changes_the_names_of_its_runs(tiny, monkeypatch):
    from mils import identity as module
    from mils.generators import generators
    cfgs = dict(plain=Config(), dynamic=Config(dynamic=True), sampled=Config(dynamic=True, sampling='sample'), other=Config('strict2'))
    name = lambda: {k:run_name(c, tiny) for k,c in cfgs.items()}
    was = name()
    for table,key,changed in (
            (module.versions,'training',{*cfgs}), (module.versions,'sampling',{'sampled'}), (module.versions,'stem',{'dynamic','sampled'}),
            (generators.versions,'told',{'dynamic','sampled'}), (models.versions,'strict2',{'other'})):
        with monkeypatch.context() as m:
            m.setitem(table, key, table[key]+1)
            assert {k for k,v in name().items() if v!=was[k]}==changed

def test_a_new_default_is_another_name():
    "What a name leaves out does not follow the defaults: ten epochs are left out, whatever the default"
    assert 'epochs' not in identity(Config(epochs=10), {}, {})['config'] and identity(Config(epochs=12), {}, {})['config']['epochs']==12

# ---- folders ----

def net(width, dropout=.1):
    from torch import nn
    def mine(n_classes, c_in=3, size=32):
        return nn.Sequential(nn.Conv2d(c_in, width, 8, 8), nn.Dropout(dropout), nn.Flatten(), nn.Linear(width*(size//8)**2, n_classes))
    return mine

@pytest.fixture
def own(monkeypatch):
    "A registry to try things in"
    for table in (models, models.versions): monkeypatch.setitem(table, 'mine', None)
    return Config('mine', epochs=1, overrides=dict(bs=60), precision='float32') if register_model(net(8)) else None

def test_a_widened_network_does_not_get_the_old_run(tiny, tmp_path, own):
    first = train_run(own, tiny, tmp_path)
    files = {f.name:f.read_bytes() for f in first.iterdir()}
    register_model(net(16))
    said = r'0.weight is \[8, 3, 8, 8\] there and \[16, 3, 8, 8\] today.*register_model\(version=2\) at mine in .*test_identity'
    with pytest.raises(ValueError, match=said): train_run(own, tiny, tmp_path)
    with pytest.raises(ValueError, match='another mine'): load_run(first)
    assert {f.name:f.read_bytes() for f in first.iterdir()}==files
    register_model(net(16), version=2)
    second = train_run(own, tiny, tmp_path)
    assert second!=first and load_run(second).net[0].out_channels==16
    with pytest.raises(ValueError, match='model is 1 there and 2 today'): load_run(first)
    register_model(net(8))
    assert train_run(own, tiny, tmp_path)==first and load_run(first).net[0].out_channels==8

def interrupted(cfg, ds, root, monkeypatch):
    "The folder of a run that was stopped after its first epoch"
    from mils import runs
    write = runs._save_epoch
    def and_stop(folder):
        def stop(learn, rows):
            write(folder)(learn, rows)
            raise KeyboardInterrupt
        return stop
    with monkeypatch.context() as m:
        m.setattr(runs, '_save_epoch', and_stop)
        with pytest.raises(KeyboardInterrupt): train_run(cfg, ds, root)
    folder, = Path(root).iterdir()
    assert (folder/'state.safetensors').exists() and not (folder/'DONE').exists()
    return folder

def test_nor_does_it_go_on_with_an_unfinished_one(tiny, tmp_path, own, monkeypatch):
    cfg = replace(own, epochs=2)
    folder = interrupted(cfg, tiny, tmp_path, monkeypatch)
    files = {f.name:f.read_bytes() for f in folder.iterdir()}
    register_model(net(16))
    with pytest.raises(ValueError, match=r'another mine: 0.weight is \[8, 3, 8, 8\] there'): train_run(cfg, tiny, tmp_path)
    assert {f.name:f.read_bytes() for f in folder.iterdir()}==files
    register_model(net(8))
    assert train_run(cfg, tiny, tmp_path)==folder and (folder/'DONE').exists()

def with_activation(act):
    "The text of the registered function stays, what it makes does not"
    from torch import nn
    def mine(n_classes, c_in=3, size=32):
        return nn.Sequential(nn.Conv2d(c_in, 8, 8, 8), act(), nn.Flatten(), nn.Linear(8*(size//8)**2, n_classes))
    return mine

@pytest.mark.parametrize('done', [True,False])
def test_another_activation_has_the_same_shapes_and_is_found(tiny, tmp_path, own, monkeypatch, done):
    from torch import nn
    cfg = replace(own, epochs=2)
    register_model(with_activation(nn.ReLU))
    if done: folder = train_run(cfg, tiny, tmp_path)
    else: folder = interrupted(cfg, tiny, tmp_path, monkeypatch)
    register_model(with_activation(nn.Tanh))
    with pytest.raises(ValueError, match='another mine: .* today'): train_run(cfg, tiny, tmp_path)
    register_model(with_activation(nn.ReLU))
    assert train_run(cfg, tiny, tmp_path)==folder

def test_tables_of_networks_that_are_not_registered_here(tiny, tmp_path, own, monkeypatch):
    folder = train_run(own, tiny, tmp_path)
    monkeypatch.delitem(models, 'mine')
    assert list(collect_runs(tmp_path)['runs'].run)==[folder.name]

def test_runs_from_before_there_were_versions_are_left_out(tiny, tmp_path, own):
    old,new = train_run(own, tiny, tmp_path/'old'),train_run(own, tiny, tmp_path/'new')
    about = json.loads((old/'config.json').read_text())
    del about['versions']
    old = shutil.move(old, tmp_path/'new'/'mine-s0-0123456789ab')
    (Path(old)/'config.json').write_text(json.dumps(about))
    with pytest.warns(UserWarning, match='1 runs from before versions'): t = collect_runs(tmp_path/'new')
    assert list(t['runs'].run)==[new.name]

def test_a_damaged_configuration_is_named(tiny, tmp_path, own):
    folder = train_run(own, tiny, tmp_path)
    (folder/'config.json').write_text('{')
    for f in (lambda: train_run(own, tiny, tmp_path), lambda: collect_runs(tmp_path)):
        with pytest.raises(ValueError, match='config.json is damaged'): f()
    (folder/'config.json').unlink()
    with pytest.raises(ValueError, match='config.json is missing'): train_run(own, tiny, tmp_path)

def test_a_folder_with_other_settings_is_refused(tiny, tmp_path):
    cfg = Config(epochs=1, overrides=dict(bs=60), precision='float32')
    folder = train_run(cfg, tiny, tmp_path)
    about = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps({**about, 'config':{**about['config'], 'epochs':2}}))
    with pytest.raises(ValueError, match='epochs is 2 there and 1 today'): train_run(cfg, tiny, tmp_path)

def test_a_change_that_shapes_do_not_show_is_told(tiny, tmp_path, own, recwarn):
    train_run(own, tiny, tmp_path)
    assert not [w for w in recwarn if 'written differently' in str(w.message)]
    @register_model
    def mine(n_classes, c_in=3, size=32): return net(8, .5)(n_classes, c_in, size)
    with pytest.warns(UserWarning, match='mine is written differently.*version=2'): train_run(own, tiny, tmp_path)

MODULE = '''
from mils.models import register_model,small_cnn
@register_model
def imported(n_classes, c_in=3, size=32): return small_cnn(n_classes, c_in, size)
'''.lstrip()
def test_processes_know_networks_that_can_be_imported(tiny, tmp_path, monkeypatch, own):
    (tmp_path/'nets_of_mine.py').write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for table in (models, models.versions): monkeypatch.setitem(table, 'imported', None)
    importlib.import_module('nets_of_mine')
    cfg = Config('imported', epochs=1, overrides=dict(bs=60))
    assert sweep_runs([cfg], tiny, tmp_path/'runs', jobs=2)=={} and (tmp_path/'runs'/run_name(cfg, tiny)/'DONE').exists()
    with pytest.raises(ValueError, match='mine is defined in this session'): sweep_runs([own], tiny, tmp_path/'runs', jobs=2)

def test_a_network_is_known_in_a_process_that_has_only_been_given_its_settings():
    import pickle
    given = pickle.dumps(Config('strict4', dict(width=.25), precision='float32'))
    code = f'import pickle; from mils.identity import declared; print(declared(pickle.loads({given!r})))'
    told = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, check=True).stdout
    assert told.strip()==str(dict(training=1, model=1))
