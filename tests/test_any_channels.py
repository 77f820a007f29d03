"Pictures of any channels: how they are read, in which range, and what is done where some lack some"
import io,json,zipfile
from dataclasses import replace
import numpy as np,pytest,tifffile
from PIL import Image
from mils.batches import Batches
from mils.check import check
from mils.cli import main
from mils.config import Config
from mils.decode import Unreadable
from mils.identity import run_name
from mils.imageset import having
from mils.learner import get_learner
from mils.planes import read_planes
from mils.prediction import predict
from mils.trained import load_run
from mils.runs import train_run
from mils.sets import load_data
from mils.classifier import load_classifier

cells = 'bright field','DNA','dark field'
bands = tuple('B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12'.split())

def write_tiff(path, x, names=None, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    about = dict(metadata=dict(axes='CYX', Channel=dict(Name=list(names)))) if names else {}
    tifffile.imwrite(path, x, photometric='minisblack', **about, **kwargs)

def values(i, c, side=20, top=3000, dtype=np.uint16):
    "Channels that tell the class `i%2`, each by its brightness"
    x = np.random.default_rng(i).integers(0, top//2, (c,side,side))
    return (x+(i%2)*top//2).astype(dtype)

def some_cells(root, n=40, lacking=lambda i: ()):
    for i in range(n):
        keep = [k for k,c in enumerate(cells) if c not in lacking(i)]
        write_tiff(root/f'g{i%2}'/f'{i}.tif', values(i, 3)[keep], [cells[k] for k in keep])
    return root

def load(path, tmp_path, size=16, **kwargs): return load_data(path, size, cache_dir=tmp_path/'cache', **kwargs)

# 8-bit photographs keep the identity that they always had

def test_photographs_keep_their_identity(tmp_path):
    rng = np.random.default_rng(0)
    for c in ('ant','bee'):
        (tmp_path/'photos'/c).mkdir(parents=True)
        for i in range(20):
            x = rng.integers(0, 256, (24,30,4), dtype=np.uint8)
            im = Image.fromarray([x[...,:3], x, x[...,0], x[...,0].astype(np.uint16)*257][i%4])
            im.save(tmp_path/'photos'/c/f'{i}.{"png" if i%8 else "tif"}')
    ds = load(tmp_path/'photos', tmp_path)
    pixels = next(o for o in (tmp_path/'cache'/'pixels').iterdir() if o.is_dir())
    assert (ds.key,ds.channels,ds.ranges,ds.there)==('ef686341e245684a','RGB',None,None)
    assert pixels.name=='16px-1945c9c0472a435b6e43' and sorted(o.name for o in pixels.iterdir())==['meta.json','pixels.u8']
    assert {*json.loads((pixels/'meta.json').read_text())}=={'n','size','shard','sums','bad','check'}
    fixed = replace(ds, key='ef686341e245684a')
    assert run_name(Config('small_cnn', precision='float32'), fixed)=='small_cnn-s0-1be409acfb0f'
    regression = Config('small_cnn', dynamic=True, generator='covariance', sampling='sample', precision='float32')
    assert run_name(regression, fixed)=='small_cnn-s0-0fbb42030787'

# reading

def stored(x, **kwargs):
    f = io.BytesIO()
    tifffile.imwrite(f, x, **kwargs)
    return f.getvalue()

@pytest.mark.parametrize('dtype', ['uint8','uint16','float32'])
@pytest.mark.parametrize('how', ['pages','planar','contiguous','zlib','lzw','imagej','ome','tiles','npy','npz','named npz'])
def test_layouts_are_read_unrounded(how, dtype):
    x = values(3, 5, 32, 200, dtype)
    if dtype=='float32': x /= 7
    wide = np.ascontiguousarray(np.moveaxis(x, 0, 2))
    f = io.BytesIO()
    if how=='npy': np.save(f, wide)
    elif how=='npz': np.savez(f, x)
    elif how=='named npz': np.savez(f, **{f'c {i}':o for i,o in enumerate(x)})
    b = f.getvalue() or dict(
        pages=lambda: stored(x, photometric='minisblack'), planar=lambda: stored(x, photometric='minisblack', planarconfig='separate'),
        contiguous=lambda: stored(wide, photometric='minisblack', planarconfig='contig'),
        zlib=lambda: stored(x, photometric='minisblack', compression='zlib', predictor=True),
        lzw=lambda: stored(x, photometric='minisblack', compression='lzw'),
        imagej=lambda: stored(x, imagej=True, metadata=dict(axes='CYX')), ome=lambda: stored(x, ome=True, metadata=dict(axes='CYX')),
        tiles=lambda: stored(x, photometric='minisblack', tile=(16,16)))[how]()
    got = read_planes(b)
    assert np.array_equal(np.stack(got.data), x) and got.data[0].dtype==dtype
    if how=='named npz': assert got.names==tuple(f'c {i}' for i in range(5))

def test_gdal_names_of_bands():
    items = ''.join(f'<Item name="DESCRIPTION" sample="{i}" role="description">{c}</Item>' for i,c in enumerate(('B02','B03')))
    b = stored(values(0, 2), photometric='minisblack', extratags=[(42112, 's', 0, f'<GDALMetadata>{items}</GDALMetadata>', True)],
        metadata=None)
    assert read_planes(b).names==('B02','B03')

def test_deep_png_keeps_its_bits(tmp_path):
    import imagecodecs
    x = np.moveaxis(values(1, 4, top=60000), 0, 2)
    got = read_planes(imagecodecs.png_encode(np.ascontiguousarray(x)))
    assert got.names==tuple('RGBA') and np.array_equal(np.stack(got.data, -1), x)
    Image.fromarray(x[...,0].copy()).save(tmp_path/'grey.png')
    grey = read_planes((tmp_path/'grey.png').read_bytes())
    assert grey.names is None and np.array_equal(grey.data[0], x[...,0])

@pytest.mark.parametrize('b,why', [(b'PK\3\4nothing','damaged'), (b'\x93NUMPY\1\0nothing','not a whole array'), (b'II*\0'+bytes(30),
    'damaged'),
    (stored(values(0, 3), photometric='minisblack')[:900],'damaged|truncated'), (stored(np.zeros((2,3,8,8), np.uint16), imagej=True,
        metadata=dict(axes='ZCYX')),'planes in depth'),
    (stored(np.zeros((8,8), np.complex64)),'complex64')])
def test_what_is_no_picture_has_a_reason(b, why):
    with pytest.raises(Unreadable, match=why): read_planes(b)

def test_a_pickle_is_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self): return (tmp_path/'ran').touch,()
    for save in (np.save, lambda f,x: np.savez(f, x)):
        f = io.BytesIO()
        save(f, np.array([Evil()], object))
        with pytest.raises(Unreadable): read_planes(f.getvalue())
    assert not (tmp_path/'ran').exists()

def test_alpha_is_a_channel_where_it_is_asked_for(tmp_path):
    for i in range(20):
        x = np.random.default_rng(i).integers(0, 256, (20,20,4), dtype=np.uint8)
        (tmp_path/'p'/f'c{i%2}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(tmp_path/'p'/f'c{i%2}'/f'{i}.png')
    assert load(tmp_path/'p', tmp_path).channels=='RGB'
    ds = load(tmp_path/'p', tmp_path, 20, channels='RGBA')
    x = np.asarray(Image.open(tmp_path/'p'/ds.names[0]))
    assert ds.channels=='RGBA' and np.array_equal(ds.images[0], x)

@pytest.mark.parametrize('place', ['suffix','folder above','folder below','zip'])
def test_one_file_a_channel(place, tmp_path):
    "As microscopes and satellites deliver them"
    def name(i, c): return dict(suffix=f'g{i%2}/{i:03}_Ch{c}.tif').get(place) or (f'B0{c}/g{i%2}/{i}.tif'
        if place!='folder below' else f'g{i%2}/B0{c}/{i}.tif')
    files = {name(i, c):values(i, 3)[k] for i in range(20) for k,c in enumerate((2,3,8))}
    if place=='zip':
        with zipfile.ZipFile(tmp_path/'s.zip', 'w') as z:
            for n,x in files.items(): z.writestr(n, stored(x))
        path = tmp_path/'s.zip'
    else:
        path = tmp_path/'s'
        for n,x in files.items(): write_tiff(path/n, x)
    ds = load(path, tmp_path, 20, rules='0:3000', bits=16)
    assert ds.channels==(('Ch2','Ch3','Ch8') if place=='suffix' else ('B02','B03','B08'))
    i = int(ds.names[0].split('/')[-1].split('.')[0])
    assert ds.classes==['g0','g1'] and len(ds.labels)==20
    assert np.array_equal(ds.images[0], (np.moveaxis(values(i, 3), 0, 2)/np.float32(3000)*65535).round())
    assert load(path, tmp_path, 20, channels=cells).channels==cells

def test_bands_of_other_sizes_are_one_picture(tmp_path):
    for i in range(20):
        for c,side in (('B02',40),('B05',20),('B01',7)): write_tiff(tmp_path/'s'/f'g{i%2}'/f'{i}_{c}.tif', values(i, 1, side)[0])
    ds = load(tmp_path/'s', tmp_path)
    assert ds.images.shape==(20,16,16,3) and ds.channels==('B01','B02','B05')

# ranges

def test_twelve_bits_in_a_file_of_sixteen_are_not_black(tmp_path):
    ds = load(some_cells(tmp_path/'c'), tmp_path)
    assert ds.channels==cells and ds.images.max()==255 and ds.images.mean()>100
    black = load(tmp_path/'c', tmp_path, rules='type')
    assert black.images.max()<16 and black.key!=ds.key
    assert any('nearly one colour' in o for o in repr(check(tmp_path/'c', rules='type')).splitlines())

def test_the_range_is_found_once_in_the_training_images(tmp_path, monkeypatch):
    ds = load(some_cells(tmp_path/'c'), tmp_path)
    bright = ds.names[ds.splits['test'][0]]
    monkeypatch.setattr('mils.cache.set_ranges', lambda *args: pytest.fail('found again'))
    assert load(tmp_path/'c', tmp_path).ranges==ds.ranges
    monkeypatch.undo()
    write_tiff(tmp_path/'c'/bright, np.full((3,20,20), 60000, np.uint16), cells)
    assert load(tmp_path/'c', tmp_path).ranges==ds.ranges

def test_ranges_are_the_networks_too(tmp_path):
    path = some_cells(tmp_path/'c')
    ds = load(path, tmp_path, rules='DNA=0:3000', bits=16)
    cfg = Config('small_cnn', channels=cells, dynamic=True, sampling='sample', epochs=1, overrides=dict(bs=8))
    run = train_run(cfg, ds, tmp_path/'runs')
    net = load_run(run)
    assert net.ranges==ds.ranges and net.ranges.high[1]==3000 and net.fold(['DNA']).ranges.names==('DNA',)
    other = load(path, tmp_path)
    with pytest.raises(ValueError, match='DNA=0:3000'): predict(net, other)
    again = load(path, tmp_path, rules=net.ranges.rules, bits=16)
    assert predict(net, again).p.equals(predict(net, ds).p)

@pytest.mark.parametrize('kwargs,say', [
    (dict(channels=['RNA']), 'possible: bright field, DNA, dark field'), (dict(rules='full'), 'expected type, percentiles'),
    (dict(rules='RNA=type'), 'possible: bright field'), (dict(bits=12), 'expected 8 or 16'), (dict(rules='9:3'),
        'expected low before high')])
def test_what_does_not_fit_is_told(kwargs, say, tmp_path):
    with pytest.raises(ValueError, match=say): load(some_cells(tmp_path/'c', 8), tmp_path, **kwargs)

def test_files_with_too_few_channels_are_named(tmp_path):
    for i in range(20): write_tiff(tmp_path/'c'/f'g{i%2}'/f'{i}.tif', values(i, 3))
    names = load(tmp_path/'c', tmp_path, channels=cells).names
    write_tiff(tmp_path/'c'/names[-1], values(0, 2))
    with pytest.raises(ValueError) as e: load(tmp_path/'c', tmp_path, channels=cells)
    assert f'{names[-1]}: 2 channels; the set has 3' in str(e.value) or '2, 3 channels and do not name them' in str(e.value)

# pictures that lack channels

@pytest.fixture(scope='module')
def partial(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp('partial')
    path = some_cells(tmp_path/'c', 120, lambda i: ('DNA',) if i%3==0 else ('dark field',) if i%7==1 else ())
    return load(path, tmp_path, bits=16)

def test_availability_is_kept(partial):
    number = [int(n.split('/')[-1].split('.')[0]) for n in partial.names]
    assert np.array_equal(partial.there[:,1], [i%3!=0 for i in number]) and partial.there[:,0].all()
    assert not partial.images[~partial.there[:,1]][...,1].any()

def test_statistics_use_what_is_there(partial):
    train = partial.splits['train']
    for k in range(3):
        mine = partial.images[train[partial.there[train,k]]][...,k]/65535
        assert np.isclose(partial.stats.mean[k], mine.mean(), rtol=1e-5) and np.isclose(partial.stats.std[k], mine.std(), rtol=1e-4)
    assert np.linalg.eigvalsh(partial.stats.cov).min()>0

@pytest.mark.parametrize('sampling', ['sample','batch','dropout'])
def test_training_draws_among_what_is_there(sampling, partial):
    cfg = Config('small_cnn', channels=cells, dynamic=True, sampling=sampling, views=2, epochs=1, overrides=dict(bs=16),
        shares={'bright field':.5})
    learn,seen = get_learner(cfg, partial),[]
    old = learn.channel_sampling.masks
    def masks(n, c, g=None, there=None):
        m = old(n, c, g, there)
        seen.append((m,there))
        return m
    learn.channel_sampling.masks = masks
    with learn.no_bar(): learn.fit(1)
    assert seen and all((~m|t).all() and m.any(1).all() for m,t in seen)

def test_each_set_is_reported_on_the_pictures_that_have_it(partial, tmp_path):
    cfg = Config('small_cnn', channels=cells, dynamic=True, sampling='sample', epochs=1, overrides=dict(bs=16))
    run = train_run(cfg, partial, tmp_path)
    for a in json.loads((run/'DONE').read_text())['accuracy']:
        names = a['channels'].rstrip('+').split('+')
        assert a['n']==len(having(partial, names).splits[a['split']])>0

def test_a_plain_network_takes_the_pictures_that_have_all(partial, tmp_path):
    cfg = Config('small_cnn', channels=['bright field','DNA'], epochs=1, overrides=dict(bs=16))
    learn = get_learner(cfg, partial)
    assert len(learn.dls.train_ds)==partial.there[partial.splits['train'],1].sum() and learn.dls.train_ds.n_inp==1
    run = train_run(cfg, partial, tmp_path)
    assert load_classifier(run/'model.safetensors').channels==('bright field','DNA')

def test_what_an_absent_channel_holds_has_no_effect(partial):
    full = partial.images.copy()
    full[~partial.there[:,1],:,:,1] = 60000
    other = replace(partial, images=full)
    cfg = Config('small_cnn', channels=cells, dynamic=True, sampling='sample', epochs=1, overrides=dict(bs=16), precision='float32')
    a,b = (get_learner(cfg, o) for o in (partial, other))
    for learn in (a,b):
        with learn.no_bar(): learn.fit(1)
    assert a.record.rows[0]['train_loss']==b.record.rows[0]['train_loss'] and a.record.rows[0]['val_loss']==b.record.rows[0]['val_loss']

def test_pictures_with_a_mask_are_shown(partial):
    b = Batches(partial, 'train', bs=8, train=True)
    x,there,y = b.one_batch()
    assert there.shape==(8,3) and b.decode((x,there,y))[0].min()>=0

# a channel that is always in, by command

def test_always_and_share_by_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MILS_CACHE', str(tmp_path/'cache'))
    path = some_cells(tmp_path/'c')
    words = ['train','small_cnn:dynamic','--data',str(path),'--size','16','--epochs','1','--set','bs=8','--runs',str(tmp_path/'runs')]
    assert main([*words,'--always','bright field+','--share','DNA=0.25'])==0
    cfg = json.loads(next((tmp_path/'runs').glob('*/config.json')).read_text())['config']
    assert cfg['shares']=={'bright field':1.0,'DNA':.25} and cfg['channels']=='bright field+DNA+dark field'
    assert main([*words,'--always','RNA+'])==1 and main([*words,'--share','DNA=2'])==1 and main([*words[:1],'small_cnn',*words[2:],
        '--always','DNA+'])==1
    told = [o for o in capsys.readouterr().err.splitlines() if o.startswith('mils: ')]
    assert 'possible: bright field' in told[0] and 'expected more than 0' in told[1] and 'need a sampling' in told[2]

# data check

def test_check_warns(tmp_path, capsys, monkeypatch):
    for i in range(24):
        x = values(i, 4)
        x[2],x[3] = 9,x[1]
        write_tiff(tmp_path/'c'/f'g{i%2}'/f'{i}.tif', x, [*cells,'copy'])
    r = check(tmp_path/'c')
    told = repr(r)
    for part in ('bright field','0 to 2999','channel dark field is the same everywhere','DNA and copy are the same picture',
        'correlations: DNA and copy 1.00'):
        assert part in told, part
    assert '<img alt="Correlations of bright field' in r._repr_html_()
    assert main(['data','check',str(tmp_path/'c'),'--range','type'])==0
    assert 'nearly one colour' in capsys.readouterr().out

def test_check_of_photographs_warns_of_twins(tmp_path):
    for i in range(8):
        (tmp_path/f'c{i%2}').mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20,20), dtype=np.uint8)).save(tmp_path/f'c{i%2}'/f'{i}.png')
    assert 'channels R and G are the same picture' in repr(check(tmp_path))

# thirteen bands, through every command

@pytest.fixture(scope='module')
def thirteen(tmp_path_factory):
    path = tmp_path_factory.mktemp('thirteen')/'scenes'
    for i in range(40):
        x = values(i, 13, 16, 10000)
        for k,c in enumerate(bands): write_tiff(path/f'land{i%2}'/c/f'{i}.tif', x[k,::1+(k>8),::1+(k>8)])
    return path

def test_thirteen_bands_run_through_every_command(thirteen, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MILS_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('MILS_RESULTS', str(tmp_path/'results'))
    def mils(*words):
        status = main([str(o) for o in words])
        said = capsys.readouterr()
        assert status==0, said.err
        return said.out
    data = '--data',thirteen,'--size','16'
    assert all(b in mils('data','check',thirteen) for b in bands)
    assert 'B01+B02' in mils('data','cache',thirteen,'--size','16')
    out = mils('train','small_cnn:dynamic',*data,'--epochs','1','--set','bs=16')
    assert '97 of the 8,191 channel sets' in out and '   13 channels, 1 sets' in out
    out = mils('sweep','chroma','--data',thirteen,'--networks','small_cnn small_cnn:dynamic','--seeds','0','--epochs','1','--set',
        'bs=16','--bits','16')
    assert '2 of 2 runs are done' in out
    assert 'small_cnn' in mils('results','chroma','--out',tmp_path/'tables')
    out = mils('convert','chroma','--data',thirteen,'--out',tmp_path/'tables','--methods','covariance')
    assert all(c in out for c in bands)
    assert 'gap' in mils('fuse','chroma','--data',thirteen,'--out',tmp_path/'tables')
    assert main(['bench','--data',str(thirteen),'--epochs','2','--rounds','1'])==1
    assert 'photographs' in capsys.readouterr().err
