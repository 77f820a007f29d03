"What people have on their disks: layouts, lists, archives and files that others met, each a test of its kind"
import os,re,threading,time,zipfile
from pathlib import Path
import numpy as np,pytest
from PIL import Image
from fuzz_field import fuzz
from test_data import course,image,photo,says,stored,write,write_zip
from mils.cli import main
from mils.check import check
from mils.config import Config
from mils.decode import decode,Unreadable
from mils.manifest import read_manifest
from mils.sets import load_data

def folders(*names, n=3, each='{}/{}.png'):
    "Files of class folders, different pictures"
    return {each.format(o, i):image(100*k+i) for k,o in enumerate(names) for i in range(n)}

def seen(m):
    "Which classes each split has, and how many pictures"
    return {s:{c:int(((m.split==i)&(m.labels==y)).sum()) for y,c in enumerate(m.classes) if ((m.split==i)&(m.labels==y)).any()}
            for i,s in enumerate(('train','val','test'))}

def notes(m): return '\n'.join(m.notes)

# --- 1: splits in any spelling

@pytest.mark.parametrize('train,val,test', [
    ('Train','Val','Test'), ('training','validation','testing'), ('training_set','val_set','test_set'),
    ('seg_train','seg_val','seg_test'), ('TRAIN','VALID','TEST'), ('train2017','val2017','test2017'), ('train','valid','Test'),
    ('images/train','images/val','images/test'), ('TrainSet','dev','TestSet'),
    ('my set/seg_train/seg_train','my set/seg_val/seg_val','my set/seg_test/seg_test')])
def test_split_folders_in_any_spelling(tmp_path, train, val, test):
    write(tmp_path, folders(*(f'{s}/{c}' for s in (train,val,test) for c in ('cat','dog'))))
    assert seen(read_manifest(tmp_path))=={s:dict(cat=3, dog=3) for s in ('train','val','test')}

def test_splits_below_the_classes(tmp_path):
    write(tmp_path, folders('cat/train','cat/Test','dog/train','dog/Test'))
    m = read_manifest(tmp_path, val=0)
    assert seen(m)==dict(train=dict(cat=3, dog=3), val={}, test=dict(cat=3, dog=3))

def test_what_only_sounds_like_a_split_is_a_class(tmp_path):
    write(tmp_path, folders('bullet train','train','bus','crash test dummy', n=10))
    assert read_manifest(tmp_path).classes==['bullet train','bus','crash test dummy','train']

def test_folders_beside_the_splits_are_told(tmp_path):
    write(tmp_path, folders('train/cat','train/dog','test/cat','holdout/dog')|{'train/1.png':image(), 'pred/2.png':image()})
    m = read_manifest(tmp_path, val=0)
    assert seen(m)==dict(train=dict(cat=3, dog=3), val={}, test=dict(cat=3))
    for o in ('3 images in holdout/dog','1 images in train','1 images in pred'): assert o in notes(m)

def test_a_test_without_anything_to_train_on(tmp_path):
    write(tmp_path, folders('learn/cat','learn/dog','test/cat','test/dog'))
    with says('test/', 'no folder of training pictures'): read_manifest(tmp_path)
    (tmp_path/'learn').rename(tmp_path/'train')
    for c in ('cat','dog'): (tmp_path/'train'/c).rename(tmp_path/f'train/{c}s')
    with says('cat', 'has no training image'): read_manifest(tmp_path)

@pytest.mark.parametrize('val', ['valid.txt','dev.txt','Validation.txt','val_list.txt'])
@pytest.mark.parametrize('test', ['testing.txt','test_labels.csv','Test.txt'])
def test_lists_in_any_spelling(tmp_path, val, test):
    f = course()
    sep = ',' if test.endswith('csv') else ' '
    files = {('training.txt' if k=='train.txt' else val if k=='val.txt' else test if k=='test.txt' else k):v for k,v in f.items()}
    files[test] = files[test].replace(' ', sep)
    m = read_manifest(write(tmp_path, files))
    assert np.bincount(m.split).tolist()==[8,2,2] and not any('drawn' in o for o in m.notes)

def test_a_list_under_another_name_is_told(tmp_path):
    f = course()
    m = read_manifest(write(tmp_path, {('holdout.txt' if k=='test.txt' else k):v for k,v in f.items()}|{'README.txt':'nothing'}))
    assert 'holdout.txt names pictures and is not used' in notes(m) and 'README' not in notes(m)

# --- 2: what cannot be used is counted

def test_pictures_of_other_kinds_are_told(tmp_path):
    heic = b'\0\0\0\x18ftypheic'+bytes(40)
    odd = {'cat/a.jfif':stored(photo(),'JPEG'), 'cat/b.heic':heic, 'dog/c.psd':b'8BPS'}
    root = write(tmp_path/'in', folders('cat','dog','newt', n=10)|odd)
    (root/'newt/d.jpg').symlink_to('nowhere')
    m = read_manifest(root)
    assert 'cat/a.jfif' in m.names and '1 files are no pictures and are left out: 1 .psd' in notes(m)
    r = check(m)
    assert {o.path:o.reason for o in r.bad}=={'cat/b.heic':'HEIC, which is not read here; convert it to JPEG or PNG',
                                              'newt/d.jpg':'a link that leads nowhere'}
    with says('2 of 33','b.heic','d.jpg','--skip-bad'): load_data(root, 8, cache_dir=tmp_path/'c')
    assert load_data(root, 8, skip_bad=True, cache_dir=tmp_path/'c').skipped==2

def test_an_empty_class_folder_is_told(tmp_path):
    write(tmp_path, folders('cat','dog')|{'newt/a.psd':b'8BPS'})
    (tmp_path/'frog').mkdir()
    assert '1 folders are empty: frog/' in notes(read_manifest(tmp_path))
    write(tmp_path/'newt', {'b.heic':b'\0\0\0\x18ftypheic'})
    with says('b.heic', exc=ValueError): load_data(tmp_path, 8, cache_dir=tmp_path/'.c')
    with says("'newt' has no training image"): load_data(tmp_path, 8, skip_bad=True, cache_dir=tmp_path/'.c')

# --- 3: archives

@pytest.mark.parametrize('inside', ['','data/','{}/','Set/{}/'])
def test_zips_named_after_splits(tmp_path, inside):
    for s in ('train','test'):
        write_zip(tmp_path/f'{s}.zip', {inside.format(s)+k:v for k,v in folders('cat','dog', n=4+(s=='test')).items()})
    assert seen(read_manifest(tmp_path, val=0))==dict(train=dict(cat=4, dog=4), val={}, test=dict(cat=5, dog=5))

def test_zips_as_classes_and_as_parts(tmp_path):
    for o in 'ab': (tmp_path/o).mkdir()
    for c in ('cat','dog'): write_zip(tmp_path/f'a/{c}.zip', {f'{i}.png':image(i+10*(c=='dog')) for i in range(3)})
    assert read_manifest(tmp_path/'a', val=0, test=0).classes==['cat','dog']
    for j in range(2): write_zip(tmp_path/f'b/part{j}.zip', folders('cat','dog', each='{}/'+str(j)+'{}.png'))
    assert seen(read_manifest(tmp_path/'b', val=0, test=0))['train']==dict(cat=6, dog=6)

def test_a_zip_beside_the_pictures(tmp_path):
    "That has nothing to do with them, is damaged, or holds one very compressible text"
    archives = {'half.zip':b'PK\x03\x04'+bytes(100), 'late.zip':b'7z\xbc\xaf'+bytes(40), 'more.tar.gz':b'\x1f\x8b'}
    write(tmp_path, folders('cat','dog')|archives)
    with zipfile.ZipFile(tmp_path/'log.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('/var/log/all.txt', bytes(10**8))
    write_zip(tmp_path/'outer.zip', {'inner.zip':b'PK'})
    m = read_manifest(tmp_path)
    assert len(m)==6
    for o in ('half.zip: not a complete zip','late.zip: a 7z archive; unpack it','more.tar.gz is not read; unpack it',
              'log.zip holds no pictures','inner.zip: unpack it'): assert o in notes(m)
    for o in ('half.zip','late.zip'): (tmp_path/o).unlink()
    with zipfile.ZipFile(tmp_path/'extra.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('notes.txt', bytes(10**8))
        z.writestr('cat/9.png', image(77))
        z.writestr('cat/black.bmp', stored(Image.new('RGB', (900,900)), 'BMP'))
    assert len(read_manifest(tmp_path))==8

def test_a_damaged_zip_that_may_hold_pictures(tmp_path):
    write(tmp_path, {k:v for k,v in course().items() if k!='images/3.png'}|{'part.zip':b'PK\x03\x04'+bytes(100)})
    with says('part.zip','not a complete zip'): read_manifest(tmp_path)
    write(tmp_path, {'images/3.png':image(3)})
    assert len(read_manifest(tmp_path))==12
    (tmp_path/'b').mkdir()
    write_zip(tmp_path/'b/1.zip', folders('cat','dog'))
    (tmp_path/'b/2.zip').write_bytes(b'PK\x03\x04'+bytes(100))
    with says('2.zip','not a complete zip'): read_manifest(tmp_path/'b')

@pytest.mark.parametrize('magic,kind', [
    (b'7z\xbc\xaf\x27\x1c','7z'), (b'\x1f\x8b\x08','gzip'), (b'Rar!\x1a\x07','RAR'), (b'x'*257+b'ustar','tar')])
def test_other_archives_are_to_be_unpacked(tmp_path, magic, kind):
    (tmp_path/'pets.zip').write_bytes(magic+bytes(600))
    with says('pets.zip', kind, 'unpack it'): read_manifest(tmp_path/'pets.zip')
    (tmp_path/'1.png').write_bytes(image())
    with says('1.png is a picture', 'expected a folder'): read_manifest(tmp_path/'1.png')

def test_copies_are_an_exit_status_and_are_told_in_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('MILS_CACHE', str(tmp_path/'c'))
    f = folders('train/cat','train/dog','test/cat', n=4)
    assert main(['data','check',str(write(tmp_path/'a', f))])==0
    f |= {'test/cat/copy.png':f['train/cat/0.png'], 'train/dog/copy.png':f['train/cat/1.png']}
    assert main(['data','check',str(write(tmp_path/'a', f))])==3
    assert '1 across splits, 1 with two labels' in capsys.readouterr().out
    assert main(['data','cache',str(tmp_path/'a'),'--size','8'])==0
    err = capsys.readouterr().err
    assert '1 pictures lie in more than one split' in err and '1 pictures have more than one label' in err
    write(tmp_path/'a', {'test/cat/bad.png':b'?'})
    assert main(['data','check',str(tmp_path/'a')])==1

# --- 4: the first folder is the class

def test_the_first_folder_is_the_class(tmp_path):
    litter = ('cat/@eaDir','$RECYCLE.BIN','lost+found','System Volume Information','@eaDir','__MACOSX','dog/.thumbs')
    write(tmp_path, folders('cat/2020','cat/2021','dog/2020',*litter)|{'cat/Thumbs.db':b'x'})
    m = read_manifest(tmp_path, val=0, test=0)
    assert seen(m)['train']==dict(cat=6, dog=3)
    assert '9 images lie in folders below that of their class' in notes(m)
    assert repr(check(m)).count('classes    cat, dog\n')==1

def test_a_stray_picture_changes_no_class(tmp_path):
    write(tmp_path, folders('pets/cat','pets/dog')|{'cover.png':image(7), 'pets/all.png':image(8)})
    m = read_manifest(tmp_path)
    assert m.classes==['cat','dog'] and '1 images in pets lie' in notes(m)

# --- 6: damage that the format can tell

def damaged(b, at): return b[:at]+bytes([b[at]^0x15])+b[at+1:]

def test_a_png_with_a_wrong_checksum_is_no_picture():
    for b in (stored(photo()), stored(photo().quantize(16)), stored(photo(), compress_level=0)):
        for at in range(8, len(b), max(1, len(b)//80)):
            with pytest.raises(Unreadable): decode(damaged(b, at), 16)
        decode(b+b'behind the end', 16)

@pytest.mark.parametrize('kw', [dict(fmt='GIF'), dict(fmt='TIFF'), dict(fmt='TIFF', compression='tiff_lzw'), dict(fmt='WEBP')], ids=str)
def test_lengths_are_compared_with_what_the_header_promises(kw):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40,40,3), dtype=np.uint8))
    b = stored(im, **kw)
    whole = decode(b, 32)
    for k in range(30, len(b)-40, max(1, len(b)//60)):
        cuts = [b[:k]]+[b[:k]+bytes(len(b)-k)]*(kw['fmt']=='GIF')
        for cut in cuts:
            try: got = decode(cut, 32)
            except Unreadable: continue
            assert (got==whole).all()

def test_pictures_of_one_colour_are_listed(tmp_path):
    bmp = stored(photo(), 'BMP')
    write(tmp_path, folders('cat','dog')|{'cat/zeros.bmp':bmp[:54]+bytes(len(bmp)-54)})
    r = check(tmp_path)
    assert r.ok and [r.manifest.rows[i].path for i in r.blank]==['cat/zeros.bmp']
    assert 'one colour 1, perhaps damaged: cat/zeros.bmp' in repr(r)

# --- 7: names are bytes

def test_names_that_are_no_text(tmp_path, monkeypatch, capsys):
    root = tmp_path/'in'
    write(root, folders('dog', n=12))
    bad = os.fsencode(root)+b'/caf\xe9'
    os.mkdir(bad)
    for i in range(12):
        with open(bad+b'/\xff%d.png' % i, 'wb') as f: f.write(image(50+i))
    m = read_manifest(root)
    assert m.classes==['caf\\xe9','dog'] and all(o.isprintable() for o in m.names)
    monkeypatch.chdir(tmp_path); monkeypatch.setenv('MILS_CACHE', str(tmp_path/'c'))
    assert main(['train','small_cnn','--data',str(root),'--size','8','--epochs','1','--set','bs=8'])==0
    import pandas as pd
    preds = pd.concat(map(pd.read_parquet, Path('runs/train').glob('*/predictions.parquet')))
    assert any('caf\\xe9/\\xff' in o for o in preds.image)
    assert main(['data','check',str(root)])==0

# --- 8: text inside a zip

@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize('name', ['train.txt','classes.txt'])
def test_a_damaged_list_in_a_zip_is_named(tmp_path, method, name):
    f = course(60)|{'classes.txt':'0 cat\n1 dog'}
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', method) as z:
        for k,v in f.items(): z.writestr(k, v)
    o,b = z.getinfo(name),(tmp_path/'a.zip').read_bytes()
    start = o.header_offset+30+len(name)
    wrong = 0
    for at in [*range(start, start+o.compress_size, max(1, o.compress_size//12)), o.header_offset+6, o.header_offset+8, o.header_offset+28]:
        (tmp_path/'a.zip').write_bytes(damaged(b, at))
        try: read_manifest(tmp_path/'a.zip')
        except ValueError as e:
            wrong += 1
            assert name in str(e) or 'a.zip' in str(e)
    assert wrong>3

def test_a_zip_with_names_that_are_no_text_is_named(tmp_path):
    write_zip(tmp_path/'a.zip', {'é.png':image()})
    b = (tmp_path/'a.zip').read_bytes().replace('é.png'.encode(), b'\xff\xfe.png')
    (tmp_path/'a.zip').write_bytes(b)
    with says('a.zip'): read_manifest(tmp_path/'a.zip')

# --- 9: names guessed from text

def test_a_comma_in_a_class_name(tmp_path):
    write(tmp_path, folders('Paris, France','Paris, Texas')|{'words.txt':'Paris, France\tone, two\n'})
    assert read_manifest(tmp_path).classes==['Paris, France','Paris, Texas']

@pytest.mark.parametrize('text,names', [('dog 1\ncat 0\n',['cat','dog']), ('1 cat\n2 dog\n',['cat','dog']), ('0,cat\n1,dog',['cat','dog']),
    ('0: cat\n1: dog',['cat','dog']), ('cat\ndog',['cat','dog']), ('route 66\n7 up',['route 66','7 up']), ('dog\t1\ncat\t0',['cat','dog'])])
def test_classes_in_any_order(tmp_path, text, names):
    f = from_1(course()) if text.startswith('1 ') else course()
    assert read_manifest(write(tmp_path, f|{'classes.txt':text})).classes==names

def from_1(files):
    "The same with labels that begin at 1"
    return {k:re.sub(r' ([01])\n', lambda m: f' {int(m[1])+1}\n', v) if k.endswith('.txt') else v for k,v in files.items()}

# --- 10: an error is quick

def test_an_error_takes_less_than_the_work(tmp_path):
    n = 8000
    text = ''.join(f'{i}.png a class with a long name {i}\n' for i in range(n))
    write(tmp_path, {'train.txt':text, 'val.txt':text.replace(' a class', ' a klass').replace('png','jpg')})
    start = time.process_time()
    with says('8,000 mistakes','did you mean','and 7,990 more'): read_manifest(tmp_path)
    write(tmp_path, {'train.txt':''.join(f'{i}.png 0\n' for i in range(20_000))+'x.png 999999\n', 'val.txt':''})
    with says('class 1 has no training image'): read_manifest(tmp_path)
    assert time.process_time()-start<5

# --- 11: numbers

@pytest.mark.parametrize('words', ['--set bs=0','--set bs=1.5','--set shift=4','--set shift=2','--set shift=-1','--set lr=-1',
    '--set smoothing=2','--set flip=2','--size 0','--size -3','--epochs 0','--seed -1','--set lr=nan'])
def test_numbers_are_checked(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['train','small_cnn','--data',str(write(tmp_path/'in', folders('cat','dog', n=10))),*words.split()])==1
    err = capsys.readouterr().err
    assert err.startswith('mils: ') and len(err.splitlines())==1 and 'expected' in err
    assert not (tmp_path/'runs').exists()

@pytest.mark.parametrize('f', [
    lambda ds: load_data(n_train=40, n_val=5, n_test=5, size=0), lambda ds: Config(epochs=1.5), lambda ds: Config(views=0),
    lambda ds: Config(dynamic=True, sampling='sample', views=2, distill=3),
    lambda ds: batches(ds, bs=0), lambda ds: batches(ds, bs=1.5),
    lambda ds: batches(ds, shift=2), lambda ds: learner(ds, lr=1), lambda ds: learner(ds, opt_func=print)])
def test_numbers_are_checked_in_python(tiny, f):
    with pytest.raises(ValueError, match='expected|follows from the Config'): f(tiny)

def batches(ds, **kw):
    from mils.batches import Batches
    return Batches(ds, train=True, **kw)

def learner(ds, **kw):
    from mils.learner import get_learner
    return get_learner(Config(), ds, **kw)

@pytest.mark.parametrize('kw', [dict(val=2), dict(test=-.1), dict(val=.5, test=.5), dict(test=1)])
def test_shares_are_checked(tmp_path, kw):
    with says('expected shares'): read_manifest(write(tmp_path, folders('cat','dog')), **kw)

# --- 12: waiting is told

def test_the_second_of_two_equal_runs_says_that_it_waits(tiny, tmp_path, capsys):
    from mils.disk import locked
    from mils.identity import run_name
    from mils.runs import train_run
    cfg = Config(epochs=1, overrides=dict(bs=50))
    folder = tmp_path/run_name(cfg, tiny)
    second = threading.Thread(target=lambda: train_run(cfg, tiny, tmp_path))
    with locked(f'{folder}/'):
        second.start()
        end = time.time()+60
        told = ''
        while 'waiting' not in told and time.time()<end: time.sleep(.02); told += capsys.readouterr().err
        assert f'{folder.name}: waiting for another process' in told
    second.join()
    assert (folder/'DONE').exists()

def test_two_collections_do_not_write_at_once(tmp_path, monkeypatch, capsys):
    import mils.tables as t
    from mils.disk import locked
    monkeypatch.setattr(t, 'finished_runs', lambda root: [(None,tmp_path)])
    monkeypatch.setattr(t, '_tables', lambda folders: {})
    written = []
    monkeypatch.setattr(t, 'write_results', lambda tables, out: written.append(out))
    with locked(f'{tmp_path}/out/'):
        second = threading.Thread(target=lambda: t.collect_runs(tmp_path, tmp_path/'out'))
        second.start()
        time.sleep(.3)
        assert not written
    second.join()
    assert written and 'waiting' in capsys.readouterr().err

# --- 13: an error has a remedy

def test_lists_without_labels_take_the_folder(tmp_path):
    f = folders('images/cat','images/dog', n=6)
    rows = [k for k in f if not k.endswith('5.png')]
    for prefix in ('images/','','./images/'):
        text = '\n'.join(prefix+o.removeprefix('images/') for o in rows)
        write(tmp_path, f|{'train.txt':text, 'test.txt':'\n'.join(k for k in f if k not in rows), 'val.txt':''})
        assert seen(read_manifest(tmp_path, val=0))==dict(train=dict(cat=5, dog=5), val={}, test=dict(cat=1, dog=1))

def test_a_test_list_without_labels(tmp_path):
    f = course()
    m = read_manifest(write(tmp_path, f|{'test.txt':re.sub(' [01]', '', f['test.txt'])}))
    assert np.bincount(m.split, minlength=3).tolist()==[8,2,0] and '2 images of the test list have no labels' in notes(m)

@pytest.mark.parametrize('make', [
    lambda rows: 'filename,label\n'+'\n'.join(f'{p},{y}' for p,y in rows),
    lambda rows: '\n'.join(f'"{p}","{y}"' for p,y in rows),
    lambda rows: '\n'.join(f'{p};{y}' for p,y in rows),
    lambda rows: 'label,image\r\n'+'\r\n'.join(f'{y},{p}' for p,y in rows),
    lambda rows: 'id,image,width,class\n'+'\n'.join(f'{i},{p},9,{y}' for i,(p,y) in enumerate(rows)),
    lambda rows: '\ufefffile\tlabel\n'+'\n'.join(f'{p}\t{y}' for p,y in rows)])
@pytest.mark.parametrize('ending', ['csv','txt'])
def test_tables_are_lists(tmp_path, make, ending):
    f = course()
    def table(text): return make([o.split(' ') for o in text.split('\n') if o])
    files = {k.replace('.txt', f'.{ending}'):table(v) if k.endswith('.txt') else v for k,v in f.items()}
    m = read_manifest(write(tmp_path, files))
    assert m.labels.tolist()==read_manifest(write(tmp_path/'plain', f)).labels.tolist() and np.bincount(m.split).tolist()==[8,2,2]

def test_a_table_that_does_not_say_which_column(tmp_path):
    with says('train.csv','width, height','none is called label'): 
        files = {k:v for k,v in course().items() if k!='train.txt'}
        read_manifest(write(tmp_path, files|{'train.csv':'file,width,height\n0.png,3,4\n1.png,3,4\n'}))

def test_labels_may_begin_at_1(tmp_path):
    m = read_manifest(write(tmp_path, from_1(course())))
    assert m.classes==['1','2'] and m.labels.tolist()==[i%2 for i in range(12)]
    with says('label 3 is out of range; expected 1 to 2'): read_manifest(write(tmp_path, {'val.txt':'8.png 3'}))

def test_absolute_paths_below_the_data(tmp_path, monkeypatch):
    f = course()
    root = write(tmp_path/'pets', f)
    for start in (f'{root}/', 'pets/', './pets/'):
        write(root, {k:v.replace('images/', f'{start}images/') for k,v in f.items() if k.endswith('.txt')})
        assert None not in read_manifest(root).names
    monkeypatch.chdir(tmp_path)
    write(root, {k:v.replace('images/', f'{root}/images/') for k,v in f.items() if k.endswith('.txt')})
    assert None not in read_manifest('pets').names

@pytest.mark.parametrize('head,kind', [
    (b'\0\0\0\x1cftypavif','AVIF'), (b'\0\0\0\x0cjP  \r\n\x87\n','JPEG 2000'), (b'\xff\x4f\xff\x51','JPEG 2000'),
    (b'\0\0\0\x0cJXL \r\n','JPEG XL'), (b'8BPS','Photoshop')])
def test_other_kinds_inside_jpg_are_named(head, kind):
    with says(kind, 'convert it', exc=Unreadable): decode(head+bytes(100), 16)

def test_a_jpeg_of_200_megapixels(monkeypatch):
    import mils.decode as d
    big = stored(photo((1600,1200)), 'JPEG')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000); monkeypatch.setattr(d, '_most', 60_000)
    assert np.abs(decode(big, 32).astype(float)-decode(stored(photo((160,120))), 32)).mean()<4
    with says('too many pixels','store it smaller', exc=Unreadable): decode(stored(photo((1600,1200))), 32)
    with says('too many pixels', exc=Unreadable): decode(stored(photo((1600,1200)), 'JPEG', progressive=True), 32)

def test_a_protocol_on_other_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MILS_CACHE', str(tmp_path/'c')); monkeypatch.chdir(tmp_path)
    from mils.protocols import protocols
    monkeypatch.setitem(protocols['task-b'], 'classes', '0-99')
    write(tmp_path/'in', folders('a','b','c','d'))
    assert main(['sweep','task-b','--data','in'])==1
    err = capsys.readouterr().err
    assert '--classes' in err and '0-99' in err and '0 to 3' in err

def test_no_network_is_told(capsys):
    assert main(['train',''])==1
    assert 'names no network' in capsys.readouterr().err

# --- runs

def test_a_finished_run_with_damaged_weights_is_told(tiny, tmp_path):
    from mils.runs import train_run
    cfg = Config(epochs=1, overrides=dict(bs=50))
    run = train_run(cfg, tiny, tmp_path)
    started = (run/'config.json').read_bytes()
    weights = run/'model.safetensors'
    os.truncate(weights, weights.stat().st_size-100)
    with says('model.safetensors','cut off','remove the folder'): train_run(cfg, tiny, tmp_path)
    weights.unlink()
    with says('missing'): train_run(cfg, tiny, tmp_path)
    (run/'DONE').unlink()
    time.sleep(1)
    assert train_run(cfg, tiny, tmp_path)==run and (run/'config.json').read_bytes()==started       # what was begun stays as it was begun

# --- made sets, each with its right answer; `python tests/fuzz_field.py` takes ten minutes

def test_made_sets_are_read_as_they_are_meant():
    n,wrong = fuzz(seconds=60, most=60)
    assert n>5 and not wrong, wrong
