"""Starting and memory: what a user waits for, and what a training of 50,000 cached pictures takes

    python benchmarks/start.py [--data FOLDER] [--size 64] [--rounds 5] [--steps 20] [--record]

Each measurement has a process of its own. Rows: seconds of `import mils.channels`, and whether that loads fastai or pandas; seconds of a
process that loads a set which is cached already; the peak of a process that trains the Wide ResNet of width 4, as the system counts it,
and without the pages of the cache, which the system takes back when memory is short.
"""
import argparse,json,subprocess,sys
from mils.bench import add_rows
from mils.identity import machine_and_date
import pandas as pd

IMPORTED = '''
import json,sys,time
start = time.perf_counter()
import mils.channels
row = dict(seconds=time.perf_counter()-start)
print(json.dumps(row | {f'loads_{k}':k in sys.modules for k in ('fastai','pandas')}))
'''

STARTED = '''
import json,sys,time
start = time.perf_counter()
from mils.specs import load_typed
ds = load_typed(sys.argv[1], int(sys.argv[2]))
print(json.dumps(dict(seconds=time.perf_counter()-start, pictures=len(ds.images))))
'''

TRAINED = '''
import json,sys
from pathlib import Path
from fastai.callback.core import Callback,CancelFitException
from mils.specs import load_typed
from mils.config import Config
from mils.learner import get_learner
class FewSteps(Callback):
    order = 90
    def after_step(self):
        if self.iter+1>=int(sys.argv[3]): raise CancelFitException
def mib(key):
    line = next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(key))
    return int(line.split()[1])/1024
ds = load_typed(sys.argv[1], int(sys.argv[2]))
cfg = Config('wide_resnet', dict(width=4))
learn = get_learner(cfg, ds, cbs=FewSteps())
learn.fit(1)
row = dict(pictures=len(ds.images), batch=cfg.settings['bs'], precision=cfg.precision)
print(json.dumps(row | dict(peak_mib=mib('VmHWM'), anonymous_mib=mib('RssAnon'))))
'''

def told(code, *args):
    "What a new process says in its last line"
    command = [sys.executable,'-c',code,*map(str, args)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])

def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='chroma', help='a folder or zip with images, or chroma')
    p.add_argument('--size', type=int, default=64, help='pixels of the side')
    p.add_argument('--rounds', type=int, default=5, help='of each start; all are told')
    p.add_argument('--steps', type=int, default=20, help='of training; the peak is reached in the first')
    p.add_argument('--record', action='store_true', help='into results/speed/starts.csv, which the report reads')
    a = p.parse_args(words)
    told(STARTED, a.data, a.size)                                      # what is not cached yet is cached now
    rows = []
    for r in range(a.rounds):
        rows.append(dict(what='import', round=r, **told(IMPORTED)))
        rows.append(dict(what='start', round=r, **told(STARTED, a.data, a.size)))
    rows.append(dict(what='training', round=0, **told(TRAINED, a.data, a.size, a.steps)))
    t = pd.DataFrame(rows)
    print(t.to_string(index=False))
    if a.record: add_rows(t.assign(size=a.size, **machine_and_date()), 'starts')

if __name__=='__main__': main()
