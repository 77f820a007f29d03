"From files to images: what goes wrong outside a notebook"
import errno,hashlib,io,math,os,random,re,shutil,signal,stat,subprocess,sys,tarfile,threading,time,zipfile,zlib
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path
import numpy as np,pytest
from hypothesis import HealthCheck,given,settings,strategies as st
from PIL import Image
import mils.cache,mils.disk,mils.pixels
from tensors import assert_close,assert_same
from campaign.lists import list_faults,proper
from mils.packed import open_zip
from mils.manifest import read_manifest
from mils.decode import decode,Unreadable
from mils.imageset import channel_stats,ImageSet,select_classes
from mils.parts import part
from mils.unusable import BadImages,missing_files
from mils.check import check
from mils.pixels import Pixels
from mils.cache import cached
from mils.derived import derive
from mils.download import download
from mils.archive import Remote,tar_to_zip
from mils.sets import get_data,load_data,REMOTES

fuzz = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

def image(i=0, size=(12,9), fmt='PNG', mode='RGB', **kw):
    f = io.BytesIO()
    x = np.random.default_rng(i).integers(0, 256, (4,4,3), dtype=np.uint8)
    Image.fromarray(x).resize(size, Image.Resampling.BICUBIC).convert(mode).save(f, fmt, **kw)
    return f.getvalue()

def write(d, files):
    for k,v in files.items():
        p = Path(d)/k
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(v if isinstance(v,bytes) else v.encode())
    return Path(d)

def write_zip(path, files):
    with zipfile.ZipFile(path, 'w') as z:
        for k,v in files.items(): z.writestr(k, v)
    return path

def course(n=12, k=2, fmt='PNG', **changes):
    "Files of a small set in the course's layout: two thirds for training"
    d = {f'images/{i}.png':image(i) for i in range(n)}
    a,b = n*2//3,n*5//6
    for s,r in (('train',range(a)),('val',range(a,b)),('test',range(b,n))): d[f'{s}.txt'] = ''.join(f'images/{i}.png {i%k}\n' for i in r)
    return d|changes

def holds(path, data):
    "Whether a file holds these bytes; a failing `==` would print both"
    return path.read_bytes()==data

def says(*parts, exc=ValueError):
    "Expect an error that holds all of these"
    return pytest.raises(exc, match='(?s)'+''.join(f'(?=.*{__import__("re").escape(p)})' for p in parts))

# --- lists

word = st.text('abcéüß0189 .-_()#,&', min_size=1, max_size=12).map(lambda s: s.strip(' .')).filter(bool)
names = st.lists(st.tuples(word, st.sampled_from(['jpg','JPEG','png','JPG'])).map('.'.join), min_size=4, max_size=12, unique_by=str.lower)

@fuzz
@given(names=names, folders=st.booleans(), prefix=st.booleans(), named=st.booleans(), declared=st.booleans(),
       bom=st.booleans(), blank=st.booleans(), end=st.sampled_from(['\n','\r\n']), val=st.sampled_from(['val.txt','validation.txt']),
       top=st.sampled_from(['','my set/']), sep=st.sampled_from([' ','\t','  ']))
def test_any_spelling_of_a_list(tmp_path_factory, names, folders, prefix, named, declared, end, bom, blank, val, top, sep):
    cls = ['European fire salamander','cat']
    y = [i%2 for i in range(len(names))]
    where = [f'{cls[l]}/{n}' if folders else n for n,l in zip(names,y)]
    label = lambda l: cls[l] if named else str(l)
    def text(rows):
        lines = [f'{"images/"*prefix}{where[i]}{sep}{label(y[i])}'+f'{end}  '*blank for i in rows]
        return '\ufeff'*bom+end.join(lines)+end*blank
    n = len(names)
    files = {f'{top}images/{w}':b'x' for w in where}
    files |= {f'{top}train.txt':text(range(n-2)), f'{top}{val}':text([n-2]), f'{top}test.txt':text([n-1])}
    if declared: files[f'{top}classes.txt'] = end.join(f'{i} n0144353{i} {c}' for i,c in enumerate(cls))
    m = read_manifest(write_zip(tmp_path_factory.mktemp('z')/'a.zip', files))
    assert m.names==[f'images/{w}' for w in where]
    assert m.split.tolist()==[0]*(n-2)+[1,2]
    assert [m.classes[l] for l in m.labels]==[cls[l] if named or declared else str(l) for l in y]

@fuzz
@given(data=st.data())
def test_a_broken_list_is_an_error_at_a_broken_line_or_a_manifest_with_every_whole_line(tmp_path_factory, data):
    files = {k:v.encode() if isinstance(v, str) else v for k,v in course(12).items()}|{'classes.txt':b'0 cat\n1 dog'}
    junk = st.binary(max_size=6) | st.sampled_from([b'\n',b' ',b'\0',b'-1',b'images/0.png 0\n',b'\r\n',b'\t',b'\xef\xbb\xbf'])
    for k in data.draw(st.lists(st.sampled_from(['train.txt','val.txt','test.txt','classes.txt']), min_size=1, max_size=3)):
        b = bytearray(files[k])
        for _ in range(data.draw(st.integers(1,6))):
            i = data.draw(st.integers(0,len(b)))
            b[i:i+data.draw(st.integers(0,9))] = data.draw(junk)
        files[k] = bytes(b)
    path = write_zip(tmp_path_factory.mktemp('z')/'a.zip', files)
    if files['classes.txt']==b'0 cat\n1 dog':
        assert not list(list_faults(path, files, ['cat','dog']))
        return
    try: m = read_manifest(path)
    except ValueError as e: assert re.search(r'\b(train|val|test|classes)\.txt( line \d|: | names no class)', str(e)), e
    else:
        split = {r.path:s for r,s in zip(m.rows, m.split)}
        for i,(_,s) in proper(files, 12, 2)[0].items(): assert split.get(f'images/{i}.png', s)==s

@pytest.mark.parametrize('change', [dict(), {'train.txt':b'\xef\xbb\xbf'}, {'val.txt':b'\n\n'}, {'classes.txt':b'0 cat\r\n1 dog\r\n'}],
    ids=str)
def test_a_list_that_is_whole_is_read(tmp_path, change):
    "So that an error for everything isn't taken for care"
    files = course(12)|{'classes.txt':'0 cat\n1 dog'}
    for k,b in change.items(): files[k] = b if k=='classes.txt' else b+(files[k] if isinstance(files[k], bytes) else files[k].encode())
    assert len(read_manifest(write_zip(tmp_path/'a.zip', files)))==12

def test_lists_may_lie_beside_zips(tmp_path):
    f = course(12)
    ims = [k for k in f if k.startswith('images')]
    write(tmp_path, {k:v for k,v in f.items() if k not in ims})
    for j in range(2): write_zip(tmp_path/f'{j}.zip', {k:f[k] for k in ims[j::2]})
    m = read_manifest(tmp_path)
    assert not missing_files(m) and m.source.read(m.names[5])==f['images/5.png']

@pytest.mark.parametrize('files,parts', [
    ({'val.txt':'8.png 0\n9.png\n'}, ['val.txt line 2','9.png','no label','path label']),
    ({'val.txt':'8.png 0\n9.png 7\n'}, ['val.txt line 2','label 7 is out of range','0 to 1']),
    ({'val.txt':'8.png -1\n'}, ['val.txt line 1','label -1 is out of range']),
    ({'val.txt':'8.png cat\n'}, ['val.txt line 1',"unknown class 'cat'"]),
    ({'val.txt':'8.png 1.0\n'}, ['val.txt line 1',"unknown class '1.0'"]),
    ({'val.txt':'\r\n\r\nimages/3.png 1\r\n'}, ['val.txt line 3','train.txt line 4','the same image in two splits']),
    ({'val.txt':'3.png 1\n'}, ['val.txt line 1','train.txt line 4','the same image in two splits']),
    ({'train.txt':'0.png 0\n1.png 1\n./images/0.png 0\n'}, ['train.txt line 3','train.txt line 1','the same image twice']),
    ({'train.txt':'0.png 0\n1.png 0\n3.png 2'}, ['val.txt line','class 1 has no training image']),
    ({'train.txt':'0.png 1\n1.png 2\n'}, ['train.txt line','class 0 has no training image']),
    ({'classes.txt':'0 cat\n1 dog\n2 newt\n'}, ['classes.txt line 3','class 2 (newt) has no training image']),
    ({'classes.txt':'0 cat\n2 dog\n'}, ['classes.txt line 2','label 2, expected 1']),
    ({'classes.txt':'0 cat\n0 dog\n'}, ['classes.txt line 2','label 0, expected 1']),
    ({'train.txt':''}, ['train.txt','no training image']),
    ({'train.txt':b'0.png 0\n1.png 1\n\xff\xfe.png 1\n'}, ['train.txt line 3','not UTF-8']),
    ({'validation.txt':'8.png 0'}, ['val.txt and validation.txt']),
])
def test_a_mistake_in_a_list_names_file_and_line(tmp_path, files, parts):
    with says(*parts): read_manifest(write(tmp_path, course()|files))

def test_a_mistyped_class_is_told_the_nearest(tmp_path):
    f = course(**{'train.txt':'0.png cat\n1.png dog\n', 'val.txt':'8.png dgo', 'test.txt':''})
    with says('val.txt line 1',"did you mean 'dog'?"): read_manifest(write(tmp_path, f))

def test_many_mistakes_are_counted(tmp_path):
    with says('50 mistakes','... and 40 more'): read_manifest(write(tmp_path, course(**{'val.txt':'x.png\n'*50})))

def test_no_lists_and_no_classes(tmp_path):
    with says('no train.txt','class folders'): read_manifest(write(tmp_path, {'images/1.png':image()}))
    with says('no such folder', exc=FileNotFoundError): read_manifest(tmp_path/'nothing')

def test_classes_whose_files_are_absent_can_be_left_out(tmp_path):
    f = course(24, 4)
    m = read_manifest(write(tmp_path, {k:v for k,v in f.items() if 'images/' not in k or int(Path(k).stem)%4<2}), classes=range(2))
    assert m.classes==['0','1'] and not missing_files(m) and len(m)==12
    assert read_manifest(tmp_path, classes=[3,1]).classes==['3','1']
    with says('label 9 is out of range','0 to 3'): read_manifest(tmp_path, classes=[9])
    with says('twice'): read_manifest(tmp_path, classes=[1,1])

# --- class folders

@pytest.mark.parametrize('top', ['','pets/','images/','a/b/'])
def test_a_folder_is_a_class(tmp_path, top):
    write(tmp_path, {f'{top}{c}/{i} x.png':image(i) for c in ('cat','dog') for i in range(10)})
    m = read_manifest(tmp_path)
    assert m.classes==['cat','dog'] and np.bincount(m.split*2+m.labels).tolist()==[8,8,1,1,1,1]
    assert (read_manifest(tmp_path).split==m.split).all()
    assert (read_manifest(tmp_path, seed=1).split!=m.split).any()

def test_split_folders(tmp_path):
    write(tmp_path, {f'cifar/{s}/animals/{c}/{i}.png':image(i) for s in ('train','test') for c in ('cat','dog') for i in range(10)})
    m = read_manifest(tmp_path)
    assert m.classes==['cat','dog'] and np.bincount(m.split).tolist()==[18,2,20]
    write(tmp_path, {'cifar/test/animals/cow/1.png':image()})
    with says('cow','has no training image'): read_manifest(tmp_path)

# --- zips

@pytest.mark.parametrize('name,kw,msg', [
    ('../x.png', {}, 'leads out'), ('images/../../x.png', {}, 'leads out'), ('..\\x.png', {}, 'leads out'), ('/etc/passwd', {}, 'absolute'),
    ('C:\\x.png', {}, 'absolute'), ('\\x.png', {}, 'absolute'), ('images/x.png', {'external_attr':(stat.S_IFLNK|0o777)<<16}, 'link'),
    ('images/x.png', {'data':bytes(2*10**7)}, 'grows')])
def test_a_bad_zip_is_refused_and_nothing_is_written(tmp_path, name, kw, msg):
    o = zipfile.ZipInfo('x'); o.filename = name; o.compress_type = zipfile.ZIP_DEFLATED
    data = kw.pop('data', b'x')
    for k,v in kw.items(): setattr(o, k, v)
    write(tmp_path/'in', course())
    with zipfile.ZipFile(tmp_path/'in'/'a.zip', 'w') as z: z.writestr('images/good.png', image()); z.writestr(o, data)
    before = sorted(tmp_path.rglob('*'))
    with says('a.zip', repr(name), msg): load_data(tmp_path/'in', 8, cache_dir=tmp_path/'cache')
    assert sorted(tmp_path.rglob('*'))==before

def test_many_names_for_the_same_bytes_are_a_bomb(tmp_path):
    "Overlapping members: each grows little, together they grow a lot"
    with zipfile.ZipFile(tmp_path/'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('a.png', b'0'*50_000+os.urandom(600))
        a = z.infolist()[0]
        for i in range(2000):
            b = zipfile.ZipInfo(f'{i}.png')
            for k in ('CRC','compress_size','file_size','header_offset','compress_type'): setattr(b, k, getattr(a, k))
            z.filelist.append(b)
    with says('refused','grows from'): open_zip(tmp_path/'a.zip')

def test_a_zip_that_lies_about_its_sizes_yields_no_image(tmp_path):
    f = course()
    write(tmp_path, {k:v for k,v in f.items() if 'images/' not in k})
    write_zip(tmp_path/'a.zip', {k:v for k,v in f.items() if 'images/' in k})
    b = bytearray((tmp_path/'a.zip').read_bytes())
    i = b.index(f['images/3.png'])
    b[i+30] ^= 255
    (tmp_path/'a.zip').write_bytes(b)
    with says('1 of 12','images/3.png (train.txt line 4): damaged in its zip'): load_data(tmp_path, 8, cache_dir=tmp_path/'c')
    (tmp_path/'a.zip').write_bytes(b[:len(b)//2])
    with says('a.zip','not a complete zip'): load_data(tmp_path, 8, cache_dir=tmp_path/'c')

def test_windows_zip_names_and_two_zips_that_disagree(tmp_path):
    f = course()
    write(tmp_path, {k:v for k,v in f.items() if 'images/' not in k})
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for k,v in f.items():
            if 'images/' in k: o = zipfile.ZipInfo('x'); o.filename = k.replace('/','\\'); z.writestr(o, v)
    assert not missing_files(read_manifest(tmp_path))
    write_zip(tmp_path/'b.zip', {'images/3.png':image(99), 'README':'other'})
    with says('b.zip','a.zip','other content'): read_manifest(tmp_path)

# --- decoding

def photo(size=(96,64)):
    y,x = np.mgrid[:size[1],:size[0]]
    return Image.fromarray(np.stack([x*255/size[0], y*255/size[1], 255-x*255/size[0]], -1).astype(np.uint8))

def stored(im, fmt='PNG', **kw): f = io.BytesIO(); im.save(f, fmt, **kw); return f.getvalue()

def near(b, im, tol=4, size=32):
    got,want = decode(b, size).astype(float),decode(stored(im), size).astype(float)
    assert got.shape==(size,size,3) and np.abs(got-want).mean()<tol

@pytest.mark.parametrize('turn', range(1,9))
def test_turned_photographs_stand_upright(turn):
    back = [None,None,'FLIP_LEFT_RIGHT','ROTATE_180','FLIP_TOP_BOTTOM','TRANSPOSE','ROTATE_90','TRANSVERSE','ROTATE_270'][turn]
    im,e = photo(),Image.Exif()
    e[0x0112] = turn
    t = im.transpose(Image.Transpose[back]) if back else im
    for fmt in ('JPEG','PNG'): near(stored(t, fmt, exif=e), im)

def test_every_kind_of_file():
    im = photo()
    near(stored(im,'JPEG',quality=95), im); near(stored(im,'JPEG',progressive=True), im); near(stored(im,'WEBP'), im, 6)
    for fmt in ('BMP','TIFF','PPM','GIF'): near(stored(im, fmt), im, 12)
    near(stored(im.convert('CMYK'),'JPEG',quality=95), im, 6)
    near(stored(im.convert('CMYK'),'TIFF'), im)
    near(stored(im.quantize(128)), im, 6)
    g = im.convert('L')
    near(stored(g), g); near(stored(g,'JPEG'), g); near(stored(g.convert('1')), g.convert('1'))
    wide = Image.fromarray(np.asarray(g).astype(np.uint16)*257)
    near(stored(wide), g, 2); near(stored(wide,'TIFF'), g, 2)

def test_transparent_is_white_paper():
    im = photo().convert('RGBA'); im.putalpha(0)
    assert (decode(stored(im), 16)==255).all()
    la = photo().convert('LA'); la.putalpha(0)
    assert (decode(stored(la), 16)==255).all()
    p = Image.new('P', (20,20), 1); p.putpalette([0,0,0,255,0,0]); 
    assert (decode(stored(p, transparency=1), 16)==255).all()
    assert (decode(stored(p), 16)==[255,0,0]).all()

def test_large_photographs_are_scaled_without_aliasing():
    x = np.zeros((1200,1600,3), np.uint8); x[::2] = 255         # fine lines become gray
    for fmt in ('PNG','JPEG'): assert abs(decode(stored(Image.fromarray(x), fmt), 32).astype(float).mean()-127.5)<3
    near(stored(photo((1600,1200)),'JPEG',quality=95), photo((1600,1200)))
    assert decode(stored(photo((3,500))), 16).shape==(16,16,3)

UNREADABLE = 'truncated|damaged|empty file|not an image|too many pixels|unsupported'        # how each reason begins
@pytest.mark.parametrize('kw', [dict(fmt='JPEG',quality=90), dict(fmt='JPEG',progressive=True), dict(fmt='PNG'), dict(fmt='GIF'),
                                dict(fmt='BMP'), dict(fmt='WEBP',lossless=True)], ids=str)
def test_a_truncated_file_is_an_error_or_whole(kw):
    im = Image.fromarray(np.random.default_rng(0).integers(0,256,(40,40,3),dtype=np.uint8))
    b = stored(im, **kw)
    whole = decode(b, 32)
    for k in sorted({*range(0,len(b),max(1,len(b)//150)), *range(len(b)-14,len(b))}):
        for cut in (b[:k], b[:k]+bytes(len(b)-k)):
            if kw['fmt'] in ('BMP','GIF','WEBP') and len(cut)==len(b): continue    # formats that cannot tell
            try: got = decode(cut, 32)
            except Unreadable as e: assert re.match(UNREADABLE, str(e)), e
            else: assert_same(got, whole)

@fuzz
@given(junk=st.binary(max_size=200), at=st.integers(0,600), fmt=st.sampled_from(['JPEG','PNG','GIF','TIFF','BMP','WEBP']))
def test_damaged_bytes_give_an_image_or_unreadable(junk, at, fmt):
    b = image(1, (30,20), fmt)
    assert decode(b, 16).shape==(16,16,3)
    try: assert decode(b[:at]+junk+b[at+len(junk):], 16).shape==(16,16,3)
    except Unreadable as e: assert re.match(UNREADABLE, str(e)), e

def test_not_images_at_all():
    with says('empty', exc=Unreadable): decode(b'', 16)
    for b in (b'<html>404</html>', b'%PDF-1.4 ', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'):
        with says('not an image', exc=Unreadable): decode(b, 16)
    bomb = b'\x89PNG\r\n\x1a\n'
    for t,d in ((b'IHDR', (60000).to_bytes(4,'big')*2+bytes([8,2,0,0,0])), (b'IEND',b'')):
        bomb += len(d).to_bytes(4,'big')+t+d+zlib.crc32(t+d).to_bytes(4,'big')
    with says('too many pixels', exc=Unreadable): decode(bomb, 16)
    good = image(3, fmt='JPEG')
    assert decode(good[:2]+b'\xff\xe1\x00\x10Exif\x00\x00brokenxx'+good[2:], 8).shape==(8,8,3)   # a broken preview harms nobody

# --- files that cannot be used

def spoil(root):
    "One of each kind, and what is said about it"
    (root/'images/1.png').write_bytes(b''); (root/'images/2.png').unlink()
    (root/'images/4.png').write_bytes(image(4)[:60]); (root/'images/9.png').write_bytes(b'<html>')
    return [('images/1.png','train.txt',2,'empty'), ('images/2.png','train.txt',3,'missing'), ('images/4.png','train.txt',5,'truncated'),
            ('images/9.png','val.txt',2,'not an image')]

def test_all_bad_files_are_reported_together_and_can_be_skipped(tmp_path):
    root = write(tmp_path/'in', course())
    want = spoil(root)
    for _ in range(2):     # from the decoder, and from the cache
        with pytest.raises(BadImages) as e: load_data(root, 8, cache_dir=tmp_path/'c')
        assert [(o.path,o.list,o.line) for o in e.value.rows]==[w[:3] for w in want]
        for o,w in zip(e.value.rows, want): assert w[3] in o.reason and str(o) in str(e.value)
    for _ in range(2):
        ds = load_data(root, 8, skip_bad=True, cache_dir=tmp_path/'c')
        assert ds.skipped==4 and ds.names==[f'images/{i}.png' for i in range(12) if i not in (1,2,4,9)]
        assert [len(v) for v in ds.splits.values()]==[5,1,2]
        for x,n in zip(ds.images, ds.names): assert_same(x, decode((root/n).read_bytes(), 8))
    for i in (1,2,4,9): (root/f'images/{i}.png').write_bytes(image(i))
    whole = load_data(root, 8, cache_dir=tmp_path/'c')
    assert whole.skipped==0 and len(whole.images)==12 and whole.key!=ds.key

def test_a_class_must_not_vanish_by_skipping(tmp_path):
    root = write(tmp_path/'in', course(12, 4))
    for i in (1,5): (root/f'images/{i}.png').write_bytes(b'')
    with says("class '1' has no training image"): load_data(root, 8, skip_bad=True, cache_dir=tmp_path/'c')
    for i in range(12): (root/f'images/{i}.png').write_bytes(b'no')
    with says('has no training image'): load_data(root, 8, skip_bad=True, cache_dir=tmp_path/'c')

def test_check_tells_what_is_there(tmp_path):
    root = write(tmp_path, course())
    shutil.copy(root/'images/0.png', root/'images/10.png')
    shutil.copy(root/'images/0.png', root/'images/3.png')
    r = check(root)
    assert r.ok and r.copies==r.across==r.torn==[[0,3,10]] and r.sizes=={(12,9):12} and r.modes=={'RGB':12}
    spoil(root)
    r = check(root)
    assert not r.ok and len(r.bad)==4
    x = np.stack([decode((root/f'images/{i}.png').read_bytes(), 64) for i in range(12) if i not in (1,2,4,9)])
    for a,b in zip(r.stats, channel_stats(x)): assert_close(a, b, 1e-6)
    text = repr(r)
    for o in ('train','12x9: 8','covariance','across splits','unreadable 4','images/9.png (val.txt line 2)'): assert o in text

# --- the cache

CHILD = '''
import sys,time,os
import mils.cache as c,mils.manifest
log,d = open(sys.argv[3],'ab',0),c.decode
def slow(b, s): log.write(b'.'); time.sleep(.002); return d(b, s)
c.decode = slow
print(c.cached(mils.manifest.read_manifest(sys.argv[1]), 128, cache_dir=sys.argv[2]).key)
'''
def start(*args):
    return subprocess.Popen([sys.executable,'-c',CHILD,*map(str,args)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

def wait(cond, t=30):
    end = time.time()+t
    while not cond(): assert time.time()<end; time.sleep(.002)

def logged(c): return sum(f.read_bytes().count(b'\n') for f in c.glob('pixels/*/shards.log'))
def n_decoded(f): return f.stat().st_size if f.exists() else 0

@pytest.fixture(scope='module')
def many(tmp_path_factory):
    return write(tmp_path_factory.mktemp('many'), course(1000))

def test_kill_and_resume(many, tmp_path):
    c,f,n = tmp_path/'c',tmp_path/'decoded',1000
    for k in (0,1,3,4):          # killed while preparing, in the first shards, and later
        p = start(many, c, f)
        wait((lambda: logged(c)>=k) if k else (lambda: n_decoded(f)>20))
        os.kill(p.pid, signal.SIGKILL); p.communicate()
        assert not list(c.glob('pixels/*/meta.json'))
    before,done = n_decoded(f),logged(c)
    out,_ = start(many, c, f).communicate(timeout=60)
    m = read_manifest(many)
    p = Pixels(c, n, 128)
    assert done>=3 and n_decoded(f)-before==n-done*p.shard       # finished shards are not decoded again
    ds = cached(m, 128, cache_dir=c)
    assert out.strip()==ds.key
    assert_same(ds.images, cached(m, 128, cache_dir=tmp_path/'undisturbed').images)
    assert not list(c.glob('pixels/*/shards.log'))

def test_two_at_once(many, tmp_path):
    f = tmp_path/'decoded'
    keys = {p.communicate(timeout=60)[0].strip() for p in [start(many, tmp_path/'c', f) for _ in range(2)]}
    assert len(keys)==1 and f.stat().st_size==1000

@pytest.fixture
def cache(tmp_path):
    root = write(tmp_path/'in', course(600))
    load = lambda: load_data(root, 96, cache_dir=tmp_path/'c')
    ds = load()
    d, = (tmp_path/'c'/'pixels').glob('*px-*[0-9a-f]')
    return namedtuple('C', 'load dir right key')(load, d, np.array(ds.images), ds.key)

def flip(f, at):
    b = bytearray(f.read_bytes()); b[at] ^= 1; f.write_bytes(b)

def damage_all(d):
    os.truncate(d/'pixels.u8', 10**6)
    (d/'meta.json').unlink()
    (d/'shards.log').write_text('[0,"00",[]]\n[1,"x"]\n[7777,"a",[]]\nnull\n[2,"ab')

@pytest.mark.parametrize('harm', [
    lambda d: flip(d/'pixels.u8', 0),
    lambda d: flip(d/'pixels.u8', -1),
    lambda d: os.truncate(d/'pixels.u8', 10**6),
    lambda d: (d/'pixels.u8').unlink(),
    lambda d: (d/'pixels.u8').write_bytes((d/'pixels.u8').read_bytes()+b'more'),
    lambda d: (d/'meta.json').unlink(),
    lambda d: flip(d/'meta.json', 30),
    lambda d: flip(d/'meta.json', -40),
    lambda d: (d/'meta.json').write_text('{"n": 600'),
    lambda d: (d/'meta.json').write_text(''),
    lambda d: (d/'meta.json').write_text('[]'),
    damage_all,
], ids=range(12))
def test_a_damaged_cache_is_never_read(cache, harm):
    harm(cache.dir)
    ds = cache.load()
    assert_same(ds.images, cache.right)
    assert ds.key==cache.key
    assert (cache.dir/'meta.json').exists() and (cache.dir/'pixels.u8').stat().st_size==cache.right.size

def test_only_damaged_shards_are_decoded_again(cache, monkeypatch):
    n = []
    monkeypatch.setattr(mils.cache, 'decode', lambda b,s: n.append(1) or decode(b,s))
    cache.load(); assert not n
    flip(cache.dir/'pixels.u8', 10)
    cache.load(); assert len(n)==Pixels(cache.dir,600,96).shard

def test_a_killed_compaction_is_repaired(tmp_path, monkeypatch):
    root = write(tmp_path/'in', course(600))
    for i in (5,100,599): (root/f'images/{i}.png').write_bytes(b'no image')
    def dies(*a): raise KeyboardInterrupt
    with monkeypatch.context() as mp:
        mp.setattr(Pixels, 'write_meta', dies)
        with pytest.raises(KeyboardInterrupt): load_data(root, 96, skip_bad=True, cache_dir=tmp_path/'c')
    a,b = (load_data(root, 96, skip_bad=True, cache_dir=tmp_path/o) for o in 'cd')
    assert a.skipped==3 and a.key==b.key
    assert_same(a.images, b.images)

def test_the_key_is_the_content(tmp_path):
    a = load_data(write(tmp_path/'a', course()), 8, cache_dir=tmp_path/'c')
    f,renamed = course(),{}
    for k,v in f.items():
        if isinstance(v, str): v = v.replace('images/', 'images/new ')
        renamed['top/'+k.replace('images/', 'images/new ')] = v
    z = load_data(write_zip(tmp_path/'b.zip', renamed), 8, cache_dir=tmp_path/'c')
    assert a.key==z.key and len(list((tmp_path/'c'/'pixels').glob('*/meta.json')))==1
    assert load_data(tmp_path/'a', 9, cache_dir=tmp_path/'c').key!=a.key
    write(tmp_path/'a', {'val.txt':f['val.txt'].replace('8.png 0','8.png 1')})
    b = load_data(tmp_path/'a', 8, cache_dir=tmp_path/'c')
    assert b.key!=a.key and len(list((tmp_path/'c'/'pixels').glob('8px*/meta.json')))==1
    os.utime(write(tmp_path/'a', {'images/3.png':image(77)})/'images/3.png', ns=(1,1))
    c = load_data(tmp_path/'a', 8, cache_dir=tmp_path/'c')
    assert c.key!=b.key
    assert_same(c.images[3], decode(image(77), 8))

# --- statistics belong to the set

@pytest.mark.parametrize('n', [300,9000])
def test_a_set_made_from_another_has_its_own_statistics(n):
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (n,4,4,3))*rng.random((n,1,1,3))).astype(np.uint8)
    splits = {k:np.sort(o) for k,o in zip(('train','val','test'), np.split(rng.permutation(n), [n*2//3,n*5//6]))}
    ds = ImageSet(images, np.arange(n)%4, splits, list('abcd'), [str(i) for i in range(n)], 'key')
    seen = set()
    two = replace(ds, images=images[...,:2], channels='RG')
    for o in (ds, select_classes(ds, ['b','d']), part(ds, 1), derive(ds), derive(part(ds, 2)), two):
        rows = o.splits['train']
        want = channel_stats(o.images[rows[::math.ceil(len(rows)/4096)]])
        for got,exact in zip(o.stats, want): assert_same(got, exact)
        assert o.stats is o.stats
        seen.add(o.stats.mean.tobytes())
    assert len(seen)==6 and part(ds, 0).stats is ds.stats

def test_names_of_channels_are_checked_when_a_set_is_made(tiny):
    for channels,msg in (('RG','names 2; the images have 3'), ('RGR','given twice'), ('','empty'), (('R','G','B','NIR'),'R+G+B+NIR')):
        with says(msg): replace(tiny, channels=channels)
    assert replace(tiny, channels=('X','Y','NIR')).stats.mean.shape==(3,)

# --- disks

@pytest.mark.parametrize('where', ['file/cache', '/proc/nowhere'])
def test_a_folder_that_cannot_be_written(tmp_path, where):
    (tmp_path/'file').write_text('x')
    with says('cannot write to', 'cache_dir', exc=OSError): load_data(write_zip(tmp_path/'a.zip', course()), 8, cache_dir=tmp_path/where)

@pytest.mark.parametrize('code,msg', [(errno.ENOSPC,'the disk is full'), (errno.EROFS,'read-only'), (errno.EACCES,'no permission'),
                                      (errno.EDQUOT,'quota')])
def test_a_full_or_locked_disk(tmp_path, monkeypatch, code, msg):
    z,n = write_zip(tmp_path/'a.zip', course(600)),[]
    def full(fd, v, at):
        n.append(1)
        if len(n)>1: raise OSError(code, os.strerror(code))
        return pwrite(fd, v, at)
    pwrite = os.pwrite
    with monkeypatch.context() as mp:
        mp.setattr(os, 'pwrite', full)
        with says('cannot write to', msg, 'MB are free', 'MILS_CACHE', exc=OSError): load_data(z, 96, cache_dir=tmp_path/'c')
    assert not list((tmp_path/'c').rglob('meta.json'))
    assert_same(load_data(z, 96, cache_dir=tmp_path/'c').images[7], decode(image(7), 96))

def test_too_little_room_is_told_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(mils.cache.shutil, 'disk_usage', lambda p: namedtuple('U','free')(10))
    with says('the disk is full', exc=OSError): load_data(write_zip(tmp_path/'a.zip', course()), 8, cache_dir=tmp_path/'c')
    assert not list((tmp_path/'c').rglob('pixels.u8'))

def test_a_really_full_disk(tmp_path):
    d = tmp_path/'small'; d.mkdir()
    mounted = subprocess.run(['mount','-t','tmpfs','-o','size=2m','tmpfs',str(d)], capture_output=True)
    if mounted.returncode: pytest.skip('mounting is not allowed here')
    try:
        with says('the disk is full', exc=OSError): load_data(write_zip(tmp_path/'a.zip', course(600)), 96, cache_dir=d)
    finally: subprocess.run(['umount',str(d)], check=True)

def test_a_whole_cache_in_a_read_only_folder_can_be_used(tmp_path, monkeypatch):
    z = write_zip(tmp_path/'a.zip', course())
    a = load_data(z, 8, cache_dir=tmp_path/'c')
    def no(*a, **k): raise OSError(errno.EROFS, 'read-only')
    monkeypatch.setattr(mils.cache, 'locked', no)
    for module in (mils.disk, mils.pixels): monkeypatch.setattr(module, 'write_atomic', no)
    assert load_data(z, 8, cache_dir=tmp_path/'c').key==a.key

# --- downloads

class Server(BaseHTTPRequestHandler):
    data,limit,breaks,tag,log,ranges = b'',0,0,'"1"',[],True
    def head(self, code, start):
        self.send_response(code)
        self.send_header('ETag', self.tag)
        self.send_header('Content-Length', str(len(self.data)-start))
        self.end_headers()
    def do_HEAD(self): self.head(200, 0)
    def do_GET(self):
        c,r = type(self),self.headers.get('Range')
        start = int(r[6:-1]) if r and c.ranges and self.headers.get('If-Range')==c.tag else 0
        c.log.append(start); self.head(206 if start else 200, start)
        end = start+c.limit if c.breaks else len(c.data)
        c.breaks -= bool(c.breaks)
        self.wfile.write(c.data[start:end])
    def log_message(self, *a): pass

@pytest.fixture
def server():
    S = type('S', (Server,), dict(data=random.Random(0).randbytes(900_000), limit=250_000, log=[]))
    s = ThreadingHTTPServer(('127.0.0.1',0), S)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    S.url = f'http://127.0.0.1:{s.server_port}/x.zip'
    yield S
    s.shutdown(); s.server_close()

def test_an_interrupted_download_goes_on(server, tmp_path):
    server.breaks = 2
    assert holds(download(server.url, tmp_path/'x'), server.data) and server.log==[0,250_000,500_000]
    assert [o.name for o in tmp_path.iterdir()]==['x']

def test_a_killed_download_goes_on(server, tmp_path):
    (tmp_path/'x.part').write_bytes(server.data[:123_456]); (tmp_path/'x.part.tag').write_text('"1"')
    assert holds(download(server.url, tmp_path/'x'), server.data) and server.log==[123_456]

@pytest.mark.parametrize('tag,ranges', [('"0"',True), ('"1"',False), (None,True)])
def test_halves_of_two_versions_are_never_mixed(server, tmp_path, tag, ranges):
    server.ranges = ranges
    (tmp_path/'x.part').write_bytes(b'old'*9999)
    if tag: (tmp_path/'x.part.tag').write_text(tag)
    assert holds(download(server.url, tmp_path/'x'), server.data) and server.log==[0]

def test_no_network(tmp_path, monkeypatch):
    for url in ('http://127.0.0.1:9/x.zip', 'http://no-such-host.invalid/x.zip'):
        with says('cannot download', url, 'network', str(tmp_path/'x.zip'), exc=ConnectionError):
            download(url, tmp_path/'x.zip', timeout=2, tries=1)
    monkeypatch.setitem(REMOTES, 'course', REMOTES['course']._replace(url='http://127.0.0.1:9/images.zip'))
    with says('cannot download','network', exc=ConnectionError): get_data('course', tmp_path)
    with says('mils data get course', exc=FileNotFoundError): load_data('course', cache_dir=tmp_path)

def tarred(path, name, content):
    "A tar with one member: a file of some bytes, or a link to a name"
    o = tarfile.TarInfo(name)
    with tarfile.open(path, 'w:gz') as t:
        if isinstance(content, bytes): o.size = len(content); t.addfile(o, io.BytesIO(content))
        else: o.type,o.linkname = tarfile.SYMTYPE,content; t.addfile(o)
    return path

@pytest.mark.parametrize('name,content,msg', [('../x',b'x','leads out'), ('/etc/x',b'x','leads out'), ('x','/etc/passwd','a link'),
                                              ('x',bytes(10**6),'grow')])
def test_a_bad_tar_is_refused(tmp_path, name, content, msg):
    with says('t.tgz', 'refused', msg): tar_to_zip(tarred(tmp_path/'t.tgz', name, content), tmp_path/'no.zip')
    (tmp_path/'t.tgz').write_bytes((tmp_path/'t.tgz').read_bytes()[:40])
    with says('not a complete tar'): tar_to_zip(tmp_path/'t.tgz', tmp_path/'no.zip')
    assert [o.name for o in tmp_path.iterdir()]==['t.tgz']

def test_a_tar_becomes_a_zip(server, tmp_path, monkeypatch):
    files,f = course(),io.BytesIO()
    with tarfile.open(fileobj=f, mode='w:gz') as t:
        for k,v in files.items():
            o,v = tarfile.TarInfo(f'./top/{k}'),v if isinstance(v,bytes) else v.encode()
            o.size = len(v)
            t.addfile(o, io.BytesIO(v))
    server.data = f.getvalue()
    url = server.url.replace('x.zip', 'x.tgz')
    monkeypatch.setitem(REMOTES, 'cifar100', Remote(url, 'a test', len(server.data), md5_start=hashlib.md5(server.data).hexdigest()))
    assert get_data('cifar100', tmp_path).name=='cifar100.zip'
    assert sorted(o.name for o in (tmp_path/'data').iterdir())==['cifar100.compared','cifar100.zip']
    assert len(load_data('cifar100', 8, cache_dir=tmp_path).images)==12

def test_a_download_is_compared_with_what_was_published(server, tmp_path, monkeypatch, capsys):
    f = io.BytesIO(); write_zip(f, course()); server.data = f.getvalue()
    r = Remote(server.url, 'a test', len(server.data), hashlib.md5(server.data).hexdigest())
    monkeypatch.setitem(REMOTES, 'course', r._replace(md5='0'*32))
    with says('MD5','expected 000','rejected'): get_data('course', tmp_path)
    monkeypatch.setitem(REMOTES, 'course', r._replace(size=5))
    with says('expected 5'): get_data('course', tmp_path)
    server.data = server.data[:300]+bytes(20)+server.data[320:]          # no checksum, but a damaged member
    monkeypatch.setitem(REMOTES, 'course', Remote(server.url, 'a test'))
    with says('is damaged at'): get_data('course', tmp_path)
    server.data = f.getvalue()
    z = get_data('course', tmp_path)
    assert f'{len(server.data)/1e6:,.0f} MB from' in capsys.readouterr().out
    n = len(server.log); assert get_data('course', tmp_path)==z and len(server.log)==n
    assert len(load_data('course', 8, cache_dir=tmp_path).images)==12

def test_names_and_options_that_are_almost_right(tmp_path):
    for f,msg in ((lambda: get_data('cifar10', tmp_path),"did you mean 'cifar100'?"), (lambda: load_data('chrma'),"did you mean 'chroma'?"),
                  (lambda: load_data(write_zip(tmp_path/'a.zip', course()), sed=1),"did you mean 'seed'?")):
        with says(msg): f()
