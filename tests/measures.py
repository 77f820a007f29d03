"""How readable the source is, in numbers: `python tests/measures.py` prints them, and fails where one is worse than the recorded one

They serve reading. Where obeying one would make a passage worse, leave the passage, say so beside it, and record the number:
`python tests/measures.py --record`.
"""
import ast,json,re,sys
from pathlib import Path
import nbformat

repo = Path(__file__).resolve().parent.parent
recorded = Path(__file__).with_name('measures.json')
WORDS,LINES = 220,20                  # that a person reads in a minute
MINUTES,CELL,WIDE = 12,40,140         # of a notebook, lines, characters
GOALS = dict(notebooks_over_12_minutes=0, longest_reading=MINUTES, cells_over_40_lines=0, longest_cell=CELL, wide_lines=0,
             names_exported=200, nodes_per_line=10)

def code_lines(source): return [l for l in source.splitlines() if l.strip() and not l.startswith('#|')]

def notebook(path):
    "Minutes of reading, cells, lines of each code cell, wide lines of code"
    cells = nbformat.read(path, 4).cells
    words = sum(len(c.source.split()) for c in cells if c.cell_type=='markdown')
    code = [code_lines(c.source) for c in cells if c.cell_type=='code']
    lengths = [len(lines) for lines in code]
    return dict(minutes=round(words/WORDS+sum(lengths)/LINES, 1), cells=len(cells), longest=max(lengths, default=0),
                over=sum(n>CELL for n in lengths), wide=sum(len(l)>WIDE for lines in code for l in lines))

def exported(tree):
    "Names that a module exports"
    return sum(len(n.value.elts) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '')=='__all__')

def module(path):
    "Names that a module exports, lines of code, wide ones, and syntax nodes"
    source = path.read_text(encoding='utf-8')
    tree = ast.parse(source)
    lines = [l for l in source.splitlines() if l.strip() and not l.lstrip().startswith('#')]
    return dict(exported=exported(tree), lines=len(lines), wide=sum(len(l)>WIDE for l in lines), nodes=sum(1 for _ in ast.walk(tree)))

def sources():
    "Rows for notebooks, for modules, and for tests and benchmarks, by path"
    nbs = {p.relative_to(repo/'nbs').as_posix():p for p in sorted((repo/'nbs').rglob('*.ipynb'))}
    notebooks = {name:notebook(p) for name,p in nbs.items() if not re.search(r'(^|/)[._]', name)}
    modules = [module(p) for p in sorted((repo/'mils').rglob('*.py')) if not p.name.startswith('_')]
    scripts = {p.relative_to(repo).as_posix():module(p) for d in ('tests','benchmarks') for p in sorted((repo/d).glob('*.py'))}
    return notebooks,modules,scripts

def total(rows, key): return sum(r[key] for r in rows)

def measure(notebooks, modules, scripts):
    "All measures, the smaller the better"
    library = [r for name,r in notebooks.items() if name[0].isdigit()]
    return dict(
        notebooks_over_12_minutes=sum(r['minutes']>MINUTES for r in library),
        longest_reading=max(r['minutes'] for r in library),
        cells_over_40_lines=total(notebooks.values(), 'over'),
        longest_cell=max(r['longest'] for r in notebooks.values()),
        wide_lines=total(notebooks.values(), 'wide')+total(scripts.values(), 'wide'),
        names_exported=total(modules, 'exported'),
        nodes_per_line=round(total(modules, 'nodes')/total(modules, 'lines'), 1))

def main(record=False):
    notebooks,modules,scripts = sources()
    now = measure(notebooks, modules, scripts)
    before = json.loads(recorded.read_text()) if recorded.exists() else {}
    print(f"{'notebook':34} minutes  cells  longest cell  wide lines")
    for name,r in notebooks.items(): print(f"{name:34} {r['minutes']:7.1f} {r['cells']:6} {r['longest']:13} {r['wide']:11}")
    for name,r in scripts.items():
        if r['wide']: print(f"{name:34} {'':7} {'':6} {'':13} {r['wide']:11}")
    print(f"\n{'measure':28}     now  recorded  goal")
    for k,v in now.items(): print(f"{k:28} {v:7} {before.get(k, '-'):>9} {GOALS[k]:5}")
    if record:
        recorded.write_text(json.dumps(now, indent=1)+'\n')
        return 0
    worse,better = [k for k,v in now.items() if v>before.get(k, v)],[k for k,v in now.items() if v<before.get(k, v)]
    if better: print('\nbetter than recorded: '+', '.join(better)+'; `python tests/measures.py --record` keeps it')
    if worse: print('worse than recorded: '+', '.join(worse), file=sys.stderr)
    return int(bool(worse))

if __name__=='__main__': sys.exit(main('--record' in sys.argv))
