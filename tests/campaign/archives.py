"Zips that are damaged or meant to harm, and which of their pictures can still be right"
import io,stat,zipfile
from campaign.cases import refusal,refused,right
from fuzz_field import number,picture
from mils.check import check
from mils.manifest import read_manifest

METHODS = zipfile.ZIP_STORED,zipfile.ZIP_DEFLATED,zipfile.ZIP_LZMA,zipfile.ZIP_BZIP2

def _files():
    f = {f'images/{i}.png':picture(i, 'png') for i in range(1,13)}
    def text(a, b): return '\n'.join(f'images/{i}.png {i%2}' for i in range(a,b)).encode()
    return f|{'train.txt':text(1,9), 'val.txt':text(9,11), 'test.txt':text(11,13)}

def _zip(files, method):
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w', method) as z:
        for k,v in files.items(): z.writestr(k, v)
    return f.getvalue(),zipfile.ZipFile(f).infolist()

def _shown(man, bad):
    "Faults of pictures that can be read"
    for r,name,y in zip(man.rows, man.names, man.labels):
        if r.path in bad: continue
        i = number(man.source.read(name))
        if r.path!=f'images/{i}.png' or man.classes[y]!=str(i%2): yield f'{r.path} shows {i} and is {man.classes[y]}'

def damaged(rng, root):
    "One byte of the content or of the header of one member is wrong: only this member may be refused"
    files = _files()
    b,infos = _zip(files, rng.choice(METHODS))
    o = rng.choice(infos)
    begin = o.header_offset+30+len(o.filename)
    way = rng.choice(['content','header','none'])
    at = rng.randrange(begin, begin+o.compress_size) if way=='content' else rng.randrange(o.header_offset, begin)
    if way!='none': b = b[:at]+bytes([b[at]^rng.randrange(1,256)])+b[at+1:]
    (root/'a.zip').write_bytes(b)
    listed = o.filename.endswith('.txt')
    try: man = read_manifest(root/'a.zip')
    except ValueError as e:
        if way=='none' or not listed: return right([f'{o.filename} is damaged ({way}), and all is refused: {e}'])
        return refused([] if o.filename in str(e) else [f'{o.filename} is damaged, and the error does not name it: {e}'])
    bad = {x.path for x in check(man).bad}
    faults = [*_shown(man, bad)]
    if len(man)!=12: faults.append(f'{len(man)} pictures, expected 12')
    if more := bad-({o.filename} if way!='none' else set()): faults.append(f'{more} are refused, damaged is {o.filename} alone')
    return right(faults)

def cut(rng, root):
    "Only a part of the file is there"
    b,_ = _zip(_files(), rng.choice(METHODS))
    (root/'a.zip').write_bytes(b[:rng.randrange(len(b))])
    return refused(refusal(lambda: read_manifest(root/'a.zip'), 'a.zip', kinds=ValueError))

def directory(rng, root):
    "Wrong bytes in the table of contents: what can be read is right, or the error names a file"
    files = _files()
    b,infos = _zip(files, rng.choice(METHODS))
    b,start = bytearray(b),infos[-1].header_offset
    for _ in range(rng.randint(1,3)): b[rng.randrange(start, len(b))] = rng.randrange(256)
    (root/'a.zip').write_bytes(b)
    try: man = read_manifest(root/'a.zip')
    except ValueError as e: return refused([] if any(o in str(e) for o in ('a.zip',*files)) else [f'an error without a file: {e}'])
    return right(_shown(man, {x.path for x in check(man).bad}))

def hostile(rng, root):
    "A member that leads out of the folder, a link, or one that grows too much: nothing of the zip is used"
    names = ['../x.png','images/../../x.png','..\\x.png','/etc/x.png','C:\\x.png','\\x.png']
    way = rng.choice(['name','link','bomb'])
    o = zipfile.ZipInfo('x')
    o.filename,o.compress_type = rng.choice(names) if way=='name' else 'images/99.png',zipfile.ZIP_DEFLATED
    if way=='link': o.external_attr = (stat.S_IFLNK|0o777)<<16
    data = bytes(3*10**7) if way=='bomb' else b'x'
    with zipfile.ZipFile(root/'a.zip', 'w') as z:
        members = [*_files().items(), (o,data)]
        rng.shuffle(members)
        for k,v in members: z.writestr(k, v)
    word = dict(name='', link='link', bomb='grows')[way]
    return refused(refusal(lambda: read_manifest(root/'a.zip'), 'a.zip', 'refused', word, kinds=ValueError))
