"A sweep on a Ray cluster of real processes: nodes and drivers are killed, and every run is done once, equal to the bit to a plain one"
import json,os,re,shutil,signal,socket,subprocess,sys,time
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
import pandas as pd,pytest
from mils import cluster as ours
from mils.arms import grid
from mils.chroma import chroma
from mils.config import Config
from mils.disk import locked
from mils.identity import run_name
from mils.sweeps import sweep_runs
from mils.tables import collect_runs

ray = pytest.importorskip('ray')
pytestmark = [pytest.mark.xdist_group('ray'),
              pytest.mark.skipif(sys.platform!='linux', reason='several nodes on one machine need Linux')]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

ARMS = [dict(dynamic=True, sampling='sample'), dict()]
SAME = ['run','epoch','train_loss','val_loss','val_top1','val_top5','lr']
def pictures(): return chroma(n_train=160, n_val=40, n_test=40)
def runs(n=24, **kwargs): return grid(ARMS, seeds=range(n//2), **{'epochs':2, 'overrides':dict(bs=40), **kwargs})

@pytest.fixture(scope='module')
def ds(): return pictures()

class Nodes:
    "A cluster on loopback: the head, where the sweep is started, and nodes that come and go; a processor each"
    def __init__(self):
        from ray.cluster_utils import Cluster
        for last in (False,False,True):                                 # a busy machine may take longer than Ray waits
            self.cluster = Cluster()
            try: self.add()
            except Exception:
                if last: raise
            else: break
        self.address = self.cluster.address
    def add(self, env=None, **resources):
        how = dict(num_cpus=1, node_ip_address='127.0.0.2', include_dashboard=False, include_log_monitor=False,
                   object_store_memory=100*2**20, **resources)
        return self.cluster.add_node(**how, env_vars=env)
    def kill(self, node): self.cluster.remove_node(node, allow_graceful=False)

@pytest.fixture(scope='module')
def nodes():
    with pytest.MonkeyPatch.context() as m:
        m.setenv('RAY_USAGE_STATS_ENABLED', '0')
        nodes = Nodes()
        yield nodes
        nodes.cluster.shutdown()

@pytest.fixture
def second(nodes):
    node = nodes.add()
    yield node
    if node in nodes.cluster.worker_nodes: nodes.kill(node)

@pytest.fixture
def apart(tmp_path, monkeypatch):
    "A path that means another place to processes that work in another folder, as a node does"
    monkeypatch.chdir(tmp_path)
    return Path('/proc/self/cwd/runs')

@pytest.fixture(scope='module')
def plain(ds, tmp_path_factory):
    root = tmp_path_factory.mktemp('plain')
    assert sweep_runs(runs(), ds, root, device='cpu')=={}
    return root

@pytest.fixture(params=['shared','apart'])
def root(request, tmp_path):
    "Where runs appear: a folder that all nodes see, or one of each node"
    return tmp_path/'runs' if request.param=='shared' else request.getfixturevalue('apart')

def done(root): return {p.parent.name:p.stat().st_mtime_ns for p in Path(root).glob('*/DONE')}

def when(condition, do, seconds=240):
    "A thread that does something as soon as it is time"
    def wait():
        end = time.time()+seconds
        while not condition() and time.time()<end: time.sleep(.02)
        do()
    t = Thread(target=wait, daemon=True)
    t.start()
    return t

def assert_equal(a, b):
    a,b = collect_runs(a),collect_runs(b)
    assert list(a['runs'].run)==list(b['runs'].run)
    pd.testing.assert_frame_equal(a['epochs'][SAME], b['epochs'][SAME], check_exact=True)
    pd.testing.assert_frame_equal(a['predictions'], b['predictions'], check_exact=True)

def assert_nothing_is_left(root):
    for p in Path(root).iterdir(): assert (p/'DONE').exists() and not (p/'state.safetensors').exists(), p
    assert not list(Path(root).glob('*/.*'))

def test_a_node_is_killed_in_the_middle(nodes, second, ds, plain, root):
    "24 runs on two nodes, one of which dies: each is done once, and is what a plain sweep makes"
    seen,broken = {},[]
    def watch():
        for name,at in done(root).items():
            if seen.setdefault(name, at)!=at: broken.append(name)
        broken.extend(p.name for p in Path(root).glob('*-s*') if root.name!='runs' and not (p/'DONE').exists())
        return len(seen)>=8
    t = when(watch, lambda: nodes.kill(second))
    assert sweep_runs(runs(), ds, root, device='cpu', on='ray', address=nodes.address)=={}
    t.join()
    assert not broken and seen.items()<=done(root).items() and 8<=len(seen)<24
    assert_equal(plain, root)
    assert_nothing_is_left(root)

def test_a_killed_run_goes_on_from_its_last_epoch(nodes, second, ds, tmp_path):
    "In a folder that all nodes see: what was there when the node died is there in the end, but for an epoch whose state was not written"
    cfgs = runs(2, epochs=20)
    rows = lambda: {f.parent.name:f.read_text() for f in (tmp_path/'runs').glob('*/metrics.jsonl')}
    before = {}
    def kill():
        nodes.kill(second)
        before.update(rows())
    t = when(lambda: len(rows())==2 and min(len(o.splitlines()) for o in rows().values())>=3, kill)
    assert sweep_runs(cfgs, ds, tmp_path/'runs', device='cpu', on='ray', address=nodes.address)=={}
    t.join()
    after = rows()
    sure = {k:o.splitlines(True)[:-1] for k,o in before.items()}
    assert len(sure)==2 and all(after[k].splitlines(True)[:len(o)]==o for k,o in sure.items())
    assert any(len(o.splitlines())<20 for o in before.values())
    assert sweep_runs(cfgs, ds, tmp_path/'plain', device='cpu')=={}
    assert_equal(tmp_path/'plain', tmp_path/'runs')

DRIVER = '''
import sys
sys.path.insert(0, sys.argv[3])
from test_ray import pictures,runs,sweep_runs
assert sweep_runs(runs(12), pictures(), sys.argv[1], device='cpu', on='ray', address=sys.argv[2])=={}
'''
def driver(root, address):
    return subprocess.Popen([sys.executable,'-c',DRIVER,str(root),address,str(Path(__file__).parent)], stderr=subprocess.PIPE)

def test_the_driver_is_killed_and_started_again(nodes, ds, plain, root, tmp_path):
    "What was done is untouched, the rest is done, and nothing else"
    names = {run_name(c, ds) for c in runs(12)}
    p = driver(root, nodes.address)
    end = time.time()+240
    while len(done(tmp_path/'runs'))<4 and time.time()<end: time.sleep(.02)
    p.kill()
    assert p.wait()==-signal.SIGKILL
    before = done(tmp_path/'runs')
    assert 4<=len(before)<12
    p = driver(root, nodes.address)
    assert p.wait(300)==0, p.stderr.read().decode()
    assert before.items()<=done(tmp_path/'runs').items() and {*done(tmp_path/'runs')}==names
    few = tmp_path/'plain'
    for name in names: shutil.copytree(plain/name, few/name)
    assert_equal(few, tmp_path/'runs')

def test_a_teacher_comes_home_as_well(nodes, ds, apart):
    cfgs = grid([dict(overrides=dict(bs=40, teacher='small_cnn width=2'))], seeds=[0,0], epochs=1)
    assert sweep_runs(cfgs, ds, apart, device='cpu', on='ray', address=nodes.address)=={}
    assert set(done(apart))=={run_name(c, ds) for c in (cfgs[0], cfgs[0].teacher)}

# What a task finds on its node, in the place of what it trains
def look(asked, work, mark, earlier, ds, cfg, wait):
    from ray import get_runtime_context
    at,maps = ds.images.ctypes.data,[l.split() for l in open('/proc/self/maps')]
    for span,_,offset,_,inode,*file in maps:
        low,high = (int(o, 16) for o in span.split('-'))
        if low<=at<high: place = [inode, at-low+int(offset, 16), *file[:1]]
    began = time.time()
    time.sleep(cfg.epochs)
    seen = dict(node=get_runtime_context().get_node_id(), pid=os.getpid(), place=place, own=ds.images.flags.owndata,
                writeable=ds.images.flags.writeable, span=[began,time.time()], gpus=os.environ.get('CUDA_VISIBLE_DEVICES'))
    return f'look-{cfg.seed}',dict(DONE=json.dumps(seen).encode())

def looked(n, monkeypatch, *args, seconds=1, **kwargs):
    monkeypatch.setattr(ours, '_train_there', look)
    root = args[1]
    assert sweep_runs([Config(seed=s, epochs=seconds) for s in range(n)], *args, on='ray', **kwargs)=={}
    return [json.loads(p.read_text()) for p in root.glob('look-*/DONE')]

def test_pictures_are_once_on_a_node_and_are_not_copied(nodes, second, ds, tmp_path, monkeypatch):
    memory_mapped = tmp_path/'images'
    memory_mapped.write_bytes(ds.images.tobytes())
    import numpy as np
    from dataclasses import replace
    mapped = replace(ds, images=np.memmap(memory_mapped, ds.images.dtype, 'r', shape=ds.images.shape))
    seen = looked(6, monkeypatch, mapped, tmp_path/'runs', device='cpu', address=nodes.address)
    assert len(seen)==6 and len({o['node'] for o in seen})==2
    assert len({(o['node'],*o['place']) for o in seen})==2 and all('plasma' in o['place'][-1] for o in seen)
    assert not any(o['own'] or o['writeable'] for o in seen)

def test_two_runs_share_a_gpu_and_each_has_a_process(nodes, ds, tmp_path, monkeypatch):
    node = nodes.add(num_gpus=1)
    try: seen = looked(4, monkeypatch, ds, tmp_path/'runs', address=nodes.address, num_cpus=.5, num_gpus=.5, seconds=8)
    finally: nodes.kill(node)
    assert len({o['pid'] for o in seen})==4 and {o['gpus'] for o in seen}=={'0'}
    at_once = lambda o: sum(p['span'][0]<=o['span'][0]<p['span'][1] for p in seen)
    assert max(map(at_once, seen))==2

def test_a_run_without_memory_fails_and_the_others_go_on(nodes, ds, tmp_path):
    node = nodes.add(dict(RAY_memory_usage_threshold='0.01', RAY_memory_monitor_refresh_ms='100'))
    try: failed = sweep_runs(runs(4), ds, tmp_path, device='cpu', on='ray', address=nodes.address)
    finally: nodes.kill(node)
    assert failed and all('OutOfMemoryError' in why and 'low on memory' in why and '\n' not in why for why in failed.values())
    assert done(tmp_path) and len(done(tmp_path))+len(failed)==4

def test_a_run_whose_process_dies_each_time_fails(nodes, ds, tmp_path, monkeypatch):
    def dies(*args): os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(ours, '_train_there', dies)
    monkeypatch.setattr(ours, '_retries', 1)
    failed = sweep_runs([Config()], ds, tmp_path, device='cpu', on='ray', address=nodes.address)
    assert 'WorkerCrashedError' in failed[run_name(Config(), ds)]

def test_a_run_that_another_sweep_is_at_comes_last(nodes, ds, tmp_path):
    first,second = runs(2)
    with ExitStack() as other:
        other.enter_context(locked(f'{tmp_path/run_name(first, ds)}/'))
        t = when(lambda: done(tmp_path), other.close)
        assert sweep_runs([first,second], ds, tmp_path, device='cpu', on='ray', address=nodes.address)=={}
        t.join()
    assert len(done(tmp_path))==2

def test_a_failed_run_is_told_as_in_a_plain_sweep(nodes, ds, tmp_path):
    bad = Config(epochs=1, options=dict(width=0))
    how = dict(device='cpu', on='ray', address=nodes.address)
    assert sweep_runs([bad, *runs(2)], ds, tmp_path/'a', **how)==sweep_runs([bad, *runs(2)], ds, tmp_path/'b', device='cpu')

def test_a_node_of_another_version_is_refused(nodes, ds, tmp_path, monkeypatch):
    "Of the package: a copy that says so; of Python and PyTorch: the sweep asks for another"
    package = Path(ours.__file__).parent
    shutil.copytree(package, tmp_path/'other'/'mils', ignore=shutil.ignore_patterns('__pycache__','shipped'))
    (tmp_path/'other'/'mils'/'cluster.py').unlink()                  # an older version has none
    about = tmp_path/'other'/'mils'/'__init__.py'
    about.write_text(about.read_text().replace(ours.mils.__version__, '0.1.9'))
    monkeypatch.chdir(tmp_path)                                      # Ray tells nodes to import from here as well
    node = nodes.add(dict(PYTHONPATH=os.pathsep.join([str(tmp_path/'other'), os.environ.get('PYTHONPATH', '')])), num_gpus=1)
    how = dict(on='ray', address=nodes.address)
    try:
        with pytest.raises(ConnectionRefusedError, match=rf'has mils 0\.1\.9 .* started with mils {ours.mils.__version__}'):
            sweep_runs(runs(2), ds, tmp_path/'runs', num_gpus=1, **how)
    finally: nodes.kill(node)
    here = ours.versions_here()
    for what in ('Python','torch'):
        with pytest.raises(ConnectionRefusedError, match=f'has {what} {re.escape(here[what])}.* started with {what} 1.0'):
            ours.check_node({**here, what:'1.0'})
    assert not done(tmp_path/'runs')

def test_what_no_cluster_can_do(nodes, ds, tmp_path):
    how = dict(device='cpu', on='ray', address=nodes.address)
    for asked,said in ((dict(num_gpus=99), 'num_gpus=99; no node has so many'), (dict(num_cpus=99), 'num_cpus=99; no node'),
                       (dict(num_cpus=0), 'expected more than 0'), (dict(jobs=2), 'jobs=2 is for processes')):
        with pytest.raises(ValueError, match=said): sweep_runs(runs(2), ds, tmp_path, **asked, **how)

def test_an_address_nobody_answers(capsys):
    import mils.sweeps  # noqa: F401 - what any sweep loads
    from mils.cli import main
    with socket.create_server(('127.0.0.1', 0)) as silent:
        start = time.time()
        with pytest.raises(ConnectionError, match='what answers is not Ray'): ours.find_cluster(f'127.0.0.1:{silent.getsockname()[1]}')
        assert time.time()-start<10
    for address in ('127.0.0.1:1','203.0.113.1:6379'):                        # refused, and nowhere
        start = time.time()
        assert main(['sweep','chroma','--on','ray','--address',address])==1
        err = capsys.readouterr().err
        assert f'no Ray cluster at {address}' in err and len(err.splitlines())==1 and time.time()-start<10

def test_a_cluster_for_the_occasion(tmp_path, monkeypatch, capsys):
    "From the command line; it ends with the sweep"
    from mils.cli import main
    monkeypatch.setattr('mils.sets.load_data', lambda *args,**kw: pictures())
    words = 'sweep chroma --networks small_cnn --seeds 0-1 --epochs 1 --set bs=40 --on ray --num-cpus 1 --runs'.split()
    assert main([*words, str(tmp_path)])==0 and '2 of 2 runs are done' in capsys.readouterr().out
    assert not ray.is_initialized() and len(done(tmp_path/'chroma'))==2
