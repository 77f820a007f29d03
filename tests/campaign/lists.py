"Lists with mistakes, and what is right about them: every line that is as it should be, and the place of every other"
import re,zipfile

from campaign.cases import refusal,refused,right
from mils.manifest import read_manifest

LISTS = 'train.txt','val.txt','test.txt'

# --- junk in a list: whatever is in the other lines, a proper line means what it says

def entries(text):
    "Number and text of every line that is not blank"
    return [(i,l.strip()) for i,l in enumerate(re.split(r'\r\n|\n|\r', text), 1) if l.strip()]

def proper(files, n, classes):
    "Picture -> label and split of each proper line, `path label` that names a picture for the first time; and the places of others"
    meant,odd = {},set()
    for split,name in enumerate(LISTS):
        try: text = files[name].decode('utf-8-sig')
        except UnicodeDecodeError: text = files[name].decode('utf-8-sig', 'replace')
        for i,l in entries(text):
            m = re.fullmatch(r'(?:images/)?(\d{1,3})\.png\s+(\d)', l, re.ASCII)
            if not m or int(m[1])>=n or str(int(m[1]))!=m[1] or int(m[2])>=classes: odd.add((name,i))
            elif int(m[1]) in meant: odd.add((name,i))
            else: meant[int(m[1])] = int(m[2]),split
    return meant,odd

def list_faults(path, files, names, n=12):
    "What is wrong with how these lists are read; `files` have bytes, `classes.txt` among them where it was not changed"
    meant,odd = proper(files, n, len(names))
    trained = {y for y,s in meant.values() if s==0}
    whole = not odd and len(trained)==len(names) and all(_is_text(files[o]) for o in LISTS)
    try: m = read_manifest(path)
    except ValueError as e:
        if whole: yield f'an error for lists without a mistake: {e}'
        places = {(o,int(i)) for o,i in re.findall(r'(\w+\.txt) line (\d+)', str(e))}
        lacks = re.search(r'no training image|(train|val|test|classes)\.txt: |names no class', str(e))
        if not lacks and not places&odd and all(_is_text(files[o]) for o in LISTS): yield f'{places} are blamed, wrong are {odd}: {e}'
        return
    found = {r.path.removeprefix('./').removeprefix('images/'):(m.classes[y],s) for r,y,s in zip(m.rows, m.labels, m.split)}
    for i,(y,s) in meant.items():
        got = found.get(f'{i}.png')
        if got is None and not odd: yield f'picture {i} is missing'
        elif got and got!=(names[y],s): yield f'picture {i} is {got}, meant {(names[y],s)}'
    if not len(m)==len(m.labels)==len(m.names): yield 'a manifest of unequal parts'
    if m.labels.min()<0 or m.labels.max()>=len(m.classes): yield 'a label without a class'
    if not trained<={*range(len(names))} or not meant: yield 'a manifest without a proper line'

def _is_text(b):
    try: b.decode('utf-8-sig')
    except UnicodeDecodeError: return False
    return True

JUNK = [b'\n',b' ',b'\n\n',b'  ',b'\0',b'-1',b'images/0.png 0\n',
        b'\r',b'\t',b',',b';',b'"',b'#',b'\xff',b'0',b'1',b'\xc2\xa0',b'\xe2\x80\xa8',b'\x1c']

def junk(rng, root):
    "Some bytes of some lists are replaced"
    files = {s:''.join(f'images/{i}.png {i%2}\n' for i in r).encode() for s,r in zip(LISTS, (range(8),range(8,10),range(10,12)))}
    for k in rng.choices(LISTS, k=rng.randint(0,3)):
        b = bytearray(files[k])
        for _ in range(rng.choice([1,1,1,2,6])):
            i = rng.randint(0, len(b))
            b[i:i+rng.choice([0,0,0,1,3,9])] = rng.choice(JUNK) if rng.random()<.9 else rng.randbytes(rng.randint(0,6))
        files[k] = bytes(b)
    path = zipped(root/'a.zip', {f'images/{i}.png':b'x' for i in range(12)}|files|{'classes.txt':b'0 cat\n1 dog'})
    return right(list_faults(path, files, ['cat','dog']))

def zipped(path, files):
    with zipfile.ZipFile(path, 'w') as z:
        for k,v in files.items(): z.writestr(k, v)
    return path

# --- mistakes that people make, each at a known place

def _no_label(rng, rows, k): rows['val'][-1] = (rows['val'][-1][0], ''); return 'val',len(rows['val']),'no label'
def _too_large(rng, rows, k): rows['val'][0] = (rows['val'][0][0], '77'); return 'val',1,'label 77 is out of range'
def _negative(rng, rows, k): rows['test'][0] = (rows['test'][0][0], '-1'); return 'test',1,'label -1 is out of range'
def _unknown(rng, rows, k): rows['test'][-1] = (rows['test'][-1][0], 'zebra crossing'); return 'test',len(rows['test']),'unknown class'
def _twice(rng, rows, k): rows['train'].append(rows['train'][0]); return 'train',len(rows['train']),'the same image twice'
def _leaked(rng, rows, k):
    path,y = rows['train'][1]
    rows['test'].append((rng.choice(['','./'])+path, y))
    return 'test',len(rows['test']),'the same image in two splits'
def _untrained(rng, rows, k):
    "The class of the first row is trained no more"
    y = rows['train'][0][1]
    rows['train'] = [(p, o if o!=y else rows['train'][1][1]) for p,o in rows['train']]
    return '',0,'training image' if k=='numbers' else 'unknown class' if k=='names' else 'has no training image'

MISTAKES = dict(numbers=[_no_label,_too_large,_negative,_twice,_leaked], names=[_no_label,_unknown,_twice,_leaked,_untrained],
                declared=[_no_label,_too_large,_unknown,_twice,_leaked,_untrained])

def mistakes(rng, root):
    "None to three mistakes in lists; every one is told with its place, and without one everything is as meant"
    kind = rng.choice([*MISTAKES])
    names = rng.sample(['cat','dog','7 up','été','bullet train','Paris, France','a'], rng.randint(2,4))
    if kind=='names': names = [o for o in names if not o[0].isdigit()]+['newt']
    names,place = sorted(names),rng.choice(['','images/'])
    by_name = kind=='names' or kind=='declared' and rng.random()<.3
    def label(y): return names[y] if by_name else str(y)
    numbers,rows,meant = iter(range(1000)),{},{}
    for split,per in dict(train=3, val=1, test=1).items():
        rows[split] = [(f'{place}{next(numbers)}.png', y) for y in range(len(names)) for _ in range(per)]
        rng.shuffle(rows[split])
        meant |= {p:(y,split) for p,y in rows[split]}
        rows[split] = [(p, label(y)) for p,y in rows[split]]
    some = rng.sample(MISTAKES[kind], rng.choice([0,0,1,1,2,3]))
    if len({o[1] for o in rows['train'][:2]})<2: some = [o for o in some if o is not _untrained]
    some.sort(key=lambda o: o in (_twice,_leaked,_untrained))
    told = [o(rng, rows, kind) for o in some]
    files = {f'images/{p.removeprefix("images/")}':b'x' for p in meant}
    for split,lines in rows.items(): files[f'{split}.txt'] = _written(rng, lines)
    if kind=='declared': files['classes.txt'] = '\n'.join(f'{y} {o}' for y,o in enumerate(names)).encode()
    z = zipped(root/'a.zip', files)
    if told:
        words = [w for s,i,w in told]+[f'{s}.txt line {_line(files[f"{s}.txt"], i)}' for s,i,w in told if s]
        return refused(refusal(lambda: read_manifest(z), *words, kinds=ValueError))
    return right(_as_meant(read_manifest(z), meant, names if kind!='numbers' else [*map(str, range(len(names)))]))

def _written(rng, rows):
    "A list with blank lines, a mark at its start and any line ends"
    end = rng.choice(['\n','\r\n','\r'])
    lines = [f'{p}{rng.choice([" ","	","  "])}{y}'.rstrip()+' '*rng.choice([0,0,2]) for p,y in rows]
    for _ in range(rng.choice([0,0,2])): lines.insert(rng.randint(0,len(lines)), rng.choice(['','  ','\t']))
    return ('\ufeff'*(rng.random()<.2)+end.join(lines)+end*rng.randrange(3)).encode()

def _line(b, k):
    "The number of the line of entry `k`, counted from 1"
    return entries(b.decode('utf-8-sig'))[k-1][0]

def _as_meant(m, meant, names):
    "Faults of a manifest that has to hold all of `meant`: path -> (label, split)"
    found = {r.path.removeprefix('./'):(m.classes[y],('train','val','test')[s]) for r,y,s in zip(m.rows, m.labels, m.split)}
    want = {p:(names[y],s) for p,(y,s) in meant.items()}
    if None in m.names: yield f'a picture is not found: {m.names}'
    for p in want.keys()|found.keys():
        if found.get(p)!=want.get(p): yield f'{p} is {found.get(p)}, meant {want.get(p)}'

