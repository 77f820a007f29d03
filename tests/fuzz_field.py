"""Data sets made up in many ways, each with its right answer: `python tests/fuzz_field.py --minutes 10`

Every picture shows its number. So what a manifest says about a file can be compared with what was meant: its class, its split,
whether it can be used. A set that is refused, or a picture that is missing, is a fault like a wrong class, unless it was made to be one.
"""
import argparse,io,itertools,random,shutil,sys,tempfile,time,traceback,zipfile
from dataclasses import dataclass,field
from pathlib import Path
import numpy as np
from PIL import Image
from mils.check import check
from mils.decode import decode
from mils.manifest import read_manifest

FORMATS = dict(jpg='JPEG', JPEG='JPEG', jfif='JPEG', png='PNG', PNG='PNG', bmp='BMP', gif='GIF', tif='TIFF', TIFF='TIFF', webp='WEBP',
               ppm='PPM')
CLASSES = ['cat','dog','Paris, France','bullet train','test tube','n01443537','7 up','3','été','犬','a b','d-e','train',
           'images of cats','x.y','dog 1','cat 0']
SPELLINGS = [('train','val','test'), ('Train','Val','Test'), ('training','validation','testing'), ('training_set','valid_set','test_set'),
             ('seg_train','seg_val','seg_test'), ('TRAIN','VALID','TEST'), ('train2017','val2017','test2017'),
             ('images_train','images_dev','images_test'),
             ('TrainSet','ValSet','TestSet'), ('cars_train','cars_val','cars_test')]
LIST_SPELLINGS = [('train','val','test'), ('training','valid','testing'), ('Train','validation','Test'), ('train_list','dev','test_list'),
                  ('train','val_labels','test')]
LITTER = ['.DS_Store','{}/@eaDir/1.jpg','$RECYCLE.BIN/2.png','__MACOSX/{}/._1.jpg','{}/Thumbs.db','lost+found/3.png',
          '{}/.ipynb_checkpoints/4.png']

def picture(number, kind):
    "A picture that shows its number as sixteen black or white fields"
    bits = np.array([number>>i&1 for i in range(16)], np.uint8).reshape(4,4)*255
    im,f = Image.fromarray(np.kron(bits, np.ones((8,8), np.uint8))).convert('RGB'),io.BytesIO()
    im.save(f, FORMATS[kind], **dict(quality=90) if FORMATS[kind] in ('JPEG','WEBP') else {})
    return f.getvalue()

def number(b):
    "What a picture shows"
    bits = decode(b, 32).mean(2)[4::8,4::8].ravel()>127
    return sum(int(o)<<i for i,o in enumerate(bits))

@dataclass
class Made:
    "A data set, and what is right"
    files:dict = field(default_factory=dict)      # name -> bytes
    meant:dict = field(default_factory=dict)      # number -> (class, split or nothing where it is drawn)
    bad:set = field(default_factory=set)          # numbers of pictures that cannot be used
    told:list = field(default_factory=list)       # what has to be in the notes
    links:dict = field(default_factory=dict)      # name -> where the link leads
    done:str = ''                                 # how it was made, for people

class Maker:
    def __init__(self, rng): self.rng,self.m,self.count,self.links,self.bytes = rng,Made(),itertools.count(1),True,False
    def any(self, *some): return self.rng.choice(some)
    def maybe(self, p): return self.rng.random()<p

    def name(self):
        stem = self.any('{}','img {}','IMG_{}','é{}','a,b{}','{} (2)','x.y.{}')
        if self.bytes and self.maybe(.1): stem = '\udce9{}'
        stem = stem.format(next(self.count)+self.rng.randrange(10)*1000)
        return f'{stem}.{self.rng.choice(list(FORMATS))}'

    def pictures(self, classes, splits, n):
        "`(class, split, file name, number)` of each picture"
        for c in classes:
            for s in splits:
                for _ in range(self.rng.randint(*n)):
                    i = len(self.m.meant)+1
                    self.m.meant[i] = c,s
                    yield c,s,self.name(),i

    def add(self, path, i, fallible=True):
        "Put a picture somewhere, perhaps a damaged one"
        b = picture(i, path.rpartition('.')[2])
        if fallible and self.maybe(.04): b = self.spoil(path, b, i)
        if b is not None: self.m.files[path] = b

    def spoil(self, path, b, i):
        kind = FORMATS[path.rpartition('.')[2]]
        ways = ['cut','empty','foreign','text']+['zeros']*(kind in ('JPEG','PNG','GIF'))+['bit']*(kind=='PNG')+['link']*self.links
        way,k = self.rng.choice(ways),self.rng.randrange(len(b)//3, len(b)*2//3)
        self.m.bad.add(i)
        if way=='link': self.m.links[path] = 'nowhere'
        foreign = b'\0\0\0\x1cftyp'+self.any(b'avif',b'heic')+b[12:]
        return dict(cut=b[:k], empty=b'', foreign=foreign, text=b'<html>no</html>', zeros=b[:k]+bytes(len(b)-k), link=None,
                    bit=b[:40]+bytes([b[40]^1])+b[41:])[way]

    # --- layouts

    def classes(self):
        return self.rng.sample(CLASSES, self.rng.randint(2,5))

    def wrapper(self): return self.any('','','pets/','my data/v1/','images/')

    def folders(self):
        "A folder a class, splits drawn"
        top = self.wrapper()
        for c,_,name,i in self.pictures(self.classes(), [''], (12,20)): self.add(f'{top}{c}/{self.any("","","images/")}{name}', i)
        self.extras(top)

    def split_folders(self):
        names = self.rng.choice(SPELLINGS)
        top,inner = self.wrapper(),self.any('','','own','data/')
        splits = self.any(('train','test'), ('train','val','test'), ('train','val'))
        for c,s,name,i in self.pictures(self.classes(), splits, (2,4)):
            o = names[('train','val','test').index(s)]
            self.add(f'{top}{o}/{f"{o}/" if inner=="own" else inner}{c}/{name}', i, s!='train')
        if self.maybe(.3): self.sibling(top)
        self.extras(top)

    def class_first(self):
        names = self.rng.choice(SPELLINGS[:4])
        for c,s,name,i in self.pictures(self.classes(), ('train','val','test'), (2,4)):
            self.add(f'{c}/{names[("train","val","test").index(s)]}/{name}', i, s!='train')

    def sibling(self, top):
        "A folder that belongs to no split has to be told"
        o = self.any('extra','holdout','unlabelled')
        self.m.files[f'{top}{o}/{self.any("cat","")}/1.png'.replace('//','/')] = picture(60_000, 'png')
        self.m.told.append(o)

    def extras(self, top):
        first = next(iter(self.m.files)).split('/')[:-1]
        if self.maybe(.4): self.m.files[self.rng.choice(LITTER).format('/'.join(first))] = picture(61_000, 'png')
        if self.maybe(.3):
            self.m.files['/'.join([*first,'remarks.xyz'])] = b'nothing'
            self.m.told.append('.xyz')
        if self.maybe(.3): self.m.files[f'{top}README.md'] = b'# pictures'

    # --- lists

    def lists(self):
        classes,k = self.classes(),self.any('names','numbers','from 1','folders','declared')
        if k=='names': classes = [f'number {o}' if o.isdigit() else o for o in classes]         # numbers among names are a mistake
        place = self.any('images/','','photos/') if k!='folders' else self.any('images/','')
        table = k!='folders' and self.maybe(.4)
        rows = {s:[] for s in ('train','val','test')}
        for c,s,name,i in self.pictures(classes, rows, (2,4)):
            if not table and k!='folders': name = name.replace(',', ' ') if self.maybe(.5) else name
            path = f'{place}{c}/{name}' if k=='folders' or self.maybe(.5) else f'{place}{name}'
            self.add(path, i, s!='train')
            rows[s].append((path, c))
        order = classes if k=='declared' else sorted(classes)
        if k=='declared':
            form = self.any('{} {}','{}\t{}','{},{}')
            self.m.files['classes.txt'] = '\n'.join(form.format(y, c) for y,c in enumerate(order)).encode()
        def label(c): return c if k in ('names','folders') else order.index(c)+(k=='from 1')
        if k in ('numbers','from 1'): self.m.meant = {i:(str(label(c)),s) for i,(c,s) in self.m.meant.items()}
        names = self.rng.choice(LIST_SPELLINGS)
        start = self.any('','','./','{root}/','{name}/') if k!='declared' else ''
        for o,(s,some) in zip(names, rows.items()):
            self.rng.shuffle(some)
            some = [(start+p, None if k=='folders' else label(c)) for p,c in some]
            self.m.files[f'{o}.csv' if table else f'{o}.txt'] = self.written(some, table).encode('utf-8-sig' if self.maybe(.2) else 'utf-8')

    def written(self, rows, table):
        "The text of a list"
        end = self.any('\n','\r\n')
        if not table: return end.join(p if y is None else f'{p}{self.any(" ","	")}{y}' for p,y in rows)+end*self.rng.randrange(3)
        import csv
        f = io.StringIO()
        turned = self.maybe(.3)
        w = csv.writer(f, delimiter=self.any(',',';','\t'), quoting=self.any(csv.QUOTE_MINIMAL, csv.QUOTE_ALL), lineterminator=end)
        if self.maybe(.6): w.writerow(['label','file'] if turned else ['file','label'])
        for p,y in rows: w.writerow([y,p] if turned else [p,y])
        return f.getvalue()

    # --- archives

    def zipped(self):
        "The same in a zip, in parts, or a zip a split or class"
        kind,self.links = self.any('one','parts','splits','classes'),False
        if kind=='one':
            self.any(self.split_folders, self.folders, self.lists)()
            wrap = self.any('','data/')
            def here(k, v): return v.replace(b'{root}/', b'').replace(b'{name}/', b'') if k.endswith(('.txt','.csv')) else v
            files = {k:here(k, v) for k,v in self.m.files.items()}
            self.m.files = {'a.zip':self.zip({wrap+k:v for k,v in files.items()})}
        elif kind=='parts':
            self.folders() if self.maybe(.5) else self.split_folders()
            files = list(self.m.files.items())
            self.rng.shuffle(files)
            self.m.files = {f'part{j}.zip':self.zip(dict(files[j::2])) for j in range(2)}
        elif kind=='splits':
            names,inner = self.rng.choice(SPELLINGS),self.any('','own','data/')
            parts = {}
            for c,s,name,i in self.pictures(self.classes(), ('train','test'), (2,4)):
                o = names[('train','val','test').index(s)]
                parts.setdefault(o, {})[f'{f"{o}/" if inner=="own" else inner}{c}/{name}'] = picture(i, name.rpartition('.')[2])
            self.m.files = {f'{o}.zip':self.zip(files) for o,files in parts.items()}
        else:
            parts = {}
            classes = [c for c in self.classes() if not {'train','test'}&set(c.split())]
            for c,_,name,i in self.pictures(classes if len(classes)>1 else ['cat','dog'], [''], (12,15)):
                parts.setdefault(c, {})[name] = picture(i, name.rpartition('.')[2])
            self.m.files = {f'{c}.zip':self.zip(files) for c,files in parts.items()}
        if self.maybe(.3) and kind!='one':
            self.m.files['other.zip'] = self.any(b'PK\3\4broken', self.zip({'a.log':bytes(10**6)}), b'7z\xbc\xaf')
            self.m.told.append('other.zip')
            if self.m.files['other.zip'][:4]!=b'PK\3\4' or b'broken' in self.m.files['other.zip']: self.m.told.append('DAMAGED')

    def zip(self, files):
        f = io.BytesIO()
        with zipfile.ZipFile(f, 'w', self.any(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) as z:
            for k,v in files.items(): z.writestr(k, v)
        return f.getvalue()

    def make(self):
        way = self.any(self.folders, self.split_folders, self.class_first, self.lists, self.zipped)
        self.bytes = way not in (self.lists,self.zipped)           # names that are no UTF-8
        way()
        self.m.done = way.__name__
        return self.m

def write(m, root):
    for k,v in m.files.items():
        p = root/k.strip('/')
        p.parent.mkdir(parents=True, exist_ok=True)
        if p.suffix in ('.txt','.csv'): v = v.replace(b'{root}', str(root).encode()).replace(b'{name}', root.name.encode())
        p.write_bytes(v)
    for k,v in m.links.items():
        p = root/k
        p.parent.mkdir(parents=True, exist_ok=True)
        p.symlink_to(v)

def faults(m, root):
    "What is wrong with what is read, in words"
    if 'DAMAGED' in m.told:
        try: read_manifest(root)
        except ValueError as e: return [] if 'other.zip' in str(e) else [f'another error: {e}']
        return ['a damaged zip beside others was passed over']
    man = read_manifest(root)
    report = check(man)
    bad = {o.path for o in report.bad}
    found = {}
    for i,(r,name) in enumerate(zip(man.rows, man.names)):
        if r.path in bad: continue
        found[number(man.source.read(name))] = man.classes[man.labels[i]],('train','val','test')[man.split[i]]
    drawn_val = not any(s=='val' for _,s in m.meant.values())
    for i,(c,s) in m.meant.items():
        if i in m.bad: continue
        if i not in found: yield f'picture {i} of {c} {s} is missing'
        elif found[i][0]!=c: yield f'picture {i} is {found[i][0]}, meant {c}'
        elif s and found[i][1]!=s and not (s=='train' and drawn_val and found[i][1]=='val'):
            yield f'picture {i} is in {found[i][1]}, meant {s}'
    if extra := found.keys()-m.meant.keys(): yield f'pictures that are none: {extra}'
    if len(bad)!=len(m.bad): yield f'{len(bad)} unusable, made {len(m.bad)}: {sorted(map(str, report.bad))}'
    told = '\n'.join(man.notes)
    for o in m.told:
        if o not in told: yield f'{o} is not told; notes: {told}'

def damaged_zip(rng, root):
    "A zip with some wrong bytes: each picture that can be read is right, or the error names a file"
    f = {f'images/{i}.png':picture(i, 'png') for i in range(1,13)}
    f |= {f'{s}.txt':'\n'.join(f'images/{i}.png {i%2}' for i in range(a,b)) for s,a,b in (('train',1,9),('val',9,11),('test',11,13))}
    b = io.BytesIO()
    with zipfile.ZipFile(b, 'w', rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])) as z:
        for k,v in f.items(): z.writestr(k, v)
    b = bytearray(b.getvalue())
    for _ in range(rng.randint(1,4)): b[rng.randrange(len(b))] = rng.randrange(256)
    if rng.random()<.1: b = b[:rng.randrange(len(b))]
    (root/'a.zip').write_bytes(b)
    try: man = read_manifest(root/'a.zip')
    except ValueError as e:
        if not any(o in str(e) for o in ('a.zip', *f)): yield f'an error without a file: {e}'
        return
    bad = {o.path for o in check(man).bad}
    for r,name,y in zip(man.rows, man.names, man.labels):
        if r.path in bad: continue
        i = number(man.source.read(name))
        if r.path!=f'images/{i}.png' or man.classes[y]!=str(i%2): yield f'{r.path} shows {i} and is {man.classes[y]}'

def one(seed, keep=None):
    "Faults of the set with this number"
    rng,root = random.Random(seed),Path(tempfile.mkdtemp(prefix='field'))/'in'
    root.mkdir()
    try:
        if rng.random()<.15: return 'damaged zip',list(damaged_zip(rng, root))
        m = Maker(rng).make()
        write(m, root)
        return m.done,list(faults(m, root))
    except Exception: return 'error',[traceback.format_exc(limit=-3)]
    finally:
        if keep: shutil.copytree(root, keep, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(root.parent)

def fuzz(seconds, first=0, most=None):
    "`(sets made, {seed: faults})`"
    end,wrong = time.time()+seconds,{}
    for n in itertools.count():
        if time.time()>end or n==most: return n,wrong
        way,found = one(first+n)
        if found: wrong[first+n] = way,found

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--minutes', type=float, default=10)
    p.add_argument('--first', type=int, default=0, help='number of the first set')
    p.add_argument('--one', type=int, help='make this one only, and keep it')
    p.add_argument('--keep', help='where to keep it')
    a = p.parse_args()
    if a.one is not None: print(*one(a.one, a.keep), sep='\n')
    else:
        n,wrong = fuzz(60*a.minutes, a.first)
        for seed,(way,found) in wrong.items(): print(f'--- {seed}: {way}', *found[:3], sep='\n')
        print(f'{n} sets, {len(wrong)} with faults')
        sys.exit(bool(wrong))
