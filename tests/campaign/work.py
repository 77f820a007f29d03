"What is disturbed: building a cache, training, sweeping with two workers, writing tables, exporting; each in a process of its own"
import json,os,shutil,signal,sys,traceback
from functools import lru_cache
from multiprocessing import get_context
import mils.runs,mils.sweeps
import numpy as np,pandas as pd,torch,torch._dynamo,torch.export              # here, so that no process loads them again
from fuzz_field import picture
from mils.arms import grid
from mils.cache import cached
from mils.chroma import chroma
from mils.config import Config
from mils.decode import decode  # noqa: F401
from mils.export import export as write_export
from mils.manifest import read_manifest
from mils.runs import train_run
from mils.sweeps import sweep_runs
from mils.tables import collect_runs
from mils.trained import load_run

SIZE = 256
ONE = Config(epochs=3, dynamic=True, sampling='sample', overrides=dict(bs=32))
ARMS = [dict(dynamic=True, sampling='sample'), dict(model='wide_resnet', options=dict(width=1))]
CFGS = grid(ARMS, seeds=[0,1], epochs=2, overrides=dict(bs=32))

@lru_cache(None)
def pictures(): return chroma(n_train=96, n_val=40, n_test=40)

def photos(path, n=160, kind='png'):
    "A folder of pictures, each of which shows its number"
    (path/'images').mkdir(parents=True)
    for i in range(n): (path/'images'/f'{i}.{kind}').write_bytes(picture(i, kind))
    for s,rows in (('train',range(n-20)), ('val',range(n-20,n-10)), ('test',range(n-10,n))):
        (path/f'{s}.txt').write_text(''.join(f'{i}.{kind} {i%2}\n' for i in rows))

# --- the works: `at` is where they write, `calm` holds what nothing disturbed

def cache(at, calm): return cached(read_manifest(calm/'photos'), SIZE, cache_dir=at/'cache')
def train(at, calm): return train_run(ONE, pictures(), at/'runs')
def sweep(at, calm):
    failed = sweep_runs(CFGS, pictures(), at/'runs', jobs=2)
    if failed: raise RuntimeError(f'failed runs: {failed}')
def sweep_spawned(at, calm): return sweep(at, calm)                            # with processes that begin anew, as in earnest
def sweep_alone(at, calm): return sweep_runs(CFGS, pictures(), at/'runs')
def tables(at, calm): return collect_runs(calm/'runs', at/'tables')
def export(at, calm):
    net = load_run(calm/'one')
    torch.manual_seed(0)
    return write_export(net, at/'net.pt2', 255*torch.rand(2, 3, 32, 32), 'GB')

def before(work, at, calm):
    "What lies there before a work begins: tables of other runs, a file of another set"
    at.mkdir(parents=True, exist_ok=True)
    if work=='tables': shutil.copytree(calm/'tables before', at/'tables')
    if work=='export': shutil.copy(calm/'before.pt2', at/'net.pt2')

# --- what came of it, so that it can be compared to the bit

SAME = ['run','epoch','train_loss','val_loss','val_top1','val_top5','lr']

def weights(folder):
    return {k:v.numpy().tobytes() for k,v in load_run(folder).net.state_dict().items() if hasattr(v, 'numpy')}

def _run(folder):
    rows = [json.loads(l) for l in (folder/'metrics.jsonl').read_text().splitlines()]
    preds = pd.read_parquet(folder/'predictions.parquet')
    return dict(rows=[{k:r[k] for k in SAME if k in r} for r in rows], preds=preds.to_csv(), weights=weights(folder))

def outcome(work, at, calm):
    "All of a result that must not depend on how it was disturbed"
    if work=='cache':
        ds = cache(at, calm)
        return dict(key=ds.key, images=np.asarray(ds.images).tobytes(), names=ds.names, labels=ds.labels.tolist())
    if work in ('train','sweep','sweep_spawned','sweep_alone'):
        return {f.parent.name:_run(f.parent) for f in sorted((at/'runs').glob('*/DONE'))}
    if work=='tables': return {f.name:_table(f).to_csv(index=False) for f in table_files(at/'tables')}
    return (at/'net.pt2').read_bytes()

def table_files(out): return [f for f in sorted(out.iterdir()) if f.suffix in ('.csv','.parquet')]
def _table(f):
    t = pd.read_parquet(f) if f.suffix=='.parquet' else pd.read_csv(f, dtype=str, keep_default_na=False)
    return t.sort_values([*t.columns], ignore_index=True)

# --- a process that does a work, and what kills it

def _kill_at(n, at):
    "`kill -9` at the n-th time that something changes below `at`"
    left = [n]
    def hook(event, args):
        writes = event=='open' and (set(str(args[1] or ''))&set('wa+x') or (args[2] or 0)&(os.O_WRONLY|os.O_RDWR))
        if not writes and event not in ('os.rename','os.remove','os.truncate','os.mkdir'): return
        if not str(args[0]).startswith(str(at)): return
        left[0] -= 1
        if left[0]<0: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def child(work, at, calm, told, kill_at, patch):
    "Do a work; what went wrong is written to `told`"
    sys.stdout = sys.stderr = open(os.devnull, 'w')
    if work=='sweep': mils.sweeps.get_context = lambda how: get_context('fork')
    if patch: patch()
    if kill_at is not None: _kill_at(kill_at, at)
    try: globals()[work](at, calm)
    except BaseException as e:
        told.write_text(json.dumps([*(o.__name__ for o in type(e).__mro__), str(e), traceback.format_exc(limit=-5)]))
        os._exit(1)
    os._exit(0)

def clock_back(days=3):
    "The clock was set back: files are from the future, and so is what a run says of its end"
    import datetime,time
    now = time.time
    time.time = lambda: now()-86400*days
    class Earlier(datetime.datetime):
        @classmethod
        def now(cls, tz=None): return datetime.datetime.now(tz)-datetime.timedelta(days)
    mils.runs.datetime = Earlier

def server():
    "Starts processes that have loaded everything"
    context = get_context('forkserver')
    context.set_forkserver_preload(['campaign.work'])
    return context

