"The small install: what it brings, what works with it, and what an import that misses something says"
import configparser,json,os,re,subprocess,sys
from importlib.metadata import distribution,PackageNotFoundError
from pathlib import Path
import pytest

repo = Path(__file__).resolve().parent.parent
conf = configparser.ConfigParser(interpolation=None)
conf.read(repo/'settings.ini')
small,lab = (conf['DEFAULT'][k].split() for k in ('requirements','lab_requirements'))

def plain(name): return re.sub(r'[-_.]+', '-', name).lower()

def closure(requirements):
    "Distributions that pip would install for these, by name; those for another system are not here"
    from packaging.requirements import Requirement
    found,todo = {},[(Requirement(o),'') for o in requirements]
    while todo:
        r,extra = todo.pop()
        if r.marker and not r.marker.evaluate({'extra':extra}): continue
        key = plain(r.name)
        if (key,frozenset(r.extras)) in found: continue
        try: d = distribution(r.name)
        except PackageNotFoundError: continue
        found[key,frozenset(r.extras)] = d
        todo += [(Requirement(o),e) for o in d.requires or () for e in (r.extras or {''})]
    return {k[0]:d for k,d in found.items()}

@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    "Run Python with nothing but the small install, as if in a new environment"
    site = tmp_path_factory.mktemp('site')
    for d in closure(small).values():
        root = Path(d.locate_file(''))
        for top in {f.parts[0] for f in d.files or () if f.parts[0] not in ('..','__pycache__')}:
            if not (site/top).exists(): (site/top).symlink_to(root/top)
    (site/'mils').symlink_to(repo/'mils')
    home = tmp_path_factory.mktemp('home')
    env = dict(PATH=os.environ['PATH'], PYTHONPATH=str(site), HOME=str(home), MILS_CACHE=str(home/'cache'), OMP_NUM_THREADS='1',
               HF_HUB_OFFLINE='1', TQDM_DISABLE='1', PYTHONDONTWRITEBYTECODE='1')
    def run(code, *words, cwd=home):
        return subprocess.run([sys.executable,'-S','-c',code,*words], capture_output=True, text=True, env=env, cwd=cwd)
    run.home = home
    return run

mils = 'import sys; from mils.cli import main; sys.exit(main(sys.argv[1:]))'
heavy = 'fastai','pandas','scipy','matplotlib','sklearn','seaborn','statsmodels','spacy','pyarrow'

def test_the_small_install_leaves_out_what_only_the_lab_needs():
    assert not {*closure(small)}&{*heavy,'scikit-learn'}
    assert {*heavy}-{'sklearn'}<={*closure(small+lab)}

def test_layer_networks_predict_and_export_work_in_a_bare_environment(bare):
    done = bare('''
import sys,warnings
warnings.simplefilter('ignore')
import torch
from PIL import Image
from mils.channels import convert
from mils.models import create_model,list_models
from mils.imageset import ChannelStats
from mils.architecture import Architecture
from mils.classifier import Classifier
import numpy as np
net = convert(create_model('resnet34', 5)).eval()
assert net(torch.randn(2,2,64,64), channels='GB').shape==(2,5) and len(list_models())>10
stats = ChannelStats(np.full(3, .5), np.full(3, .25), np.eye(3)/16)
net = Classifier(None, 'RGB', stats, ['cat','dog'], 32, Architecture('small_cnn', dynamic=True)).eval()
net.save_pretrained('net')
Image.new('RGB', (40,50), 'red').save('red.png')
assert Classifier.from_pretrained('net').predict('red.png')[0].p==net.predict('red.png')[0].p
print(sorted({*sys.modules}&{*%r}))''' % (heavy,))
    assert done.returncode==0 and done.stdout.strip()=='[]', done.stdout+done.stderr[-2000:]
    done = bare(mils, 'predict', 'net', 'red.png', '--json', '--top', '2')
    assert done.returncode==0 and {*json.loads(done.stdout)['classes']}=={'cat','dog'}, done.stderr
    for to,file in (('onnx','network-GB.onnx'), ('torch','network-GB.pt2')):
        done = bare(mils, 'export', 'net', '--channels', 'GB', '--to', to)
        assert done.returncode==0 and (bare.home/'net'/file).exists(), done.stderr[-2000:]

def test_what_the_lab_brings_is_named(bare):
    done = bare(mils, 'train', 'small_cnn')
    assert done.returncode==1 and done.stderr.strip()=='mils: fastai is missing, which comes with the extra lab: pip install "mils[lab]"'
    for module in ('mils.learner','mils.stats','mils.audit','mils.runs'):
        done = bare(f'import {module}')
        assert 'pip install "mils[lab]"' in done.stderr.splitlines()[-1], done.stderr
    done = bare('import mils; import importlib.util; print(importlib.util.find_spec("pandas")); import pandas')
    assert done.stdout.strip()=='None' and 'mils' not in done.stderr.splitlines()[-1]             # who else asks gets Python's answer

def test_help_loads_neither_torch_nor_numpy(bare):
    done = bare('import sys; from mils.cli import main; main(["--help"]); print({*sys.modules}&{"torch","numpy","fastai"})')
    assert done.returncode==0 and done.stdout.splitlines()[-1]=='set()', done.stderr
    for word in ('predict','export','show'): assert f'\n  {word} ' in done.stdout

def test_each_library_of_the_lab_is_known_by_its_module():
    import mils as package
    modules = {'plum-dispatch':'plum', 'scikit-learn':'sklearn'}
    names = [re.match(r'[\w-]+', o)[0] for o in lab]
    assert {modules.get(o, o) for o in names}=={*package._lab}

def test_without_ray_a_sweep_on_it_says_what_to_install():
    "Before anything is loaded or decoded; and who sweeps without Ray does not import it"
    code = '''
import sys
from importlib.machinery import PathFinder
class Rest(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None): return None if name=='ray' else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Rest if o is PathFinder else o for o in sys.meta_path]
from mils.cli import main
import mils.sweeps
assert 'ray' not in sys.modules
sys.exit(main(sys.argv[1:]))'''
    done = subprocess.run([sys.executable,'-c',code,'sweep','chroma','--on','ray'], capture_output=True, text=True)
    said = 'mils: ray is missing, which comes with the extra ray: pip install "mils[ray]"'
    assert done.returncode==1 and done.stderr.splitlines()[-1]==said, done.stderr
