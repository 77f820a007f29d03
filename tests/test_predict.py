"A network that is taken along: one folder, pictures of any kind in, classes out"
import csv,io,json,subprocess,sys,time,zipfile
from functools import partial
from pathlib import Path
import numpy as np,pandas as pd,pytest,tifffile,torch
from PIL import Image
from mils.cli import main
from mils.core import progress
from mils.chroma import chroma
from mils.imageset import ChannelStats
from mils.ranges import Ranges
from mils.architecture import Architecture
from mils.classifier import Classifier
from mils.trained import load_run,open_network

stains = 'bright field','DNA','dark field'

def write_pictures(root, n=60):
    ds = chroma(n_train=n, n_val=10, n_test=10)
    for i in range(n):
        f = root/ds.classes[ds.labels[i]%3]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ds.images[i]).save(f)
    return root

def write_bands(root, names, n=30, size=24, top=3000):
    "Two classes that differ in the last channel; 16 bits, planar, named in the file"
    rng = np.random.default_rng(0)
    for i in range(n):
        x = rng.integers(0, top//2, (len(names),size,size)).astype(np.uint16)
        x[-1] += np.uint16((i%2)*top//2)
        f = root/f'class{i%2}'/f'{i}.tif'
        f.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(f, x, planarconfig='separate', photometric='minisblack', metadata={'axes':'CYX','Channel':{'Name':list(names)}})
    return root

@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A folder of pictures, a run on it, and its network as a folder"
    tmp = tmp_path_factory.mktemp('work')
    with pytest.MonkeyPatch.context() as mp:
        mp.chdir(tmp)
        mp.setenv('MILS_CACHE', str(tmp/'cache'))
        write_pictures(tmp/'pictures')
        assert main(['train','small_cnn:dynamic','--data','pictures','--size','32','--epochs','2','--set','bs=10','--runs','runs'])==0
        run, = (tmp/'runs').glob('*/')
        load_run(run).save_pretrained(tmp/'taken')
        yield tmp,run

@pytest.fixture
def here(work, monkeypatch):
    monkeypatch.chdir(work[0])
    monkeypatch.setenv('MILS_CACHE', str(work[0]/'cache'))
    return work

def small(names='RGB', ranges=None, dynamic=True, size=24):
    "An untrained network"
    torch.manual_seed(0)
    n = len(names)
    stats = ChannelStats(np.full(n, .4), np.full(n, .2), np.eye(n)*.04)
    arch = Architecture('small_cnn', channels=names if isinstance(names, str) else '+'.join(names), dynamic=dynamic)
    return Classifier(None, names, stats, ['cat','dog','owl'], size, arch, ranges=ranges).eval()

def test_a_folder_holds_all(here):
    tmp,run = here
    about = json.loads((tmp/'taken'/'config.json').read_text())
    assert about['architecture']['model']=='small_cnn' and about['architecture']['dynamic'] and about['size']==32
    assert list(about['channels'])==['R','G','B'] and len(about['classes'])==3 and {*about['stats']}=={'mean','std','cov'}
    origin = about['origin']
    assert origin['run']==run.name and origin['data']['key'] and origin['config']['epochs']==2 and 'licence' in origin
    assert {a['channels'] for a in origin['accuracy'] if a['split']=='test'}=={'RGB','RG','RB','GB','R','G','B'}
    assert (tmp/'taken'/'model.safetensors').exists() and not [*(tmp/'taken').glob('*.bin')]

def test_the_folder_gives_the_bits_of_the_run(here):
    tmp,run = here
    x,net,back = torch.randint(0, 256, (4,3,32,32), dtype=torch.uint8),load_run(run),Classifier.from_pretrained(tmp/'taken')
    assert type(net) is type(back) is type(open_network(tmp/'taken')) and not back.training
    with torch.inference_mode():
        assert torch.equal(net(x), back(x)) and torch.equal(net(x[:,1:], channels='GB'), back(x[:,1:], channels='GB'))
    assert back.origin==net.origin and back.classes==net.classes

def test_ranges_travel(tmp_path):
    net = small(stains, Ranges(stains, (0,10,0), (3000,2000,900), ('uint16',)*3, 16))
    net.save_pretrained(tmp_path)
    back = Classifier.from_pretrained(tmp_path)
    assert back.ranges==net.ranges and back.channels==stains
    assert torch.equal(back.scale, net.scale)

def test_a_fold_is_taken_along_too(tmp_path):
    small().fold('BG').save_pretrained(tmp_path)
    back = Classifier.from_pretrained(tmp_path)
    assert back.channels==('B','G') and not back.architecture.dynamic

@pytest.mark.parametrize('harm,say', [
    (lambda d,c: c.pop('stats'), '"stats": {"mean"'), (lambda d,c: c.pop('architecture'), 'does not tell architecture'),
    (lambda d,c: c['architecture'].update(options={'width':2}), 'weights of another network'),
    (lambda d,c: c['architecture'].update(model='resnet43'), "did you mean 'resnet34'"),
    (lambda d,c: c['origin'].update(versions={'model':9}), 'model is 9 there and 1 today'),
    (lambda d,c: (d/'model.safetensors').rename(d/'pytorch_model.bin'), 'pytorch_model.bin is never loaded'),
    (lambda d,c: (d/'model.safetensors').write_bytes(b'\x80\x04pickle'), '')])
def test_what_does_not_hold_all_is_refused(harm, say, tmp_path, monkeypatch):
    small().save_pretrained(tmp_path)
    monkeypatch.setattr(torch, 'load', lambda *a,**k: pytest.fail('a pickle was loaded'))
    about = json.loads((tmp_path/'config.json').read_text())
    harm(tmp_path, about)
    (tmp_path/'config.json').write_text(json.dumps(about))
    with pytest.raises(ValueError) as e: Classifier.from_pretrained(tmp_path)
    assert say in str(e.value)

def test_an_older_folder_works_once_the_numbers_are_added(tmp_path):
    net = small()
    net.save_pretrained(tmp_path)
    about = json.loads((tmp_path/'config.json').read_text())
    about['stats'] = {k:about['stats'][k] for k in ('mean','std')}
    (tmp_path/'config.json').write_text(json.dumps(about))
    x = torch.randint(0, 256, (2,3,24,24), dtype=torch.uint8)
    with torch.inference_mode(): assert torch.equal(Classifier.from_pretrained(tmp_path)(x), net(x))

def test_a_name_that_nobody_has(monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match='is no folder here, does not come with this package') as e: Classifier.from_pretrained('someone/else')
    assert len(str(e.value).splitlines())==1 and 'huggingface.co' in str(e.value)

@pytest.mark.parametrize('name', ['nowhere','runs/typo','./here','/nowhere','a/b/c','runs/'])
def test_a_path_is_never_asked_for_on_the_hub(name, monkeypatch, tmp_path):
    def ask(*args, **kwargs): pytest.fail('the hub was asked')
    monkeypatch.setattr('huggingface_hub.hub_mixin.hf_hub_download', ask)
    monkeypatch.chdir(tmp_path)
    (tmp_path/'runs'/'right').mkdir(parents=True)
    if name!='runs/':
        with pytest.raises(FileNotFoundError, match='no such folder'): Classifier.from_pretrained(name)
    else:
        with pytest.raises(ValueError, match='has no config.json'): Classifier.from_pretrained(name)

def test_a_network_of_the_package_is_the_local_copy(monkeypatch, tmp_path):
    def ask(*args, **kwargs): pytest.fail('the hub was asked')
    monkeypatch.setattr('huggingface_hub.hub_mixin.hf_hub_download', ask)
    monkeypatch.chdir(tmp_path)
    net = Classifier.from_pretrained('mils/photos-64')
    assert net.origin['run'].startswith('small_cnn-s0-') and len(net.classes)==100

def test_it_is_pushed_by_the_hubs_own_code(monkeypatch):
    from huggingface_hub import HfApi
    sent = {}
    class Repo: repo_id = 'me/net'
    monkeypatch.setattr(HfApi, 'create_repo', lambda self, **kw: Repo)
    def upload(self, folder_path, **kw): sent.update({p.name:p.stat().st_size for p in Path(folder_path).iterdir()}); return 'done'
    monkeypatch.setattr(HfApi, 'upload_folder', upload)
    assert small().push_to_hub('me/net')=='done' and {*sent}=={'config.json','model.safetensors','README.md'}

def test_what_has_no_architecture_is_not_saved(tmp_path):
    net = small()
    other = Classifier(net.net, 'RGB', net.stats, net.classes, 24)
    with pytest.raises(ValueError, match='no architecture'): other.save_pretrained(tmp_path)


def test_files_are_read_as_in_training(here):
    "What the run wrote about its test images is what `predict` says about their files"
    tmp,run = here
    preds = pd.read_parquet(run/'predictions.parquet').query("split=='test' and channels=='GB'")
    net = open_network(tmp/'taken')
    said = net.predict([tmp/'pictures'/o for o in preds.image], channels='GB', top=1)
    assert [net.classes.index(o.classes[0]) for o in said]==[*preds.pred] and {o.channels for o in said}=={'GB'}

def test_every_way_to_give_a_picture(here):
    tmp,_ = here
    net,file = open_network(tmp/'taken'),next((tmp/'pictures').rglob('*.png'))
    im = Image.open(file).convert('RGB')
    x = np.asarray(im)
    tensor = torch.from_numpy(x.copy()).permute(2,0,1)
    want = net.predict(file)[0].p
    for o in (str(file), file.read_bytes(), im, x, x.astype(float), tensor, tensor.float()):
        assert net.predict(o)[0].p==want and net.predict([o])[0].p==want
    for o in net.predict(np.stack([x,x])): assert o.p==pytest.approx(want, abs=1e-5)
    gb = net.predict(x, channels='GB')[0].p
    assert net.predict(x[...,1:], channels='GB')[0].p==gb==net.predict(file, channels='GB')[0].p

@pytest.mark.parametrize('x,say', [
    (np.random.default_rng(0).random((24,24,3)), 'values from .* and the network was trained on 0 to 255; multiply by 255'),
    (np.random.default_rng(0).normal(size=(24,24,3)), 'it normalises its own input'),
    (np.full((24,24,3), 4000, np.uint16), 'values from 4e\\+03'), (np.full((24,24,3), np.nan), 'not finite'),
    (np.zeros((24,24,5), np.uint8), '5 channels; expected 3, RGB'), (np.zeros((5,), np.uint8), 'shape')])
def test_values_that_are_not_the_trainings(x, say):
    answer, = small().predict([x])
    assert not answer.classes
    import re
    assert re.search(say, answer.why), answer.why

def test_a_deep_file_for_a_network_of_photographs(tmp_path):
    tifffile.imwrite(tmp_path/'deep.tif', np.full((24,24), 4000, np.uint16))
    assert 'values up to 4000, and the network was trained on photographs of 8 bits' in small().predict(tmp_path/'deep.tif')[0].why
    tifffile.imwrite(tmp_path/'full.tif', np.linspace(0, 65535, 576).astype(np.uint16).reshape(24,24))
    assert small().predict(tmp_path/'full.tif')[0].classes

def cells(): return small(stains, Ranges(stains, (0,10,0), (3000,2000,900), ('uint16',)*3))

def test_a_file_with_fewer_channels_is_named_with_both_counts(tmp_path):
    np.save(tmp_path/'two.npy', np.ones((2,24,24), np.uint16))
    tifffile.imwrite(tmp_path/'named.tif', np.full((2,24,24), 500, np.uint16), photometric='minisblack', planarconfig='separate',
                     metadata={'axes':'CYX','Channel':{'Name':['bright field','dark field']}})
    assert cells().predict(tmp_path/'two.npy')[0].why=='2 channels; the set has 3: bright field, DNA, dark field'
    seen, = cells().predict(tmp_path/'named.tif')
    assert seen.channels=='bright field+dark field' and seen.classes                                  # it has them, by name
    assert 'expected 1, and DNA is missing' in cells().predict(tmp_path/'named.tif', channels='DNA+')[0].why
    plain = small(stains, cells().ranges, dynamic=False)
    assert '2 channels, bright field, dark field; expected 3, and DNA is missing' in plain.predict(tmp_path/'named.tif')[0].why

@pytest.mark.parametrize('type,top', [(np.uint8,255), (np.float32,1), (np.float32,1e6)])
def test_a_file_of_other_numbers_is_refused(type, top, tmp_path):
    x = (np.random.default_rng(0).random((3,24,24))*top).astype(type)
    np.save(tmp_path/'other.npy', x)
    why = cells().predict(tmp_path/'other.npy')[0].why
    assert 'the network was trained on 0 to 3000 of uint16' in why

def test_values_outside_the_range_are_told(tmp_path):
    np.save(tmp_path/'bright.npy', np.full((3,24,24), 60000, np.uint16))
    with pytest.warns(UserWarning, match='bright.npy: channel bright field has values 60000 to 60000 of uint16'):
        cells().predict(tmp_path/'bright.npy')

def test_one_file_a_channel(tmp_path):
    for i in range(2):
        for c,k in (('Ch3',0),('Ch4',1)): tifffile.imwrite(tmp_path/f'{i}_{c}.tif', np.full((24,24), 500*k+100*i, np.uint16))
    net = small(('a','b'), Ranges(('a','b'), (0,0), (1000,1000), ('uint16',)*2, stored=('Ch3','Ch4')))
    assert [(o.picture,o.channels) for o in net.predict(tmp_path)]==[(f'{tmp_path}/{i}.tif','ab') for i in range(2)]


def test_command_goes_on_after_a_bad_file(here, capsys):
    tmp,_ = here
    (tmp/'bad.jpg').write_bytes(b'\xff\xd8\xff\xe0 cut')
    (tmp/'bad.zip').write_bytes(b'PK\3\4 cut')
    with zipfile.ZipFile(tmp/'good.zip', 'w') as z:
        for i,f in enumerate(sorted((tmp/'pictures').rglob('*.png'))[:3]): z.write(f, f'{i}.png')
    files = ['bad.jpg','bad.zip','good.zip','missing.png',str(next((tmp/'pictures').rglob('*.png')))]
    assert main(['predict','taken',*files,'--csv','--top','2'])==1
    said = capsys.readouterr()
    rows = [*csv.DictReader(io.StringIO(said.out))]
    assert len(rows)==7 and [bool(r['why']) for r in rows]==[True,True,False,False,False,True,False]
    assert all(r['class'] and r['class_2'] and float(r['p'])>=float(r['p_2']) for r in rows if not r['why'])
    for name in ('bad.jpg','bad.zip','missing.png'): assert f'mils: {name}: ' in said.err
    assert len(said.err.splitlines())==3

def test_json_and_table_tell_the_same(here, capsys):
    tmp,_ = here
    assert main(['predict','taken','pictures','--json'])==0
    objects = [json.loads(o) for o in capsys.readouterr().out.splitlines()]
    assert len(objects)==60 and all(o['channels']=='RGB' and len(o['classes'])==1 for o in objects)
    assert main(['predict','taken','pictures'])==0
    for o,line in zip(objects, capsys.readouterr().out.splitlines()): assert o['picture'] in line and o['classes'][0] in line

def test_standard_input(here):
    tmp,_ = here
    file = sorted((tmp/'pictures').rglob('*.png'))[0]
    def run(given):
        code = 'import sys; from mils.cli import main; sys.exit(main(["predict","taken","-","--json"]))'
        return json.loads(subprocess.run([sys.executable,'-c',code], input=given, capture_output=True, check=True).stdout)
    named,piped = run(f'{file}\n'.encode()),run(file.read_bytes())
    assert named['p']==piped['p'] and named['picture']==str(file)

def test_long_work_has_a_bar_and_short_work_none(here, monkeypatch, capsys):
    from mils import answers
    given,wait = answers.answers,[0]
    def slow(*args):
        for a in given(*args):
            time.sleep(wait[0])
            yield a
    monkeypatch.setattr(answers, 'answers', slow)
    monkeypatch.setattr('mils.asking.progress', partial(progress, disable=False))
    some = [str(f) for f in sorted((here[0]/'pictures').rglob('*.png'))[:8]]
    for wait[0],bar in ((0,False),(.35,True)):
        assert main(['predict','taken',*some])==0
        out,err = capsys.readouterr()
        assert len(out.splitlines())==8 and ('pictures:' in err)==bar

def test_a_reader_that_has_enough_is_no_error(here):
    code = 'import sys; from mils.cli import main; sys.exit(main(["predict","taken",*["pictures"]*40]))'
    p = subprocess.Popen([sys.executable,'-c',code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert p.stdout.readline()
    p.stdout.close()
    assert (p.wait(120),p.stderr.read())==(141,'')

@pytest.mark.parametrize('words,say', [(['taken'],'arguments are required'), (['taken','x','--channels','GX'],'possible: R, G, B'),
    (['nowhere/at/all','x'],'no such folder'), (['taken','x','--csv','--json'],'choose one'),
    (['taken','x','--top','0'],'expected 1 or more')])
def test_errors_are_a_line(words, say, here, capsys):
    try: assert main(['predict',*words])==1
    except SystemExit as e: assert e.code==2
    assert say in capsys.readouterr().err

def test_an_unfinished_run_is_named(here, tmp_path, capsys):
    (tmp_path/'run').mkdir()
    for f in ('config.json','metrics.jsonl'): (tmp_path/'run'/f).write_text('{}')
    assert main(['predict',str(tmp_path/'run'),'pictures'])==1
    assert 'not finished' in capsys.readouterr().err

@pytest.mark.parametrize('names,n', [(stains,30), (tuple(f'B{i:02}' for i in range(1, 14)),30)])
def test_the_whole_road(names, n, tmp_path, monkeypatch, capsys):
    "Check, train, predict with and without a channel, take along, export, show"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MILS_CACHE', str(tmp_path/'cache'))
    write_bands(tmp_path/'set', names, n)
    assert main(['data','check','set'])==0
    told = capsys.readouterr().out
    assert all(c in told for c in names)
    assert main('train small_cnn:dynamic --data set --size 24 --epochs 2 --set bs=8 --runs runs'.split())==0
    run, = map(str, (tmp_path/'runs').glob('*/'))
    few = '+'.join(names[:-1])
    capsys.readouterr()
    assert main(['predict',run,'set','--csv'])==0 and len(capsys.readouterr().out.splitlines())==n+1
    assert main(['predict',run,'set','--csv','--channels',few])==0 and few in capsys.readouterr().out
    load_run(run).save_pretrained('taken')
    for to in (run,'taken'):
        for words in (['--channels',few], ['--channels','all'], ['--channels',few,'--to','torch']): assert main(['export',to,*words])==0
    onnx = Path('taken')/f'network-{few}.onnx'
    import onnxruntime
    session = onnxruntime.InferenceSession(str(onnx), providers=['CPUExecutionProvider'])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about['channels'])==list(names[:-1]) and json.loads(about['classes'])==['class0','class1']
    assert main(['show',run,'--out','page.html','--data','set'])==0
    page = (tmp_path/'page.html').read_text()
    assert page.count('<h2>')==6 and page.count('src="')==page.count('src="data:')
    assert main(['show','taken'])==1 and 'no finished run' in capsys.readouterr().err
