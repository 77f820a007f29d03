"""The golden traces of `tests/golden.csv`: see `nbs/06m_golden.ipynb`.

    python tests/golden.py                          # take all steps again, and print what moved
    python tests/golden.py --record NAME            # the traces of something new, or of something whose version was raised
    python tests/golden.py --rounding 'two threads' --threads 2      # how far rounding moves them, for golden_rounding.csv

A NAME is that of a network, a generator, a recipe and so on, of a kind of these, of a whole trace in quotes, or `all`.
"""
import argparse,sys
from pathlib import Path
import pandas as pd,torch
from mils.core import progress,write_atomic
from mils.golden import golden_configs,golden_distance,golden_table,golden_tolerance,golden_trace,golden_versions

HERE = Path(__file__).parent

def chosen(names):
    "Traces that are meant by names: `small_cnn`, `generator bank`, `recipe`, `all`"
    def meant(trace): return any(n in ('all', trace, *trace.split()) for n in names)
    if found := [t for t in golden_configs() if meant(t)]: return found
    sys.exit(f"no trace is called {' or '.join(names)}; there are:\n"+'\n'.join(golden_configs()))

def write(rows, table, order):
    "Rows into a table, in the order in which things are registered"
    t = pd.DataFrame(rows).set_index('trace')
    old = golden_table(table) if (HERE/f'{table}.csv').exists() else t[:0]
    t = pd.concat([old.drop(index=t.index, errors='ignore'), t])
    write_atomic(HERE/f'{table}.csv', t.loc[[n for n in order if n in t.index]].to_csv(float_format='%.9g'))

def record(names):
    "Make rows; a row that would change although no version was raised stays as it is, and ends in an error"
    kept = golden_table() if (HERE/'golden.csv').exists() else pd.DataFrame()
    rows,refused = [],[]
    for name in progress(names, 'traces'):
        found,versions = golden_trace(name),golden_versions(name)
        known = name in kept.index and kept.versions[name]==versions
        if known and (golden_distance(found, kept.loc[name])>golden_tolerance).any(): refused.append(name)
        else: rows.append(dict(trace=name, versions=versions, **found))
    if rows: write(rows, 'golden', golden_configs())
    print(f'{len(rows)} traces recorded')
    if refused: sys.exit(f"the versions are those of before, and the result is not: raise a version first ({', '.join(refused)})")

def measure_rounding(names, setting, threads, dtype):
    "Distances of traces from the table under another setting"
    kept,f = golden_table(),HERE/'golden_rounding.csv'
    rows = []
    for n in progress(names, 'traces'):
        found = golden_trace(n, threads, getattr(torch, dtype))
        rows.append(dict(setting=setting, trace=n, **golden_distance(found, kept.loc[n])))
    t = pd.DataFrame(rows)
    if f.exists(): t = pd.concat([pd.read_csv(f), t]).drop_duplicates(['setting','trace'], keep='last')
    write_atomic(f, t.to_csv(index=False, float_format='%.1e'))
    print(t.groupby('setting', sort=False).max(numeric_only=True))

def compare(names, threads):
    "Print what moved further than rounding takes it"
    kept = golden_table()
    for name in progress(names, 'traces'):
        d = golden_distance(golden_trace(name, threads), kept.loc[name])
        for kind,far in d[d>golden_tolerance].items(): print(f'{name}: {kind} moved by {far:.1e}')

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('names', nargs='*', default=['all'], metavar='NAME', help='all by default')
    p.add_argument('--record', action='store_true', help='write what is found into the table')
    p.add_argument('--rounding', metavar='SETTING', help='write how far it is from the table, under a name for what was set')
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--dtype', default='float64')
    a = p.parse_args()
    names = chosen(a.names)
    if a.record: record(names)
    elif a.rounding: measure_rounding(names, a.rounding, a.threads, a.dtype)
    else: compare(names, a.threads)

if __name__=='__main__': main()
