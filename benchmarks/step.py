"""What a training step spends its time on, and the least that the machine could need, for the networks of the page on speed

    python benchmarks/step.py [--rounds 3] [--record]
"""
import argparse
from itertools import product
from mils.core import network_name
from mils.bench import add_rows
from mils.identity import machine_and_date
from mils.limit import where_time_goes
from mils.machine import default_device,has_bf16,keep_memory
import pandas as pd

NETWORKS = (('small_cnn',{}), ('wide_resnet',dict(width=1)))

def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=3, help='of all networks in turn; the median is told')
    p.add_argument('--record', action='store_true', help='into results/speed/steps.csv, which the report reads')
    a = p.parse_args(words)
    device = default_device()
    keep_memory()
    precisions = ['float32','bfloat16'] if has_bf16(device) else ['float32']
    rows = []
    for _,(name,options),precision in product(range(a.rounds), NETWORKS, precisions):
        t = where_time_goes(name, precision=precision, device=device, **options)
        rows.append(t.assign(network=network_name(name, options), precision=precision))
    t = pd.concat(rows).groupby(['network','precision','kind'], sort=False)[['spent_ms','least_ms']].median().reset_index()
    t = t.assign(**machine_and_date(device))
    print(t[['network','precision','kind','spent_ms','least_ms']].round(2).to_string(index=False))
    if a.record: add_rows(t, 'steps')

if __name__=='__main__': main()
