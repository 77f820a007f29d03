"""Time the stem of a network: plain convolution, folded, one channel set, and a batch in which every sample has its own set.

    python benchmarks/stem.py [--out results/task-a/latency.csv]

Each round times every way once, in turn; medians and quartiles are over rounds. `ratio` is to the plain convolution of the same round.
"""
import argparse
from copy import deepcopy
import numpy as np,pandas as pd,torch
from torch import nn
from torch.utils.benchmark import Timer
from mils.channels import DynamicConv2d,convert
from mils.core import write_atomic
from mils.data import ChannelStats
from mils.learner import sample_masks
from mils.models import create_model

CORR = np.array([[1,.93,.84],[.93,1,.94],[.84,.94,1]])
STATS = ChannelStats(np.zeros(3), np.ones(3), CORR)
STEMS = {                     # filters, kernel, stride, pixels, batch
    'small_cnn, 32 px':   (32, 3, 2, 32, 128),
    'ResNet, 64 px':      (64, 7, 2, 64, 64),
    'ResNet, 224 px':     (64, 7, 2, 224, 8),
    'ViT-Ti/16, 224 px':  (192, 16, 16, 224, 16)}

def ways(plain, dyn, fold, size, bs):
    "What is timed: name -> a call without arguments"
    x = torch.randn(bs, 3, size, size).contiguous(memory_format=torch.channels_last)
    gb,mask = x[:,1:].contiguous(memory_format=torch.channels_last),sample_masks(bs, 3, torch.Generator().manual_seed(0))
    full,part = fold('RGB'),fold('GB')
    return {'plain': lambda: plain(x), 'folded, RGB': lambda: full(x), 'folded, GB': lambda: part(gb),
            'one set, GB': lambda: dyn(gb, channels='GB'), 'mixed batch': lambda: dyn(x, mask=mask)}

@torch.inference_mode()
def measure(calls, rounds, threads):
    "Seconds of one call, a row a way and round, the ways in turn"
    timers = {k:Timer('f()', globals=dict(f=f), num_threads=threads) for k,f in calls.items()}
    n = {k:max(1, int(.05/t.timeit(3).median)) for k,t in timers.items()}
    return pd.DataFrame([dict(round=r, way=k, seconds=t.timeit(n[k]).median) for r in range(rounds) for k,t in timers.items()])

def summary(t):
    "Median, quartiles, and the ratio to the plain convolution"
    w = t.pivot(index='round', columns='way', values='seconds')
    q,r = w.quantile([.25,.5,.75]).T,w.div(w.plain, axis=0).quantile([.25,.5,.75]).T
    return pd.DataFrame(dict(ms=1e3*q[.5], ms_low=1e3*q[.25], ms_high=1e3*q[.75], ratio=r[.5], ratio_low=r[.25], ratio_high=r[.75]))

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', help='a CSV file')
    p.add_argument('--rounds', type=int, default=15)
    p.add_argument('--threads', type=int, default=torch.get_num_threads())
    a = p.parse_args()
    parts = []
    for name,(nf,ks,stride,size,bs) in STEMS.items():
        conv = nn.Conv2d(3, nf, ks, stride, ks//2 if stride<ks else 0, bias=False).to(memory_format=torch.channels_last)
        dyn = DynamicConv2d.from_conv(conv, stats=STATS)
        parts.append(summary(measure(ways(conv, dyn, dyn.fold, size, bs), a.rounds, a.threads)).reset_index().assign(what=f'stem of {name}', batch=bs))
    for name,size,bs,opts in (('small_cnn', 32, 128, dict(last=2)), ('resnet34', 64, 16, dict(stem='imagenet'))):
        net = create_model(name, 50, size=size, **opts).eval().to(memory_format=torch.channels_last)
        dyn = convert(deepcopy(net), 'RGB', STATS)
        parts.append(summary(measure(ways(net, dyn, dyn.fold, size, bs), a.rounds, a.threads)).reset_index().assign(what=f'{name}, {size} px', batch=bs))
    t = pd.concat(parts, ignore_index=True).assign(threads=a.threads, rounds=a.rounds)
    t = t[['what','batch','threads','rounds','way','ms','ms_low','ms_high','ratio','ratio_low','ratio_high']]
    print(t.round(3).to_string(index=False))
    if a.out: write_atomic(a.out, t.to_csv(index=False, float_format='%.5g'))

if __name__=='__main__': main()
