"""Faults and made inputs by the thousand: `python tests/campaign --minutes 60 --out results/campaign/cases.csv`

A case is known by its kind and its seed: `--case junk:17` tries it alone and keeps its files, `--only kills,lists` a part of the kinds.
Each call goes on where the table ends, and adds a row for each kind that it tried.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('TQDM_DISABLE', '1')
import argparse,csv,signal,sys,time
from collections import Counter
from datetime import datetime,timezone
from multiprocessing import get_context
from pathlib import Path
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
from campaign import archives,channels,lists,pictures,tables                 # noqa: E402
from campaign.cases import Told,tried                                         # noqa: E402
from campaign.faults import kinds as fault_kinds                              # noqa: E402

def sets(rng, root):
    "A data set of any layout, each picture with its class, its split and whether it can be used"
    from fuzz_field import faults,Maker,write
    from campaign.cases import right
    m = Maker(rng).make()
    (root/'in').mkdir()
    write(m, root/'in')
    return right(faults(m, root/'in'))

# group -> kind -> function of `(rng, root)`, and how many cases the full campaign has
inputs = dict(lists=(lists.junk, lists.mistakes), folders=(sets,),
    zips=(archives.damaged, archives.cut, archives.directory, archives.hostile),
    pictures=(pictures.whole, pictures.broken, pictures.channels, pictures.broken_channels),
    masks=(channels.masks, channels.wrong_masks), names=(channels.names, channels.wrong_names),
    tables=(tables.any_table, tables.consistent, tables.planted, tables.malformed))
group_of = {f.__name__:g for g,fs in inputs.items() for f in fs}
kinds = {f.__name__:f for fs in inputs.values() for f in fs}
COLUMNS = 'date group kind first last cases right refused skipped faults events seconds why'.split()
COUNTS = 'cases right refused skipped faults events'.split()
STUCK = 60                        # seconds without a word from the process that tries inputs

# --- inputs are tried in a process of their own, so that one that hangs or dies is a fault like another

def _try_inputs(pipe, kind, first):
    for seed in range(first, 10**9): pipe.send((seed,tried(kinds, kind, seed)))

def try_inputs(kind, first, seconds, most):
    "Seed -> `Told`, for some seconds or cases"
    end,done = time.time()+seconds,{}
    while len(done)<most and (time.time()<end or not done):
        here,there = get_context('fork').Pipe()
        p = get_context('fork').Process(target=_try_inputs, args=(there,kind,first+len(done)), daemon=True)
        p.start()
        there.close()
        try:
            while len(done)<most and (time.time()<end or not done):
                if not here.poll(STUCK): raise TimeoutError(f'nothing for {STUCK} s')
                seed,told = here.recv()
                done[seed] = told
        except (EOFError,OSError) as e: done[first+len(done)] = Told('fault', [f'the process hangs or died: {e!r}'])
        finally:
            p.kill()
            p.join()
    return done

def try_faults(kind, first, seconds, most):
    "The same of what needs processes of its own"
    end,done = time.time()+seconds,{}
    while len(done)<most and (time.time()<end or not done):
        done[first+len(done)] = tried(fault_kinds, kind, first+len(done), slow=None)
    return done

# --- the table

def read_rows(path):
    if not path.exists(): return []
    with path.open(newline='') as f: return list(csv.DictReader(f))

def next_seed(path, kind): return max((int(r['last'])+1 for r in read_rows(path) if r['kind']==kind), default=0)

def row(kind, done, date):
    "What came of some cases of a kind"
    n,why = Counter(t.outcome for t in done.values()),sorted({t.why for t in done.values() if t.why})
    return dict(date=date, group=group_of.get(kind, 'faults'), kind=kind, first=min(done), last=max(done), cases=len(done),
                right=n['right'], refused=n['refused'], skipped=n['skipped'], faults=n['fault'],
                events=sum(t.events for t in done.values()), seconds=round(sum(t.seconds for t in done.values()), 1), why='; '.join(why))

def add(path, new):
    "Enter a row; one of the same kind and call is made longer"
    rows = read_rows(path)
    for r in rows:
        if (r['date'],r['kind'])==(new['date'],new['kind']) and int(r['last'])+1==new['first']:
            for k in COUNTS: r[k] = int(r[k])+new[k]
            r['seconds'],r['last'] = round(float(r['seconds'])+new['seconds'], 1),new['last']
            r['why'] = r['why'] or new['why']
            break
    else: rows.append(new)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (tmp := path.with_suffix('.tmp')).open('w', newline='') as f:
        w = csv.DictWriter(f, COLUMNS, lineterminator='\n')
        w.writeheader()
        w.writerows(rows)
    tmp.replace(path)

def tell(kind, done):
    "Print faults, each with the words that try it again"
    for seed,t in done.items():
        if t.faults: print(f'--- {kind}:{seed}', *t.faults[:3], sep='\n', flush=True)

def turn(kind):
    "Seconds and cases of a kind before it is the next one's turn"
    if kind in kinds: return 30,50
    return (60 if kind.startswith('kill ') else 20),10**9

def turns(rows, kind):
    "How many turns a kind has had"
    some = [r for r in rows if r['kind']==kind]
    if kind in kinds: return sum(int(r['cases']) for r in some)/turn(kind)[1]
    return sum(float(r['seconds']) for r in some)/turn(kind)[0]

def campaign(only, minutes, out, cases):
    "Try kinds, the one with the fewest turns first; the number of faults"
    end,wrong,left = time.time()+60*minutes,0,dict.fromkeys(only, cases)
    date = f'{datetime.now(timezone.utc):%Y-%m-%d %H:%M}'
    while time.time()<end and any(left.values()):
        rows = read_rows(out)
        kind = min((k for k in only if left[k]), key=lambda k: turns(rows, k))
        try_some,(seconds,most) = try_inputs if kind in kinds else try_faults,turn(kind)
        done = try_some(kind, next_seed(out, kind), min(seconds, end-time.time()), min(most, left[kind]))
        left[kind] -= len(done)
        wrong += sum(bool(t.faults) for t in done.values())
        tell(kind, done)
        add(out, row(kind, done, date))
    return wrong

def show(path):
    t,n = read_rows(path),Counter()
    for r in t: n.update({(r['group'],k):int(r[k]) for k in COUNTS})
    for g in dict.fromkeys(r['group'] for r in t): print(f'{g:9}', *(f'{k} {n[g,k]:,}' for k in COUNTS))

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--minutes', type=float, default=10)
    p.add_argument('--cases', type=int, default=10**9, help='of each kind, at most')
    p.add_argument('--out', type=Path, default='results/campaign/cases.csv', help='table that is continued')
    p.add_argument('--only', help='kinds or groups, separated by commas: '+', '.join([*inputs,*kinds,'faults',*fault_kinds]))
    p.add_argument('--case', help='KIND:SEED, this one alone')
    p.add_argument('--keep', help='where its files are kept')
    a = p.parse_args()
    every = kinds|fault_kinds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))            # so that folders and mounts are taken away
    if a.case:
        kind,seed = a.case.split(':')
        told = tried(every, kind, int(seed), a.keep)
        print(told.outcome, told.why, *told.faults, sep='\n')
        sys.exit(bool(told.faults))
    wanted = a.only.split(',') if a.only else [*every]
    only = [k for k in every if k in wanted or group_of.get(k, 'faults') in wanted]
    wrong = campaign(only, a.minutes, a.out, a.cases)
    show(a.out)
    sys.exit(bool(wrong))
