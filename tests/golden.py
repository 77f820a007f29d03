"""The golden traces of `tests/golden.csv`: see `nbs/06z_golden.ipynb`.

    python tests/golden.py                          # take all steps again, and print what moved
    python tests/golden.py --record small_cnn       # the traces of something new, or of something whose version was raised
    python tests/golden.py --rounding 'two threads' --threads 2     # how far rounding moves them, for golden_rounding.csv
"""
import argparse,sys
from pathlib import Path
import pandas as pd
from mils.core import progress,write_atomic
from mils.golden import golden_configs,golden_distance,golden_table,golden_tolerance,golden_trace,golden_versions

HERE = Path(__file__).parent

def moved(name, found, kept):
    "The kinds of number that are further from the table than rounding takes them"
    d = golden_distance(found, kept.loc[name])
    return d[d>pd.Series(golden_tolerance).reindex(d.index)]

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
    for name in progress(chosen(names), 'traces'):
        found,versions = golden_trace(name),golden_versions(name)
        if name in kept.index and kept.versions[name]==versions and len(moved(name, found, kept)): refused.append(name)
        else: rows.append(dict(trace=name, versions=versions, **found))
    if rows: write(rows, 'golden', golden_configs())
    print(f'{len(rows)} traces recorded')
    if refused: sys.exit(f"the versions are those of before, and the result is not: raise a version first ({', '.join(refused)})")

def measure_rounding(setting, threads):
    "Distances of all traces from the table under another setting"
    kept,f = golden_table(),HERE/'golden_rounding.csv'
    rows = [dict(setting=setting, trace=n, **golden_distance(golden_trace(n, threads), kept.loc[n])) for n in progress(golden_configs(), 'traces')]
    t = pd.DataFrame(rows)
    if f.exists():
        old = pd.read_csv(f)
        t = pd.concat([old[old.setting!=setting], t])
    write_atomic(f, t.to_csv(index=False, float_format='%.1e'))
    print(t.groupby('setting')[list(golden_tolerance)].max())

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--record', nargs='+', metavar='NAME')
    p.add_argument('--rounding', metavar='SETTING')
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    if a.record: return record(a.record)
    if a.rounding: return measure_rounding(a.rounding, a.threads)
    kept = golden_table()
    for name in progress(kept.index, 'traces'):
        for kind,d in moved(name, golden_trace(name, a.threads), kept).items(): print(f'{name}: {kind} moved by {d:.1e}, more than {golden_tolerance[kind]:.0e}')

if __name__=='__main__': main()
