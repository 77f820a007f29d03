"""All that is measured on a GPU, in ten minutes

    python benchmarks/gpu.py --data FOLDER --classes 0-49 --out DIR [--minutes 9.5] [--only p1,p4]
    python benchmarks/gpu.py --tiny --out DIR                              # a rehearsal on a processor

A row is written as soon as it is known, and the same command goes on where it was cut. The cheap and important comes first, and nothing
is started that would not end in time. The parts, each a CSV file in DIR:

* **p1**: the usual pipeline, ours and a bare loop, in turn (P1 to P3; what `mils bench` does)
* **p4**: ours and ResNet34 to the end, an epoch a row: seconds to 90 % of ResNet34's accuracy
* **p5**: finished runs an hour with several runs at a time, without the seconds in which processes start
* **memory**: the peak of a training of each network: what tensors took, and what PyTorch reserved for them
* **steps**: a training step plain, compiled, as CUDA graphs, and both
"""
import argparse,gc,sys,tempfile,time,traceback
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from mils.core import network_name,write_atomic
from mils.chroma import chroma
from mils.models import create_model
from mils.costs import _held,_peak,_start_peak,_training
from mils.machine import default_device,has_bf16
from mils.config import Config
from mils.learner import get_learner
from mils.sweeps import sweep_runs
from mils.bench import prepared,train_once
from mils.specs import load_typed,parse_classes
from mils.identity import environment,now
from mils.facts.gpu import JOBS,PARTS,SWITCHES,WAYS,memory_table,speed_table,switch_table
import pandas as pd,torch

SMALL = dict(model='small_cnn', options={})
DYNAMIC = dict(SMALL, dynamic=True, sampling='sample')
OURS = dict(model='strict4', options=dict(fine=2))
WIDE = dict(model='wide_resnet', options=dict(width=2))
RESNET = dict(model='resnet34', options=dict(stem='cifar'))
USUAL_RESNET = dict(model='resnet34', options=dict(stem='imagenet'))

SIZES = {'small_cnn':64}                                    # pixels; 32 for all others, as in Task B
FULL = dict(p1=dict(epochs=4, rounds=3), p4=dict(epochs=10, seeds=3), p5=dict(epochs=5, each=3, jobs=JOBS),
            memory=(OURS,RESNET,SMALL,DYNAMIC,WIDE,USUAL_RESNET), steps=(SMALL,OURS,RESNET),
            step=dict(batch=128, rounds=9, steps=20, backend='inductor'))
TINY = dict(p1=dict(epochs=2, rounds=1), p4=dict(epochs=2, seeds=1), p5=dict(epochs=1, each=2, jobs=(1,2)),
            memory=(OURS,DYNAMIC), steps=(SMALL,),
            step=dict(batch=4, rounds=2, steps=2, backend='aot_eager'))

def alone(f, *args):
    "What `f` returns in a process of its own"
    with ProcessPoolExecutor(1, get_context('spawn')) as pool: return pool.submit(f, *args).result()

def name_of(net): return network_name(net['model'], net['options'])+' dynamic'*net.get('dynamic', False)

class Lab:
    "Where and at which scale everything is measured"
    def __init__(self, data, classes, out, tiny):
        self.data,self.classes,self.out,self.tiny = data,classes,Path(out),tiny
        self.device,self.scale = default_device(),TINY if tiny else FULL
        self.tmp = tempfile.TemporaryDirectory(prefix='mils-gpu-')
        self.sets = {}
        e = environment(self.device)
        self.machine = dict(device=e['machine'], torch=e['torch'], cuda=torch.version.cuda or '', python=e['python'], cores=e['cores'],
            commit=e['commit'], data='chroma' if tiny else ' '.join(filter(None, (Path(data).name, classes))))
    def pictures(self, size):
        "The data at a size, loaded once"
        if self.tiny: size = 32
        if size not in self.sets:
            if self.tiny: self.sets[size] = chroma(n_train=20, n_val=10, n_test=10)
            else: self.sets[size] = load_typed(self.data, size, self.classes)
        return self.sets[size]
    def config(self, net, epochs=1, seed=0): return Config(**net, epochs=epochs, seed=seed, overrides=dict(bs=20) if self.tiny else {})
    def of(self, net): return self.pictures(SIZES.get(net['model'], 32))
    @cached_property
    def files(self):
        "The pictures as files, for the usual pipeline"
        if self.tiny or self.data=='chroma': data,classes = self.of(SMALL),None
        else: data,classes = self.data,parse_classes(self.classes)
        return prepared(data, self.tmp.name, SIZES['small_cnn'], classes=classes, device=self.device)

# the parts: each measurement takes the lab and its own parameters, and gives rows

def speed(lab, way, round, epochs, **_):
    "P1 to P3: one training of one way"
    job,ds,once = lab.files
    row = train_once(way, lab.config(SMALL, epochs, round), job)
    return [dict(row, n_train=len(ds.splits['train']), size=ds.size, decoding_s=once)]

def accuracy(lab, net, seed, epochs, **_):
    "P4: one training to the end; one epoch of another goes before, in which libraries choose their kernels"
    ds,cfg = lab.of(net),lab.config(net, epochs, seed)
    get_learner(lab.config(net), ds, lab.device).fit(1)
    ends = []
    def note(learn, rows): ends.append(time.perf_counter())
    learn = get_learner(cfg, ds, lab.device, write=note)
    start = time.perf_counter()
    learn.fit(epochs)
    kept = ('epoch','seconds','images_per_s','input_share','val_top1')
    return [dict({k:r[k] for k in kept}, elapsed=t-start, precision=cfg.precision, size=ds.size, n_train=len(ds.splits['train']))
            for r,t in zip(learn.record.rows, ends)]

def together(lab, net, jobs, epochs, each, **_):
    "P5: a sweep of short runs; what counts is from the moment when each process could have finished one"
    ds,n = lab.of(net),each*jobs if jobs>1 else 2*each
    cfgs = [lab.config(net, epochs, s) for s in range(n)]
    with tempfile.TemporaryDirectory(prefix='mils-runs-') as root:
        start = time.time()
        failed = sweep_runs(cfgs, ds, root, lab.device, jobs)
        seconds = time.time()-start
        if failed: raise RuntimeError(f'{len(failed)} of {n} runs failed: {next(iter(failed.values()))}')
        ends = sorted(o.stat().st_mtime for o in Path(root).glob('*/DONE'))
    rate = 3600*(n-jobs)/(ends[-1]-ends[jobs-1])
    return [dict(runs=n, seconds=seconds, first_s=ends[0]-start, runs_per_hour=rate, size=ds.size, n_train=len(ds.splits['train']),
                 precision=cfgs[0].precision)]

def train_memory(cfg, ds, device):
    "MiB of one epoch: peak of tensors and of what is reserved; of the process on a CPU"
    gc.collect()
    if device.type=='cuda': torch.cuda.empty_cache()
    before = _held(device)
    _start_peak(device)
    learn = get_learner(cfg, ds, device)
    start = _held(device)
    learn.fit(1)
    row = dict(before_mib=before, start_mib=start-before, peak_mib=_peak(device)-before)
    if device.type=='cuda': row['reserved_mib'] = torch.cuda.max_memory_reserved(device)
    return {k:v/2**20 for k,v in row.items()}

def memory(lab, net, **_):
    "The peak of a training"
    ds,cfg = lab.of(net),lab.config(net)
    if lab.device.type=='cuda': row = train_memory(cfg, ds, lab.device)
    else: row = alone(train_memory, cfg, ds, lab.device)
    return [dict(row, batch=cfg.settings['bs'], size=ds.size, n_train=len(ds.splits['train']), precision=cfg.precision)]

def switched(way, net, x, precision, backend):
    "The network with a switch on"
    if way=='plain': return net
    if way=='compile': return torch.compile(net, backend=backend)
    if x.device.type!='cuda': raise RuntimeError('CUDA graphs need a GPU')
    if way=='compile+graphs': return torch.compile(net, mode='reduce-overhead')
    with torch.autocast('cuda', torch.bfloat16, enabled=precision=='bfloat16', cache_enabled=False):
        return torch.cuda.make_graphed_callables(net, (x,))

def settle(device):
    if device.type=='cuda': torch.cuda.synchronize(device)

def ms_of(step, n, device):
    "Milliseconds of a step, by the device's own clock where it has one"
    if device.type=='cuda':
        start,end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(n): step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)/n
    start = time.perf_counter()
    for _ in range(n): step()
    return 1e3*(time.perf_counter()-start)/n

def time_steps(net, n_classes, size, device, precision, batch, rounds, steps, backend):
    "A row a switch: seconds until it runs, and milliseconds of a step with quartiles over rounds"
    torch.manual_seed(0)
    plain = create_model(net['model'], n_classes, size=size, **net['options']).to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    calls,rows = {},{}
    for way in SWITCHES:
        settle(device)
        start = time.perf_counter()
        try:
            step = _training(switched(way, deepcopy(plain).train(), x, precision, backend), x, precision)
            for _ in range(4): step()
            settle(device)
            calls[way],rows[way] = step,dict(ready_s=time.perf_counter()-start, why='')
        except Exception as e: rows[way] = dict(why=f'{type(e).__name__}: {e}'.splitlines()[0][:200])
    times = {way:[] for way in calls}
    for r in range(rounds):
        order = list(calls)
        for way in order[r%len(order):]+order[:r%len(order)]: times[way].append(ms_of(calls[way], steps, device))
    for way,ms in times.items(): rows[way] |= dict(zip(('ms_low','ms','ms_high'), pd.Series(ms).quantile([.25,.5,.75])))
    base = rows['plain'].get('ms')
    for way in calls: rows[way]['gain'] = base/rows[way]['ms']
    return [dict(switch=way, **r) for way,r in rows.items()]

def switches(lab, net, batch, rounds, steps, backend, **_):
    "`torch.compile` and CUDA graphs against a plain step, in a process of its own, so that what fails there harms nothing else"
    ds = lab.of(net)
    precision = 'bfloat16' if has_bf16(lab.device) else 'float32'
    rows = alone(time_steps, net, ds.n_classes, ds.size, lab.device, precision, batch, rounds, steps, backend)
    return [dict(r, size=ds.size, precision=precision) for r in rows]

@dataclass
class Measurement:
    "What is to be measured: `key` tells it from all others of its part"
    part:str
    f:callable
    key:dict
    about:float                                             # seconds on a GPU
    net:dict = None
    @property
    def title(self): return ' '.join([self.part, *(f'{k}={v}' for k,v in self.key.items())])

def plan(scale):
    "All measurements, the cheap and important ones first"
    p1,p4,p5 = (scale[k] for k in ('p1','p4','p5'))
    def speeds(r): return [Measurement('p1', speed, dict(way=w, round=r, epochs=p1['epochs']), 25) for w in WAYS]
    def accuracies(seed):
        return [Measurement('p4', accuracy, dict(network=name_of(n), seed=seed, epochs=p4['epochs']), t, n)
                for n,t in ((OURS,25), (RESNET,60))]
    def sweep(jobs): return Measurement('p5', together, dict(network=name_of(DYNAMIC), jobs=jobs, epochs=p5['epochs'], each=p5['each']),
                                        30+8*jobs, DYNAMIC)
    peaks = [Measurement('memory', memory, dict(network=name_of(n)), 12, n) for n in scale['memory']]
    *quick,last = [Measurement('steps', switches, dict(network=name_of(n), **scale['step']), 120 if n is RESNET else 60, n)
                   for n in scale['steps']]
    return [*accuracies(0), *speeds(0), *peaks, *quick, *[sweep(j) for j in p5['jobs'][:4]],
            *[m for r in range(1, p1['rounds']) for m in speeds(r)], last, *[sweep(j) for j in p5['jobs'][4:]],
            *[m for r in range(1, p4['seeds']) for m in accuracies(r)]]

def read_rows(path):
    "Rows as they were written, all of them text"
    if not path.exists(): return []
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict('records')

def text(v): return f'{v:.6g}' if isinstance(v, float) else str(v)

def is_done(m, lab, rows):
    "Whether these rows hold the measurement, made on this device with this data"
    key = m.key | {k:lab.machine[k] for k in ('device','data')}
    return any(all(r.get(k)==text(v) for k,v in key.items()) for r in rows)

def measure(m, lab):
    "Measure and write"
    options = dict(m.key, net=m.net) if m.net else m.key
    rows = m.f(lab, **options)
    path = lab.out/f'{m.part}.csv'
    new = [{k:text(v) for k,v in (m.key | r | lab.machine | dict(date=now())).items()} for r in rows]
    write_atomic(path, pd.DataFrame([*read_rows(path), *new]).fillna('').to_csv(index=False))

def run_all(lab, measurements, minutes):
    "Measure what is not done yet; how many measurements failed"
    start,failed = time.monotonic(),0
    for m in measurements:
        if is_done(m, lab, read_rows(lab.out/f'{m.part}.csv')): continue
        left = 60*minutes-(time.monotonic()-start)
        if left<=(0 if lab.tiny else m.about):
            print(f'{m.title}: left out, {max(left, 0):.0f} s are left and it takes about {m.about:.0f}', flush=True)
            continue
        t = time.monotonic()
        try:
            measure(m, lab)
            print(f'{m.title}: {time.monotonic()-t:.1f} s', flush=True)
        except Exception:
            failed += 1
            print(f'{m.title}: failed\n{traceback.format_exc()}', flush=True)
    return failed

def show(out):
    "Print what is known of each card"
    for table in (speed_table,memory_table,switch_table): print('\n'+table(out).to_string())

def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='chroma', help='a folder or zip with images, or chroma')
    p.add_argument('--classes', help='labels to keep, such as 0-49; default: all')
    p.add_argument('--out', default='gpu', help='a folder for the CSV files')
    p.add_argument('--minutes', type=float, default=9.5, help='nothing is started that would end later')
    p.add_argument('--only', help='parts, such as p1,p4; default: '+','.join(PARTS))
    p.add_argument('--tiny', action='store_true', help='a rehearsal: a few pictures of chroma, and a few steps')
    a = p.parse_args(words)
    only = a.only.split(',') if a.only else list(PARTS)
    if unknown := set(only)-set(PARTS): p.error(f'--only {unknown.pop()}; possible: {", ".join(PARTS)}')
    if default_device().type!='cuda' and not a.tiny:
        print('there is no GPU here; --tiny rehearses all of it on a processor')
        return 0
    lab = Lab(a.data, a.classes, a.out, a.tiny)
    lab.out.mkdir(parents=True, exist_ok=True)
    with lab.tmp: failed = run_all(lab, [m for m in plan(lab.scale) if m.part in only], a.minutes)
    show(lab.out)
    return int(failed>0)

if __name__=='__main__': sys.exit(main())
