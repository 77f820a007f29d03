"Runs survive `kill -9`, damaged files, full disks and each other"
import random,resource,shutil,signal,subprocess,sys,time
from multiprocessing import get_context
from pathlib import Path
import pandas as pd,pytest,torch
from tensors import assert_same
from filelock import Timeout
from mils.chroma import chroma
from mils.config import Config
from mils.disk import locked
from mils.arms import grid
from mils.identity import run_name
from mils.learner import get_learner
from mils.trained import load_run
from mils.runs import train_run
from mils.sweeps import sweep_runs
from mils.tables import collect_runs,read_results
from mils.classifier import load_tensors,save_tensors
from mils.weights import load_state,save_state

ARMS = [dict(dynamic=True, sampling='sample'), dict(model='wide_resnet', options=dict(width=1))]
def sweep(root, ready):
    ds = chroma(n_train=320, n_val=60, n_test=60)
    ready.set()
    failed = sweep_runs(grid(ARMS, seeds=[0,1], epochs=3, overrides=dict(bs=32)), ds, root)
    assert not failed, failed

@pytest.fixture(scope='module')
def start():
    "Starts a sweep in a process of its own. All come from one that has loaded PyTorch, which takes longer than these runs"
    context = get_context('forkserver')
    context.set_forkserver_preload(['mils.chroma','mils.arms','mils.sweeps'])
    def start(root):
        ready = context.Event()
        p = context.Process(target=sweep, args=(root,ready), daemon=True)
        p.start()
        assert ready.wait(120)
        return p
    return start

HOLD = """
import socket,sys,time
{patch}
import mils.disk
mils.disk.lease = 2
from pathlib import Path
with mils.disk.locked(sys.argv[1]):
    inside = Path(sys.argv[1]+'.inside')
    assert not inside.exists()
    inside.touch()
    print('in', flush=True)
    time.sleep(float(sys.argv[2]))
    inside.unlink()
"""
def hold(path, seconds, patch=''):
    "A process that locks `path` for some seconds"
    return subprocess.Popen([sys.executable,'-c',HOLD.format(patch=patch),str(path),str(seconds)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def test_a_lock_excludes_where_the_systems_does_nothing(tmp_path):
    several = [hold(tmp_path/'thing', .4, 'import fcntl; fcntl.flock = fcntl.lockf = lambda *a: None') for _ in range(3)]
    for p in several: assert p.wait(60)==0, p.stderr.read()
    assert not list(tmp_path.iterdir())

def test_a_lock_of_a_dead_process_is_free_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr('mils.disk.lease', 2)
    p = hold(tmp_path/'thing', 600)
    assert p.stdout.readline()=='in\n'
    with pytest.raises(Timeout), locked(tmp_path/'thing', wait=False): pass
    p.kill()
    p.wait()
    with locked(tmp_path/'thing', wait=False): pass

def test_a_lock_of_another_machine_is_taken_over_when_it_is_stale_and_not_before(tmp_path, monkeypatch):
    monkeypatch.setattr('mils.disk.lease', 2)
    p = hold(tmp_path/'thing', 600, 'socket.gethostname = lambda: "elsewhere"')
    assert p.stdout.readline()=='in\n'
    assert 'elsewhere' in (tmp_path/'thing.lease').read_text()
    end = time.time()+5
    while time.time()<end:                                              # more than two leases; it is alive
        with pytest.raises(Timeout), locked(tmp_path/'thing', wait=False): pass
        time.sleep(.2)
    p.kill()
    p.wait()
    killed = time.time()
    with locked(tmp_path/'thing'): assert .5<time.time()-killed<30

def test_a_run_that_another_machine_finished_first_is_no_error(tmp_path, monkeypatch):
    ds,cfg = chroma(n_train=100, n_val=20, n_test=20),Config(epochs=1, overrides=dict(bs=50))
    other = train_run(cfg, ds, tmp_path/'other')
    def late(cfg, ds, folder, *args):
        for f in other.iterdir(): shutil.copy(f, folder/f.name)
        raise FileNotFoundError('a temporary file, which the other one took away')
    monkeypatch.setattr('mils.runs._train', late)
    run = train_run(cfg, ds, tmp_path/'ours')
    assert (run/'DONE').read_bytes()==(other/'DONE').read_bytes()

one_worker = pytest.mark.xdist_group('sweeps')

def ended(p, seconds=300):
    p.join(seconds)
    return p.exitcode
def finished(root): return {p.parent.name:p.stat().st_mtime_ns for p in Path(root).glob('*/DONE')}
SAME = ['run','epoch','train_loss','val_loss','val_top1','val_top5','lr']

@one_worker
def test_kill_and_resume(tmp_path, start):
    "`kill -9` at random moments: nothing finished is lost or repeated, and the result is equal to the bit"
    assert ended(start(tmp_path/'calm'))==0
    rng,done,kills = random.Random(42),{},0
    while True:
        p = start(tmp_path/'killed')
        code = ended(p, rng.uniform(.1,1.6) if kills<6 else 300)
        if code is None:
            p.kill()
            assert ended(p)==-signal.SIGKILL
            kills += 1
            assert kills<=6, 'it hangs'
        now = finished(tmp_path/'killed')
        assert done.items()<=now.items()                 # what was done is there, untouched
        done = now
        if code is not None: break
    assert code==0 and kills>=3
    a,b = collect_runs(tmp_path/'calm'),collect_runs(tmp_path/'killed')
    assert list(a['runs'].run)==list(b['runs'].run) and len(b['runs'])==4
    pd.testing.assert_frame_equal(a['epochs'][SAME], b['epochs'][SAME], check_exact=True)
    pd.testing.assert_frame_equal(a['predictions'], b['predictions'], check_exact=True)
    assert not list((tmp_path/'killed').glob('*/state.safetensors'))

@one_worker
def test_two_sweeps_share_the_work(tmp_path, start):
    ps = [start(tmp_path) for _ in range(2)]
    assert [ended(p) for p in ps]==[0,0]
    t = collect_runs(tmp_path)
    assert len(t['runs'])==4 and (t['epochs'].groupby('run').size()==3).all()
    spans = sorted(((f.parent/'config.json').stat().st_mtime, f.stat().st_mtime) for f in tmp_path.glob('*/DONE'))
    assert any(b[0]<a[1] for a,b in zip(spans, spans[1:]))             # two were trained at once

CFG = Config(epochs=2, overrides=dict(bs=60))

def test_identity(tiny):
    part = lambda c: run_name(c, tiny).rpartition('-')[2]
    assert part(CFG)==part(Config(epochs=2, overrides=dict(bs=60)))
    others = [Config(epochs=2, overrides=dict(bs=60), seed=1),
              Config(epochs=3, overrides=dict(bs=60)),
              Config(epochs=2, overrides=dict(bs=50))]
    assert len({part(c) for c in (CFG, *others)})==4
    tiny.key += 'x'
    assert run_name(CFG, tiny)!=run_name(CFG, type(tiny)(**{**vars(tiny),'key':tiny.key[:-1]}))

def test_damaged_state_starts_anew(tiny, tmp_path, capsys):
    want = pd.read_json(train_run(CFG, tiny, tmp_path/'a')/'metrics.jsonl', lines=True)
    folder = tmp_path/'b'/run_name(CFG, tiny)
    folder.mkdir(parents=True)
    (folder/'state.safetensors').write_bytes(b'\x80\x04\x95 a pickle, or half a file')
    got = pd.read_json(train_run(CFG, tiny, tmp_path/'b')/'metrics.jsonl', lines=True)
    assert 'pickle' in capsys.readouterr().err
    pd.testing.assert_frame_equal(got[SAME[1:]], want[SAME[1:]], check_exact=True)

def test_a_run_from_before_weights_knew_their_channels(tiny, tmp_path):
    "It is loaded, taught from and left alone; with names, weights for RGB do not pass for BGR"
    cfg = Config(epochs=1, dynamic=True, sampling='sample', overrides=dict(bs=60))
    folder = train_run(cfg, tiny, tmp_path)
    path = folder/'model.safetensors'
    want,(tensors,meta) = load_run(folder),load_tensors(path)
    named = [k for k in tensors if k.endswith('_extra_state')]
    assert len(named)==1
    bgr = {**meta, 'config':{**meta['config'], 'channels':'BGR'}}
    save_tensors(path, tensors, bgr)
    with pytest.raises(ValueError, match='are for channels R, G, B; the layer has B, G, R'): load_run(folder)
    save_tensors(path, {k:v for k,v in tensors.items() if k not in named}, meta)
    before = path.read_bytes()
    assert train_run(cfg, tiny, tmp_path)==folder and path.read_bytes()==before
    x = torch.from_numpy(tiny.images[:4]).permute(0,3,1,2)
    with torch.inference_mode():
        for s,rows in (('RGB',[0,1,2]),('BG',[2,1])): assert_same(load_run(folder)(x[:,rows], channels=s), want(x[:,rows], channels=s))

def test_a_state_from_before_weights_knew_their_channels(tiny, tmp_path):
    a,b = (get_learner(Config(dynamic=True, sampling='sample', seed=s, overrides=dict(bs=60)), tiny, 'cpu') for s in (0,1))
    a.create_opt()
    path = tmp_path/'state.safetensors'
    save_state(a, path, {})
    tensors,meta = load_tensors(path)
    save_tensors(path, {k:v for k,v in tensors.items() if not k.endswith('_extra_state')}, meta)
    load_state(b, path)
    assert_same(b.model.stem.weight, a.model.stem.weight)

def test_only_safetensors_are_read(tmp_path):
    import torch
    torch.save({'w':torch.zeros(1)}, tmp_path/'model.safetensors')
    with pytest.raises(ValueError, match='pickle'): load_run(tmp_path)

def test_read_only_folder(tiny, tmp_path):
    (tmp_path/'file').write_text('not a folder')
    with pytest.raises(OSError): train_run(CFG, tiny, tmp_path/'file'/'runs')

def test_full_disk_keeps_finished_runs(tiny, tmp_path):
    "The kernel refuses to write beyond a limit: the sweep stops with a clear error, what was done is whole, and later it goes on"
    first = train_run(CFG, tiny, tmp_path)
    before = {f.name:f.read_bytes() for f in first.iterdir()}
    soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cfgs = [CFG, Config(epochs=2, seed=1, overrides=dict(bs=60))]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,hard))
        with pytest.raises(OSError): sweep_runs(cfgs, tiny, tmp_path)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft,hard))
    assert {f.name:f.read_bytes() for f in first.iterdir()}==before
    assert not list(tmp_path.glob('*/.*.tmp')) and len(finished(tmp_path))==1
    assert sweep_runs(cfgs, tiny, tmp_path)=={} and len(finished(tmp_path))==2

def test_one_failed_run_does_not_stop_the_others(tiny, tmp_path):
    failed = sweep_runs([bad := Config(epochs=1, options=dict(width=0)), Config(epochs=1, overrides=dict(bs=60))], tiny, tmp_path)
    assert list(failed)==[run_name(bad, tiny)] and 'Error: ' in failed[run_name(bad, tiny)] and len(finished(tmp_path))==1

def test_two_runs_at_a_time(tiny, tmp_path):
    "As one at a time: a failed run is told, the others are done, and done stays done"
    first,second,bad = CFG,Config(epochs=2, seed=1, overrides=dict(bs=60)),Config(epochs=1, options=dict(width=0))
    train_run(first, tiny, tmp_path)
    before = finished(tmp_path)
    failed = sweep_runs([first,second,bad], tiny, tmp_path, jobs=2)
    after = finished(tmp_path)
    assert list(failed)==[run_name(bad, tiny)] and set(after)=={run_name(c, tiny) for c in (first,second)}
    assert before.items()<=after.items()

def test_tables_round_trip(tiny, tmp_path, monkeypatch):
    sweep_runs([CFG, Config(epochs=2, dynamic=True, sampling='sample', overrides=dict(bs=60))], tiny, tmp_path/'runs')
    a = collect_runs(tmp_path/'runs', tmp_path/'results'/'t')
    monkeypatch.setenv('MILS_RESULTS', str(tmp_path/'results'))
    b = read_results('t')
    assert {k:len(v) for k,v in a.items()}=={k:len(v) for k,v in b.items()}
    assert set(b['channels'].query("run.str.contains('small_cnn')").channels)==set('RGB RG RB GB R G B'.split())
    with pytest.raises(ValueError, match='no finished run'): collect_runs(tmp_path/'nowhere')
