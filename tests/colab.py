"""The first code cell of every notebook installs the package where the notebook is opened in Colab: `python tests/colab.py` puts it there

Elsewhere the line does nothing. Recorded results lie beside the notebook afterwards, where `results_dir` finds them.
"""
import hashlib,json
from pathlib import Path

nbs = Path(__file__).resolve().parent.parent/'nbs'
CELL = '''#| hide
#| eval: false
! [ -e /content ] && git clone --depth 1 https://github.com/mils-lab/mils m && pip install './m[lab]' && cp -r m/results m/settings.ini .'''

def notebooks():
    "All, without hidden folders and the page for what is not found"
    found = {p:p.relative_to(nbs).parts for p in sorted(nbs.rglob('*.ipynb')) if p.name!='404.ipynb'}
    return [p for p,parts in found.items() if not any(o[0] in '._' for o in parts)]

def first_code(nb): return next((''.join(c['source']) for c in nb['cells'] if c['cell_type']=='code'), None)

def add(path):
    "Put the cell after the title, unless it is there"
    nb = json.loads(path.read_text(encoding='utf-8'))
    if first_code(nb) in (CELL, None): return
    cell = dict(cell_type='code', execution_count=None, id=hashlib.sha256(str(path.relative_to(nbs)).encode()).hexdigest()[:8],
                metadata={}, outputs=[], source=CELL.splitlines(True))
    nb['cells'].insert(1, cell)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n', encoding='utf-8')

if __name__=='__main__':
    for p in notebooks(): add(p)
