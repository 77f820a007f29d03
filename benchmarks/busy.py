"""Train small_cnn with two processes at work beside it, and alone: what does the way threads wait for each other cost?

    python benchmarks/busy.py [--rounds 15] [--settings GOMP_SPINCOUNT=1000 OMP_WAIT_POLICY=PASSIVE] [--out FILE.csv]

Each setting has a process of its own, because it is read when torch is loaded. In a round each trains for some steps, in turn,
alone and beside two
processes that never rest, at `nice -n 10` and as if started in another terminal; medians are over rounds. Two ratios decide:

* **idle**: speed alone, against `torch's own` alone; at least 0.95
* **busy**: speed beside the two, against `one thread` beside the two; at least 0.8

`others` is the share of all cores that further processes took meanwhile. Where it is more than a few per cent the machine was not
quiet, and *idle* is not idle.
"""
import argparse,os,signal,subprocess,sys,time
from contextlib import contextmanager
import numpy as np,pandas as pd

SETTINGS = {'one thread': dict(OMP_NUM_THREADS='1'), "torch's own": dict(GOMP_SPINCOUNT='300000'), 'mils': {}}
DECIDES = ('OMP_NUM_THREADS','OMP_WAIT_POLICY','GOMP_SPINCOUNT','KMP_BLOCKTIME')

def worker(steps):
    "Train for `steps` at each line of standard input, and answer with images/s and the seconds of processor time"
    from mils.chroma import chroma                         # before torch, as in a notebook
    from mils.config import Config
    from mils.learner import get_learner
    import torch
    cfg = Config('small_cnn', precision='float32', epochs=1)
    ds = chroma(n_train=steps*cfg.settings['bs'], n_val=1, n_test=1)
    def fit():
        learn = get_learner(cfg, ds, 'cpu')
        start,used = time.perf_counter(),time.process_time()
        learn.fit(1)
        return len(ds.splits['train'])/(time.perf_counter()-start),time.process_time()-used
    fit()
    print('ready', torch.get_num_threads(), flush=True)
    for _ in sys.stdin: print(*fit(), flush=True)

def start(setting, steps):
    "A worker under `setting`, and nothing else that decides about threads"
    env = {k:v for k,v in os.environ.items() if k not in DECIDES} | setting | dict(TQDM_DISABLE='1')
    p = subprocess.Popen([sys.executable, __file__, '--worker', '--steps', str(steps)], env=env, text=True, bufsize=1,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return p,p.stdout.readline().split()[1]

@contextmanager
def neighbours(n=2):
    "`n` niced processes that never rest, stopped; yields what wakes them up and what stops them again"
    def start(): return subprocess.Popen([sys.executable, '-c', 'while True: pass'], preexec_fn=lambda: os.nice(10), start_new_session=True)
    ps = [start() for _ in range(n)]
    def signalled(s): return lambda: [p.send_signal(s) for p in ps]
    try:
        signalled(signal.SIGSTOP)()
        yield signalled(signal.SIGCONT),signalled(signal.SIGSTOP)
    finally:
        for p in ps: p.kill()

def cpu_seconds():
    "Processor time of the whole machine, and the part of it that was used"
    v = [int(o)/os.sysconf('SC_CLK_TCK') for o in open('/proc/stat').readline().split()[1:9]]
    return sum(v),sum(v)-v[3]-v[4]

def ask(p, busy):
    "One round of a worker: images/s, and the share of the machine that others took"
    before = cpu_seconds()
    p.stdin.write('\n')
    speed,used = map(float, p.stdout.readline().split())
    total,taken = (b-a for a,b in zip(before, cpu_seconds()))
    return dict(busy=busy, images_per_s=speed, others=float('nan') if busy else max(0., taken-used)/total)

def main():
    a = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    a.add_argument('--rounds', type=int, default=15)
    a.add_argument('--steps', type=int, default=6, help='of 128 images, in a round')
    a.add_argument('--settings', nargs='*', default=[], help='further ones, such as GOMP_SPINCOUNT=1000; commas join several')
    a.add_argument('--out', help='a CSV file of all rounds')
    a.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    a = a.parse_args()
    if a.worker: return worker(a.steps)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))            # so that the neighbours go, too
    settings = SETTINGS | {s: dict(o.split('=') for o in s.split(',')) for s in a.settings}
    workers = {k:start(v, a.steps) for k,v in settings.items()}
    rows = []
    with neighbours() as (wake,stop):
        for i in range(a.rounds):
            for busy in (False,True):
                if busy: wake()
                for k,(p,threads) in workers.items(): rows.append(dict(round=i, setting=k, threads=threads, **ask(p, busy)))
                stop()
            if a.out: pd.DataFrame(rows).to_csv(a.out, index=False, float_format='%.4g')
    for p,_ in workers.values(): p.stdin.close()
    report(pd.DataFrame(rows))

def report(t):
    "Print the ratios"
    speed = t.pivot(index=['round','busy'], columns='setting', values='images_per_s')
    alone,beside = speed.xs(False, level='busy'),speed.xs(True, level='busy')
    out = pd.DataFrame({'alone, images/s': alone.median().round(), 'beside two, images/s': beside.median().round()})
    out['idle'] = alone.div(alone["torch's own"], axis=0).median().round(2)
    out['busy'] = beside.div(beside['one thread'], axis=0).median().round(2)
    out['good'] = np.where((out.idle>=.95)&(out.busy>=.8), 'yes', '')
    print(out.loc[list(dict.fromkeys(t.setting))].to_string())
    print(f'others took {t.others.median():.0%} of {os.cpu_count()} cores')

if __name__=='__main__': main()
