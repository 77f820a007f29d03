"The pages that are rendered without Quarto, from a small project made here"
import configparser,os,re,shutil,subprocess,sys
from html.parser import HTMLParser
from pathlib import Path
import mils,nbformat,pytest,yaml
from nbformat.v4 import new_code_cell as code,new_markdown_cell as text,new_notebook
from mils.site import build_readme,build_site

repo = Path(__file__).resolve().parent.parent
settings = '''[DEFAULT]
repo=small
user=me
lib_name=small
lib_path=small
nbs_path=nbs
doc_path=_docs
title=small
description=A small project
copyright=me
branch=main
recursive=True
custom_sidebar=True
git_url=https://example.org/me/small
doc_host=https://example.org
doc_baseurl=/small
'''
plot = '''import matplotlib.pyplot as plt
fig,ax = plt.subplots(figsize=(1,1)); ax.plot([1,2]); plt.show()'''
table = "from IPython.display import HTML\nHTML('<table class=\"dataframe\"><tr><td>0.5</td></tr></table>')"

def report(*more):
    return [text('# Report\n\n> What was measured'), code('#| hide\nsecret = 42'),
            text('As @fig-a and @tbl-b show [@he2016resnet; @bao2024channelvit]. Write to me@home.org about $x^2$ in `@nothing`.\n\n'
                 '::: {.callout-warning}\n## Careful\nOne seed.\n:::\n\nSee the [core](../00_core.ipynb#sets).'),
            code(f'#| label: fig-a\n#| fig-cap: "A *line*"\n#| fig-alt: "Rising line"\n{plot}'),
            code(f'#| label: tbl-b\n#| tbl-cap: Numbers\n#| echo: false\n{table}'),
            code('#| eval: false\n1/0'), code('#| include: false\nprint("unseen")'), *more]

def write(folder, notebooks):
    for name,cells in notebooks.items():
        f = folder/'nbs'/name
        f.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells), f)

@pytest.fixture
def project(tmp_path):
    (tmp_path/'settings.ini').write_text(settings)
    (tmp_path/'nbs').mkdir()
    shutil.copy(repo/'_quarto.yml', tmp_path)
    files = '_quarto.yml','references.bib','plain.css','page.html.j2','tables.html','icon.svg','preview.png'
    for f in files: shutil.copy(repo/'nbs'/f, tmp_path/'nbs')
    write(tmp_path, {
        'index.ipynb': [text('# small\n\n> A project'), text('See the [report](report/index.ipynb).'), code('1+1')],
        '00_core.ipynb': [text('# core\n\n> Words'), code('#| default_exp core'), text('## Sets'), code('#| export\ndef f(x): return x')],
        'tutorials/01_tour.ipynb': [text('# A tour'), text('Hello')],
        'report/index.ipynb': report()})
    return tmp_path

class Page(HTMLParser):
    "Tags with their attributes, and text"
    def __init__(self, path):
        super().__init__()
        self.tags,self.text = [],''
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.text += data
    def all(self, tag, key): return [a[key] for t,a in self.tags if t==tag and key in a]

def loads(page):
    "Whatever a browser would fetch by itself"
    return page.all('script','src')+page.all('img','src')+page.all('link','href')+page.all('iframe','src')

def test_site(project):
    before = {f:f.read_bytes() for f in project.rglob('nbs/**/*.ipynb')}
    first = build_site(root=project, quarto=False)
    assert first==project/'_docs'/'report'/'index.html'
    assert {f:f.read_bytes() for f in project.rglob('nbs/**/*.ipynb')}==before
    pages = {f.relative_to(project/'_docs').as_posix():Page(f) for f in project.rglob('_docs/**/*.html')}
    assert set(pages)=={'index.html','core.html','tutorials/tour.html','report/index.html'}
    for name,p in pages.items():
        here = (project/'_docs'/name).parent
        assert all(o.startswith('data:') or (here/o).is_file() for o in loads(p)), name
        for word in 'Home','Report','Tutorials','A tour','Library','core': assert word in p.text
        for href in p.all('a','href'):
            path,_,anchor = href.partition('#')
            target = (here/path).resolve().relative_to(project/'_docs').as_posix() if path else name
            if '://' not in href: assert not anchor or anchor in [a.get('id') for _,a in pages[target].tags], (name,href)

    p,raw = pages['report/index.html'],first.read_text(encoding='utf-8')
    assert [a['id'] for t,a in p.tags if t=='figure']==['fig-a','tbl-b']
    assert re.search(r'<figcaption><b>Figure 1</b>: A <em>line</em></figcaption>', raw)
    assert re.search(r'<figcaption><b>Table 1</b>: Numbers</figcaption>\s*<div', raw)
    assert 'Rising line' in p.all('img','alt')
    assert {'#fig-a','#tbl-b','#ref-he2016resnet','#ref-bao2024channelvit','../core.html#sets'}<=set(p.all('a','href'))
    assert 'me@home.org' in p.text and '@nothing' in p.text and 'Careful' in p.text
    assert raw.count('<details class="code"')==2 and raw.count('<math')==1 and 'callout-warning' in raw
    for hidden in 'secret','unseen','#|','tbl-cap','Out[': assert hidden not in p.text
    assert 'id="f"' in (project/'_docs'/'core.html').read_text()

def test_menu_has_numbers_and_purposes(project):
    raw = build_site(root=project, quarto=False, execute=False).read_text()
    assert re.search(r'<summary>Data</summary><ul><li><a href="../core.html">00 core<small>Words</small></a>', raw)
    assert raw.index('<summary>Tutorials') < raw.index('<summary>Library')
    assert re.search(r'<details open=""><summary>Report</summary>', raw) and '<h1>00 core</h1>' in (project/'_docs'/'core.html').read_text()

@pytest.mark.skipif(not shutil.which('quarto'), reason='no Quarto on this machine')
def test_both_roads_say_the_same(project):
    "Every word of the text that our renderer shows of a report is in Quarto's page too, references aside"
    def words(quarto):
        raw = build_site(root=project, quarto=quarto).read_text()
        (project/'main.html').write_text(re.search(r'<main.*?(?=id="references"|</main>)', raw, re.S)[0])
        return set(re.findall(r'\w+', Page(project/'main.html').text))
    ours,theirs = words(False),words(True)
    assert ours-theirs<={'References','View','source'}

def test_stored(project):
    shown = nbformat.v4.new_output('stream', text='stored\n')
    write(project, {'report/index.ipynb':[text('# Report'), code('print("fresh")', outputs=[shown])]})
    assert 'stored' in Page(build_site(root=project, quarto=False, execute=False)).text

@pytest.mark.parametrize('cell,message', [
    (text('See @fig-gone.'), "nbs/report/index.ipynb: unknown reference 'fig-gone'"),
    (text('See [@nobody1999].'), "unknown reference 'nobody1999'"),
    (text('See [it](../gone.ipynb).'), "unknown reference '../gone.ipynb'"),
    (code('#| label: fig-a\n1'), "label 'fig-a' is used twice")])
def test_bad_reference(project, cell, message):
    write(project, {'report/index.ipynb':report(cell)})
    with pytest.raises(ValueError, match=re.escape(message)): build_site(root=project, quarto=False, execute=False)

def test_failing_cell(project):
    write(project, {'report/index.ipynb':[text('# Report'), code('1'), code('raise OSError("no table")')]})
    with pytest.raises(RuntimeError, match=r'nbs/report/index\.ipynb, cell 3:(.|\n)*no table'): build_site(root=project, quarto=False)
    assert not (project/'_docs').exists()

def test_bad_folder(project):
    for out in '.','nbs','settings.ini':
        with pytest.raises(ValueError, match='not a site built here'): build_site(out, root=project, quarto=False)
    build_site(root=project, quarto=False, execute=False)
    build_site(root=project, quarto=False, execute=False)

def test_quarto(project, monkeypatch):
    "A stand-in for Quarto sees the configuration and the processed, executed notebooks"
    write(project, {'report/index.ipynb':[text('# Report'), code('print(6*7)')]})
    fake = project/'bin'/'quarto'
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nset -e\ngrep -q 42 report/index.ipynb; grep -q website ../_quarto.yml; grep -q title: nbdev.yml\n'
                    'cat _quarto.yml references.bib >/dev/null\n'
                    'mkdir -p _docs/report _docs/site_libs; echo done > _docs/report/index.html\n')
    fake.chmod(0o755)
    monkeypatch.setenv('PATH', f'{fake.parent}:{os.environ["PATH"]}')
    assert build_site(root=project).read_text()=='done\n'
    assert build_site(root=project).read_text()=='done\n'
    fake.write_text('#!/bin/sh\nexit 1\n')
    with pytest.raises(RuntimeError, match='could not render'): build_site(root=project)

def test_nbdev_processes_every_notebook():
    "For Quarto nbdev runs exported cells and all cells with an import, and no other: these have to stand alone"
    run = '''
from pathlib import Path
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults
for f in sorted(Path('nbs').rglob('*.ipynb')): NBProcessor(f, procs=FilterDefaults().procs()).process()
'''
    done = subprocess.run([sys.executable,'-W','ignore','-c',run], cwd=repo, capture_output=True, text=True)
    assert done.returncode==0, done.stderr[-2000:]

def test_no_page_takes_the_place_of_another():
    "A page is called as its notebook, without the number"
    names = [re.sub(r'^\d+[a-z]*_', '', p.stem) for p in (repo/'nbs').glob('*.ipynb')]
    assert not (twice := {o for o in names if names.count(o)>1}), twice

def test_readme(project):
    got = build_readme(project)
    assert got==(project/'README.md').read_text() and got.startswith('# small\n\n> A project')
    assert '](nbs/report/index.ipynb)' in got and '```python\n1+1\n```' in got

def test_a_picture_of_the_readme_has_its_text(project):
    png = nbformat.v4.new_output('display_data', {'image/png':'iVBORw0KGgo='})
    drawn = code(f'#| fig-alt: "Rising line"\n{plot}', outputs=[png])
    write(project, {'index.ipynb':[text('# small\n\n> A project'), text('Before'), drawn, text('After')]})
    assert '\n\n![Rising line](index_files/index_1_0.png)\n\nAfter\n' in build_readme(project)

def test_readme_is_short():
    "Three screens: of 1280 by 900, by lines of 100 characters, a table's row two, a figure sixteen"
    lines = (repo/'README.md').read_text().splitlines()
    high = sum(16 if l.startswith('![') else 2 if l.startswith('|') else max(1, -(-len(l)//100)) for l in lines)
    assert high<=3*50, high
    assert all(re.fullmatch(r'!\[.{20,}\]\(\S+\)', l) for l in lines if l.startswith('!['))

def test_outside(tmp_path):
    with pytest.raises(FileNotFoundError, match='settings.ini'): build_site(root=tmp_path)

@pytest.mark.skipif(sys.version_info<(3,11), reason='tomllib')
def test_same_pins():
    import tomllib
    conf = configparser.ConfigParser(interpolation=None)
    conf.read(repo/'settings.ini')
    project = tomllib.loads((repo/'pyproject.toml').read_text())['project']
    assert conf['DEFAULT']['requirements'].split()==project['dependencies']
    assert conf['DEFAULT']['dev_requirements'].split()==project['optional-dependencies']['dev']
    version = conf['DEFAULT']['version']
    assert yaml.safe_load((repo/'CITATION.cff').read_text())['version']==mils.__version__==version
    assert f'\n## {version}\n' in (repo/'CHANGELOG.md').read_text()
