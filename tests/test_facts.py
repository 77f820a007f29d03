"Numbers in the texts of pages and README are those of the recorded tables, and none is typed"
import ast,shutil
from pathlib import Path
import nbformat,pandas as pd,pytest
from nbformat.v4 import new_code_cell as code,new_markdown_cell as text,new_notebook
from mils.marks import change_texts,fill,mark_faults,pages_below,prose,typed_numbers,without_marks
from mils.site import build_readme
from colab import CELL

repo = Path(__file__).resolve().parent.parent
pages = {p.relative_to(repo/'nbs').with_suffix('').as_posix():p for p in pages_below(repo/'nbs')}

converted = [p for name,p in pages.items() if not name.startswith('tutorials/')]
each_page = pytest.mark.parametrize('page', pages.values(), ids=list(pages))
each_converted = pytest.mark.parametrize('page', converted, ids=lambda p: p.stem)

def cells(page): return nbformat.read(page, 4).cells

def stale(page):
    "Texts that differ from what the tables give"
    return [(c,fill(c)) for c in map(prose, cells(page)) if fill(c)!=c]

def typed(page):
    "Numbers without a mark, by text"
    return {c:found for c in map(prose, cells(page)) if (found := typed_numbers(c))}

def faults_of_code(source, most=15):
    "What a code cell of a page should not have"
    tree,lines = ast.parse(source),[l for l in source.splitlines() if l.strip() and not l.startswith('#|')]
    found = [f'{len(lines)} lines']*(len(lines)>most)
    for n in ast.walk(tree):
        if isinstance(n, ast.JoinedStr) and len(ast.unparse(n))>200: found.append(f'a long text: {ast.unparse(n)[:60]}')
        if isinstance(n, ast.Name) and n.id in ('Markdown','HTML'): found.append(f'text from code: {n.id}')
        if isinstance(n, (ast.If,ast.IfExp)): found.append(f'a decision in line {n.lineno}')
    return found

@each_page
def test_numbers_are_those_of_the_tables(page): assert not stale(page), '`mils facts` fills them'

@each_page
def test_marks_are_whole(page): assert not (found := [f for c in cells(page) for f in mark_faults(prose(c))]), found

@each_converted
def test_no_number_is_typed(page): assert not (found := typed(page)), found

@each_converted
def test_code_makes_a_table_or_a_figure(page):
    found = {c.source[:60]:f for c in cells(page) if c.cell_type=='code' and c.source!=CELL and (f := faults_of_code(c.source))}
    assert not found, found

def test_readme_is_the_first_page(tmp_path):
    for f in 'settings.ini','nbs/index.ipynb':
        (tmp_path/f).parent.mkdir(exist_ok=True)
        shutil.copy(repo/f, tmp_path/f)
    assert build_readme(tmp_path)==(repo/'README.md').read_text(), '`mils facts` writes it'
    assert '<!--' not in (repo/'README.md').read_text()

# Each check can fail: a page is broken in one way, and the check says where.

@pytest.fixture
def broken(tmp_path):
    "Makes a page of some cells"
    def make(*cells):
        nbformat.write(new_notebook(cells=list(cells)), tmp_path/'page.ipynb')
        return tmp_path/'page.ipynb'
    return make

right = 'It has <!--=task_b.best.share-->98.1 %<!--/--> of it.'

def test_a_wrong_number_is_found(broken):
    assert stale(broken(text(right)))==[]
    page = broken(text('# A'), text(right.replace('98.1', '98.2')))
    assert stale(page)==[(right.replace('98.1', '98.2'), right)]
    assert [a for _,a in change_texts(page, fill)]==[right] and stale(page)==[]

def test_a_wrong_word_is_found(broken):
    wrong = 'Whether it holds: <!--=task_b.best.reaches_90-->not shown<!--/-->.'
    assert stale(broken(text(wrong)))==[(wrong, wrong.replace('not shown', 'yes'))]

def test_a_wrong_number_in_a_caption_is_found(broken):
    caption = '#| fig-cap: "Over <!--=task_b.best.seeds-->{} seeds"\n1'
    assert stale(broken(code(caption.format('3<!--/-->'))))==[]
    assert len(stale(broken(code(caption.format('4<!--/-->')))))==1

@pytest.mark.parametrize('name', ['task_b.best.shares', 'task_b.after.41.share', 'task_z.best.share', 'task_b.best', 'task_b.best.ratio',
    'task_b.best.ratio:.1z'])
def test_a_name_that_means_nothing_is_an_error(name):
    with pytest.raises(ValueError, match=f'<!--={name}-->'): fill(f'<!--={name}-->1<!--/-->')

@pytest.mark.parametrize('number', ['98.1 %', '98%', '3', '-12.6', '2,500', '32px'])
def test_a_typed_number_is_found(broken, number):
    assert list(typed(broken(text(f'It reaches {number} there.'))).values())==[[number.removesuffix('px')]]
    assert typed(broken(code(f'#| fig-cap: "After {number}"\n1'))) and typed(broken(code(f"#| fig-alt: After {number}\n1")))

def test_a_number_that_is_typed_into_the_first_page_is_found(tmp_path):
    page = shutil.copy(repo/'nbs'/'index.ipynb', tmp_path)
    assert not typed(page)
    change_texts(page, lambda t: t.replace('Two tutorials go on', '12 tutorials go on'))
    assert list(typed(page).values())==[['12']]

@pytest.mark.parametrize('source,found', [
    ('\n'.join(['x = 1']*16), '16 lines'), (f"f'{{x}} {'long '*50}'", 'a long text'), ("Markdown('a')", 'text from code'),
    ("if x>0: print('better')", 'a decision'), ("'better' if x>0 else 'worse'", 'a decision')])
def test_code_with_text_or_decisions_is_found(source, found):
    assert faults_of_code(source)[0].startswith(found)
    assert faults_of_code("draw_answers({f'{a.long} epochs':a.equal[35]}, goal=.9);")==[]

def test_other_results_give_other_numbers(tmp_path, monkeypatch):
    "Where four layers are right on every picture, the first page says so, and its verdicts turn"
    for d in (repo/'results').iterdir():
        if d.name!='task-b': (tmp_path/d.name).symlink_to(d)
    shutil.copytree(repo/'results'/'task-b', tmp_path/'task-b')
    preds = pd.read_parquet(tmp_path/'task-b'/'predictions.parquet')
    preds.loc[preds.run.astype(str).str.startswith('strict4'),'rank'] = preds['rank'].dtype.type(0)
    preds.to_parquet(tmp_path/'task-b'/'predictions.parquet')
    before = '\n'.join(map(prose, cells(repo/'nbs'/'index.ipynb')))
    monkeypatch.setenv('MILS_RESULTS', str(tmp_path))
    after = fill(before)
    assert after!=before and '<!--=task_b.best.share-->184.9 %<!--/-->' in after
    assert without_marks(fill('<!--=task_b.best.order-->level<!--/-->'))=='ahead'
