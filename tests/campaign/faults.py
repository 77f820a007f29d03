"Faults of machines: `kill -9`, full disks, folders that cannot be written, damaged files, clocks, several processes at once"
import atexit,json,os,shutil,subprocess,tempfile,time
from contextlib import contextmanager
from functools import lru_cache,partial
from pathlib import Path
from campaign.cases import right,Skip
from campaign import work as works

def _flip(f, at):
    b = bytearray(f.read_bytes())
    b[at] ^= 1
    f.write_bytes(b)

# --- processes

class Process:
    "A work in a process of its own"
    def __init__(self, work, at, kill_at=None, patch=None):
        self.told = Path(tempfile.mkstemp(dir=calm(), suffix='.told')[1])
        self.told.unlink()
        self.p = works.server().Process(target=works.child, args=(work,at,calm(),self.told,kill_at,patch))
        self.p.start()
    def ended(self, seconds=600):
        "The exit status; `None` where it still runs"
        self.p.join(seconds)
        return self.p.exitcode
    def children(self):
        path = Path(f'/proc/{self.p.pid}/task/{self.p.pid}/children')
        return path.read_text().split() if path.exists() else []
    def kill(self):
        "Kill it; faults of processes that outlive it"
        kids = self.children()
        self.p.kill()
        self.p.join()
        end = time.time()+30
        while left := [o for o in kids if Path(f'/proc/{o}').exists() and '(zombie)' not in Path(f'/proc/{o}/status').read_text()]:
            if time.time()>end: return [f'processes outlive the sweep: {left}']
            time.sleep(.05)
        return []
    def error(self):
        "Names of the classes of its error, its message, its end"
        if not self.told.exists(): return [],'',f'no word; status {self.p.exitcode}'
        *names,text,trace = json.loads(self.told.read_text())
        return names,text,trace

def done(work, at, **how):
    "Do it undisturbed; faults"
    p = Process(work, at, **how)
    if p.ended()!=0:
        if p.p.exitcode is None: p.kill()
        yield f'{work} fails afterwards: {p.error()[2]}'

@lru_cache(None)
def calm():
    "What nothing disturbed, made once"
    root = Path(tempfile.mkdtemp(prefix='calm'))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root

@lru_cache(None)
def undisturbed(work):
    "`(outcome, seconds)` of a work; what it needs is there afterwards"
    need = dict(tables=['sweep_alone'], export=['train']).get(work, [])
    for o in need: undisturbed(o)
    root = calm()
    if work=='cache' and not (root/'photos').exists(): works.photos(root/'photos')
    if work=='tables' and not (root/'tables before').exists():
        shutil.copytree(root/'at sweep_alone'/'runs', root/'runs')
        first = sorted((root/'runs').iterdir())[0]
        (root/'elsewhere').mkdir()
        first.rename(root/'elsewhere'/first.name)
        works.collect_runs(root/'elsewhere', root/'tables before')
    if work=='export' and not (root/'one').exists():
        shutil.copytree(next((root/'at train'/'runs').iterdir()), root/'one')
        works.write_export(works.load_run(root/'one'), root/'before.pt2', 255*works.torch.rand(2, 3, 32, 32), 'RG')
    at = root/f'at {work}'
    works.before(work, at, root)
    start = time.time()
    if faults := list(done(work, at)): raise RuntimeError(faults[0])
    seconds = time.time()-start
    return works.outcome(work, at, root),seconds

def same(work, at):
    "Faults of a result, which has to be equal to the bit"
    want = undisturbed(work)[0]
    try: got = works.outcome(work, at, calm())
    except (ValueError,OSError,KeyError) as e: return [f'{work} cannot be read: {e!r}']
    if got==want: return []
    if not isinstance(got, dict): return [f'{work} gave another result']
    return [f'{work} gave other {[k for k in want.keys()|got.keys() if got.get(k)!=want.get(k)]}']

# --- kill -9

def finished(work, at):
    "What is finished: it must be there ever after, untouched"
    if work=='cache': return {}
    if work in ('train','sweep','sweep_spawned'): return {f:f.stat().st_mtime_ns for f in (at/'runs').glob('*/DONE')}
    return {}

def whole(work, at):
    "Faults of what stands there after a `kill -9`"
    if work=='export' and (at/'net.pt2').read_bytes() not in (undisturbed(work)[0],(calm()/'before.pt2').read_bytes()): yield 'half a file'
    if work=='tables': yield from table_faults(at/'tables')
    for d in (at/'runs').glob('*/DONE'):
        try: works._run(d.parent)
        except Exception as e: yield f'{d.parent.name} is called done: {e!r}'

def table_faults(out):
    "Every run in `runs.csv` has its rows in every table, once; no row is lost that was there before"
    try: t = {f.stem:works._table(f) for f in works.table_files(out)}
    except ValueError as e: return [f'a table is not whole: {e}']
    faults = [f'{k} holds rows twice' for k,o in t.items() if o.duplicated().any()]
    runs = set(t['runs'].run)
    faults += [f'{len(runs-set(o.run))} of {len(runs)} runs have no rows in {k}' for k,o in t.items() if runs-set(o.run)]
    before = works._table(calm()/'tables before'/'runs.csv').run
    if lost := set(before)-runs: faults.append(f'{lost} are lost')
    return faults

def killed(rng, root, work):
    "Up to four times killed at a random moment, or when something is written; then it may finish"
    at,seconds = root/'at',undisturbed(work)[1]
    works.before(work, at, calm())
    faults,kills,was = [],0,{}
    for _ in range(rng.randint(1,4)):
        by_write = rng.random()<.5 and work!='sweep_spawned'
        p = Process(work, at, kill_at=rng.randrange(dict(cache=12, tables=16, export=4, train=25).get(work, 12)) if by_write else None)
        code = p.ended(30 if by_write else rng.uniform(0, 1.1*seconds))
        if code is None or code<0: kills += 1
        if code is None: faults += p.kill()
        elif code>0 and 'ChildProcessError' in p.error()[0]: kills += 1                # a process of the sweep, and not the sweep itself
        elif code>0: faults.append(f'{work} fails: {p.error()[2]}')
        now = finished(work, at)
        if not was.items()<=now.items(): faults.append(f'finished and lost or done again: {was.keys()-now.keys() or "touched"}')
        was = now
        faults += whole(work, at)
    for o in at.rglob('.*.tmp'): os.utime(o, (time.time()-2*86400,)*2)             # two days later
    faults += done(work, at)
    if not was.items()<=finished(work, at).items(): faults.append('what was finished was done again')
    faults += same(work, at)
    if (left := [*at.rglob('.*.tmp')]) and work!='cache': faults.append(f'left behind: {left}')
    return right(faults, kills)

# --- disks

@contextmanager
def mounted(at, *how):
    "Mount something for a while"
    at.mkdir(parents=True, exist_ok=True)
    if os.geteuid(): raise Skip('mounting needs root')
    if why := subprocess.run(['mount',*how,str(at)], capture_output=True, text=True).stderr: raise Skip(why.strip().splitlines()[0])
    try: yield at
    finally: subprocess.run(['umount','-l',str(at)], check=True)

DISK = 'OSError',
FITS = dict(cache=33_000, train=900, tables=400, export=300)                  # KiB that are about enough

def full(rng, root):
    "On a disk of any size: done, or an error of the disk and nothing that was there is harmed; with more room it goes on"
    work = rng.choice([*FITS])
    undisturbed(work)
    with mounted(root/'disk', '-t','tmpfs','-o',f'size={rng.randint(FITS[work]//8, FITS[work])}k','tmpfs') as at:
        try: works.before(work, at, calm())
        except OSError: return right([], 0)                                    # not even the old files fit
        p = Process(work, at)
        code = p.ended()
        faults = [*whole(work, at)]
        if code:
            names,text,trace = p.error()
            if 'OSError' not in names: faults.append(f'{work} on a full disk: {trace}')
            elif 'full' not in text and 'No space' not in text: faults.append(f'the error does not tell that the disk is full: {text}')
        subprocess.run(['mount','-o','remount,size=200m',str(at)], check=True)
        faults += [*done(work, at), *same(work, at)]
    return right(faults)

def read_only(rng, root):
    "In a folder that cannot be written: an error of the disk, nothing changes; a whole cache and finished runs can be read"
    work = rng.choice([*FITS])
    undisturbed(work)
    at,there = root/'at',rng.random()<.5
    works.before(work, at, calm())
    if there: assert not list(done(work, at))
    (root/'view').mkdir()
    def all_files(): return {f:f.read_bytes() for f in at.rglob('*') if f.is_file()}
    before,faults = all_files(),[]
    with mounted(root/'view', '--bind','-o','ro',str(at)) as view:
        subprocess.run(['mount','-o','remount,ro,bind',str(view)], check=True)
        p = Process(work, view)
        names,text,trace = p.error() if p.ended() else ([],'','')
        if names and 'OSError' not in names: faults.append(f'{work} in a read-only folder: {trace}')
        if not names and not (there and work=='cache'): faults.append(f'{work} says nothing about a read-only folder')
        if names and there and work=='cache': faults.append(f'a whole cache is not read where it cannot be written: {text}')
        if there: faults += same(work, view)
    if all_files()!=before: faults.append('something changed')
    return right([*faults, *done(work, at), *same(work, at)])

# --- damage

def cut_cache(rng, root):
    "A file of the cache is cut or has a wrong bit, perhaps in the middle of a build: pixels and key are right again"
    undisturbed('cache')
    at,faults = root/'at',[]
    if rng.random()<.5: faults += done('cache', at)
    else: Process('cache', at, kill_at=rng.randrange(3, 12)).ended()
    files = [f for f in at.rglob('*') if f.is_file() and f.stat().st_size and not f.name.endswith('.lease')]
    if not files: return right(faults)
    f = rng.choice(files)
    if rng.random()<.5: os.truncate(f, rng.randrange(f.stat().st_size))
    else: _flip(f, rng.randrange(f.stat().st_size))
    faults += done('cache', at)
    return right([f'{f.relative_to(at)}: {o}' for o in [*faults, *same('cache', at)]])

RECORDS = 'config.json','env.json','metrics.jsonl','predictions.parquet','DONE','model.safetensors'

def cut_record(rng, root):
    "A file of a finished run is cut: an error that names it, or everything is as it was"
    undisturbed('tables')
    at = root/'at'
    shutil.copytree(calm()/'runs', at/'runs')
    f = rng.choice(sorted((at/'runs').glob('*')))/rng.choice(RECORDS)
    b = f.read_bytes()
    f.write_bytes(b[:rng.randrange(len(b))])
    unused = f.suffix=='.safetensors'                                             # no table needs weights
    reads = [('tables', lambda: works.collect_runs(at/'runs'), works.collect_runs(calm()/'runs')),
             ('network', lambda: works.weights(f.parent), works.weights(calm()/'runs'/f.parent.name))]
    faults = []
    for what,read,want in reads:
        try: got = read()
        except (ValueError,OSError) as e:
            if str(f) not in str(e): faults.append(f'{what}: the error does not name {f.name}: {e}')
        else:
            same = got==want if what=='network' else all(got[k].equals(want[k]) for k in want)
            if not same and not (what=='tables' and unused): faults.append(f'{what}: {f.name} is cut, and something else is read')
    return right(faults)

def cut_table(rng, root):
    "A written table is cut in the middle of a line: the next `results` makes it whole, or tells it"
    undisturbed('tables')
    works.before('tables', root/'at', calm())
    f = rng.choice(works.table_files(root/'at'/'tables'))
    b = f.read_bytes()
    k = rng.randrange(1, len(b))
    if f.suffix=='.csv' and b[k-1:k]==b'\n': k -= 1
    f.write_bytes(b[:k])
    p = Process('tables', root/'at')
    if p.ended():
        names,text,trace = p.error()
        faults = [] if {'ValueError','OSError'}&{*names} and f.name in text else [f'{f.name} is cut: {trace}']
        return right(faults)
    return right([f'{f.name} is cut: {o}' for o in same('tables', root/'at')])

def cut_state(rng, root):
    "What an interrupted run left is cut or has a wrong bit: it goes on or begins anew, and the result is the same"
    _,seconds = undisturbed('train')
    at = root/'at'
    p = Process('train', at, kill_at=rng.randrange(6, 22))
    if p.ended(60) is None: p.kill()
    files = [f for f in at.rglob('*') if f.is_file() and f.stat().st_size and not f.name.endswith('.lease') and f.name!='config.json']
    if not files or list(at.rglob('DONE')): return right([])
    f = rng.choice(files)
    os.truncate(f, rng.randrange(f.stat().st_size))
    return right([f'{f.name}: {o}' for o in [*done('train', at), *same('train', at)]])

def twin(rng, root):
    "A picture is replaced by another one of the same length, whose time is that of the old one"
    at = root/'photos'
    works.photos(at, 60, 'bmp')
    def read(): return works.cached(works.read_manifest(at), 32, cache_dir=root/'cache')
    read()
    i,j = rng.sample(range(60), 2)
    f,b = at/'images'/f'{i}.bmp',(at/'images'/f'{j}.bmp').read_bytes()
    t = f.stat()
    if rng.random()<.5: f.write_bytes(b)
    else:
        (root/'new').write_bytes(b)
        os.utime(root/'new', ns=(t.st_atime_ns,t.st_mtime_ns))
        (root/'new').rename(f)
    os.utime(f, ns=(t.st_atime_ns,t.st_mtime_ns))
    ds = read()
    seen = ds.images[ds.names.index(f'images/{i}.bmp')]
    return right([] if (seen==works.decode(b, 32)).all() else ['the old picture is read'])

# --- the clock, and several at once

def clock(rng, root):
    "The clock is set back in the middle of a work, and what was written before is from the future"
    work = rng.choice(['cache','train','tables'])
    _,seconds = undisturbed(work)
    at = root/'at'
    works.before(work, at, calm())
    p = Process(work, at)
    if p.ended(rng.uniform(0, seconds)) is None: p.kill()
    was = {f.relative_to(at) for f in finished(work, at)}
    for f in at.rglob('*'): os.utime(f, (time.time()+3*86400,)*2)
    faults = [*whole(work, at), *done(work, at, patch=works.clock_back), *same(work, at)]
    if not was<={f.relative_to(at) for f in finished(work, at)}: faults.append('a finished run is lost')
    return right(faults)

def together(rng, root):
    "Two sweeps of the same runs, and `mils results` all the while: every table is whole, every run is there once"
    undisturbed('sweep_alone')
    at,faults,n = root/'at',[],0
    sweeps = []
    for _ in range(2):
        sweeps.append(Process('sweep_alone', at))
        time.sleep(rng.uniform(0,1))
    while any(p.ended(rng.uniform(.05,.6)) is None for p in sweeps):
        n += 1
        try: t = works.collect_runs(at/'runs', at/'tables')
        except ValueError as e:
            if 'no finished run' not in str(e): faults.append(f'results fail in between: {e}')
            continue
        if t['runs'].run.duplicated().any(): faults.append('a run is in the table twice')
        if set(t['epochs'].groupby('run').size())!={2}: faults.append('a run without its epochs')
    faults += [f'a sweep fails: {p.error()[2]}' for p in sweeps if p.p.exitcode]
    t = works.collect_runs(at/'runs', at/'tables')
    want = works.collect_runs(calm()/'at sweep_alone'/'runs')
    if list(t['runs'].run)!=list(want['runs'].run): faults.append('other runs than of one sweep')
    for k in ('epochs','predictions'):
        columns = works.SAME if k=='epochs' else [*want[k].columns]
        if not t[k][columns].astype(str).equals(want[k][columns].astype(str)): faults.append(f'other {k} than of one sweep')
    return right([*faults, *same('sweep_alone', at)], n)

KILLED = 'cache','train','sweep','tables','export','sweep_spawned'
kinds = {f'kill {o}':partial(killed, work=o) for o in KILLED}
kinds |= {f.__name__:f for f in (full,read_only,cut_cache,cut_record,cut_table,cut_state,twin,clock,together)}
