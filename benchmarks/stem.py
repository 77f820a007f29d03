"""Time the stem of a network: plain convolution, folded, one channel set, and a batch in which every sample has its own set.

    python benchmarks/stem.py [--out results/task-a/latency.csv]

Each round times every way once, in turn and for a few milliseconds; medians and quartiles are over rounds. `ratio` is to the plain
convolution of the same round. One thread by default: on a machine that is not alone, threads that wait for each other time the neighbours.
"""
import argparse
from copy import deepcopy
import numpy as np,pandas as pd,torch
from torch import nn
from mils.core import write_atomic
from mils.imageset import ChannelStats
from mils.layer import DynamicConv2d
from mils.channels import convert
from mils.models import create_model
from mils.profile import in_turns,quartiles
from mils.sampling import sample_masks

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

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', help='a CSV file')
    p.add_argument('--rounds', type=int, default=60)
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    parts = []
    def measure(what, bs, calls):
        times = quartiles(in_turns(calls, a.rounds, a.threads, .008), 'plain')
        parts.append(times.rename_axis('way').reset_index().assign(what=what, batch=bs))
    for name,(nf,ks,stride,size,bs) in STEMS.items():
        conv = nn.Conv2d(3, nf, ks, stride, ks//2 if stride<ks else 0, bias=False).to(memory_format=torch.channels_last)
        dyn = DynamicConv2d.from_conv(conv, stats=STATS, generator='covariance')
        measure(f'stem of {name}', bs, ways(conv, dyn, dyn.fold, size, bs))
    for name,size,bs,opts in (('small_cnn', 32, 128, dict(last=2)), ('resnet34', 64, 16, dict(stem='imagenet'))):
        net = create_model(name, 50, size=size, **opts).eval().to(memory_format=torch.channels_last)
        dyn = convert(deepcopy(net), 'RGB', STATS, generator='covariance')
        measure(f'{name}, {size} px', bs, ways(net, dyn, dyn.fold, size, bs))
    t = pd.concat(parts, ignore_index=True).assign(threads=a.threads, rounds=a.rounds)
    t = t[['what','batch','threads','rounds','way','ms','ms_low','ms_high','ratio','ratio_low','ratio_high']]
    print(t.round(3).to_string(index=False))
    if a.out: write_atomic(a.out, t.to_csv(index=False, float_format='%.5g'))

if __name__=='__main__': main()
