"""How readable the source is, in numbers: `python tests/measures.py` prints them, and fails where one is worse than the recorded one

They serve reading. Where obeying one would make a passage worse, leave the passage, say so beside it, and record the number: `python tests/measures.py --record`.
"""
import ast,json,re,sys
from pathlib import Path
import nbformat

repo = Path(__file__).resolve().parent.parent
recorded = Path(__file__).with_name('measures.json')
WORDS,LINES = 220,20          # that a person reads in a minute
WIDE = 140                    # characters

def code_lines(source): return [l for l in source.splitlines() if l.strip() and not l.startswith('#|')]

def notebook(path):
    "Minutes of reading, lines of the longest cell, wide lines of code"
    cells = nbformat.read(path, 4).cells
    words = sum(len(c.source.split()) for c in cells if c.cell_type=='markdown')
    code = [code_lines(c.source) for c in cells if c.cell_type=='code']
    return dict(minutes=round(words/WORDS+sum(map(len, code))/LINES, 1), longest=max(map(len, code), default=0), wide=sum(len(l)>WIDE for c in code for l in c))

def module(path):
    "Names that a module exports, lines of code, wide ones, and syntax nodes"
    source = path.read_text()
    tree = ast.parse(source)
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '')=='__all__'] if '__all__' in source else []
    lines = [l for l in source.splitlines() if l.strip() and not l.lstrip().startswith('#')]
    return dict(exported=sum(len(l.elts) for l in lists), lines=len(lines), wide=sum(len(l)>WIDE for l in lines), nodes=sum(1 for _ in ast.walk(tree)))

def measure():
    "All measures: totals, and a row a notebook"
    notebooks = {str(p.relative_to(repo/'nbs')):notebook(p) for p in sorted((repo/'nbs').rglob('*.ipynb')) if not re.search(r'/[._]', str(p.relative_to(repo)))}
    modules = [module(p) for p in sorted((repo/'mils').rglob('*.py')) if not p.name.startswith('_')]
    tests = [module(p) for p in sorted((repo/'tests').glob('*.py'))]
    library = {k:v for k,v in notebooks.items() if k[0].isdigit()}
    total = lambda rows,k: sum(r[k] for r in rows)
    return dict(
        notebooks_over_12_minutes=sum(r['minutes']>12 for r in library.values()),
        longest_reading=max(r['minutes'] for r in library.values()),
        cells_over_40_lines=sum(r['longest']>40 for r in notebooks.values()),
        longest_cell=max(r['longest'] for r in notebooks.values()),
        wide_lines=total(notebooks.values(), 'wide')+total(tests, 'wide'),
        names_exported=total(modules, 'exported'),
        nodes_per_line=round(total(modules, 'nodes')/total(modules, 'lines'), 1)),notebooks

def main(record=False):
    now,notebooks = measure()
    before = json.loads(recorded.read_text()) if recorded.exists() else {}
    for name,r in notebooks.items(): print(f"{name:34} {r['minutes']:5.1f} min  longest cell {r['longest']:3}  wide lines {r['wide']:3}")
    print()
    for k,v in now.items(): print(f'{k:28} {v:7}  recorded {before.get(k, "-")}')
    if record: recorded.write_text(json.dumps(now, indent=1)+'\n')
    worse = [k for k,v in now.items() if v>before.get(k, v)] if not record else []
    if worse: print('worse than recorded: '+', '.join(worse), file=sys.stderr)
    return int(bool(worse))

if __name__=='__main__': sys.exit(main('--record' in sys.argv))
