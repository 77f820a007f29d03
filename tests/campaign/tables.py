"Tables of reported numbers from results that are made up: what was rounded rightly passes, what was planted is found"
import re
from decimal import Decimal
from campaign.cases import refusal,refused,right
from mils.claims import verdicts
from mils.relations import audit_table

HEAD = 'table,row,quantity,value,unit,source\n'
NUMBER = re.compile(r'[<>~±]?[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?:%(?=\+))?\+?')

def ends(text):
    "Lowest and highest value that is written so"
    v = re.sub(r'[<>~±+,%]', '', text[:1])+re.sub('[,%+]', '', text[1:]) if 'e' not in text else text.strip('<>~±+')
    d = Decimal(v.replace(',', ''))
    half = Decimal(5).scaleb(d.as_tuple().exponent-1)
    low,high = (Decimal('-inf'),d) if text[0]=='<' else (d,Decimal('inf')) if text[0]=='>' else (d-half,d+half)
    return low,(Decimal('inf') if text.endswith('+') else high)

def table_faults(path, rows):
    "What is wrong with the verdicts on rows `(table, row, quantity, value, unit)` of any kind"
    rows = [tuple(o.strip() for o in r) for r in rows]
    bad = [i for i,(_,_,q,v,u) in enumerate(rows) if (u or q.endswith('accuracy')) and not NUMBER.fullmatch(v)]
    try: t = audit_table(path)
    except ValueError as e:
        if not bad and rows: yield f'an error for a table without a mistake: {e}'
        elif str(path) not in str(e): yield f'an error without the file: {e}'
        elif rows and f'line {bad[0]+2}:' not in str(e): yield f'line {bad[0]+2} is the first mistake; the error is {e}'
        return
    if bad or not rows: yield f'no error for line {bad[0]+2 if bad else 1}'
    elif len(t)!=len(rows) or not set(t.verdict)<=set(verdicts): yield f'{len(rows)} rows have {len(t)} verdicts: {set(t.verdict)}'
    else: yield from _verdict_faults(t, rows)

def _verdict_faults(t, rows):
    "Numbers that contradict each other, or cannot be, against the verdicts"
    numbers = [NUMBER.fullmatch(r[3]) is not None for r in rows]
    tables = {r[1:3]+(r[4],):set() for r in rows}
    for r,is_number in zip(rows, numbers):
        if is_number: tables[r[1:3]+(r[4],)].add(r[0])
    for i,(r,verdict) in enumerate(zip(rows, t.verdict)):
        if not numbers[i]:
            if verdict!='not checkable': yield f'{r} is no number, and {verdict}'
            continue
        same = [k for k,o in enumerate(rows) if k!=i and o[1:3]==r[1:3] and o[4]==r[4] and numbers[k]]
        again = [k for k in same if len(tables[r[1:3]+(r[4],)])>1 or rows[k][0]==r[0]]
        apart = any(ends(rows[k][3])[0]>ends(r[3])[1] or ends(r[3])[0]>ends(rows[k][3])[1] for k in again)
        if apart and verdict!='inconsistent': yield f'{r} contradicts another row, and is {verdict}'
        alone = not same and len(rows)<3 and not any(w in r[2] for w in ('accuracy','images','n','runs','_'))
        if alone and verdict=='inconsistent': yield f'nothing speaks against {r}, and it is inconsistent: {t.reason.iloc[i]}'

SAMPLES = ['5','0','-3','12.5','33.56','1,234','<0.3','>7','~9','30+','1e3','2.5e-4','±0.2','',
           '-','%','1.','.5','1e','nan','inf','--2','1,23','٣','5 %']

def any_table(rng, root):
    "Rows of any kind"
    quantities = ['accuracy','delta','n','params_ratio','params','accuracy_pm','runs','loss']
    rows = [(rng.choice('ab'), rng.choice(['x','y','mean']), rng.choice(quantities),
             rng.choice(SAMPLES) if rng.random()<.15 else f'{rng.randint(0,10**rng.randint(1,6))/10**rng.randint(0,3)}',
             rng.choice(['','%','pp'])) for _ in range(rng.randint(0,12))]
    f = root/'t.csv'
    f.write_text(HEAD+''.join(','.join(f'"{o}"' if ',' in o else o for o in r)+',x\n' for r in rows))
    return right(table_faults(f, rows))

# --- tables that follow from counted pictures

def _truth(rng):
    "Rows of a study as it should be: accuracies of whole numbers of pictures, shares of the first, a mean, a repeat"
    n,m = rng.choice([200,450,1000]),rng.randint(6,12)
    k = rng.sample(range(n//4, n*3//4), m)
    acc = [f'{100*Decimal(o)/n:.2f}' for o in k]
    rows = [('data','test','images',str(n),'')]+[('main',f'net{i}','accuracy',v,'%') for i,v in enumerate(acc)]
    if rng.random()<.7: rows += [('main',f'net{i}','relative',f'{100*Decimal(v)/Decimal(acc[0]):.1f}','%') for i,v in enumerate(acc)]
    if rng.random()<.5: rows.append(('main','mean','accuracy',f'{sum(map(Decimal, acc))/m:.2f}','%'))
    if rng.random()<.5: rows.append(('again','net1','accuracy',acc[1],'%'))
    return n,acc,rows

def _plant(rng, n, acc, rows):
    "One wrong number, which nothing can explain: the place of its row"
    ways = ['range','repeat','grain']+['relative']*any(r[2]=='relative' for r in rows)+['mean']*any(r[1]=='mean' for r in rows)
    way = rng.choice(ways)
    if way=='range': rows.append(('main','odd','accuracy',f'{rng.randint(101,900)}.00','%'))
    elif way=='repeat': rows.append(('other','net2','accuracy',f'{100*Decimal(round(float(acc[2])/100*n)+n//10)/n:.2f}','%'))
    elif way=='grain':
        steps = {f'{100*Decimal(j)/(2*n):.2f}' for j in range(2*n+1)}
        rows.append(('main','odd','accuracy',next(v for v in (f'{rng.uniform(20,80):.2f}' for _ in range(9999)) if v not in steps),'%'))
    else:
        at = next(i for i,r in enumerate(rows) if r[2]=='relative' and r[1]=='net4' or way=='mean' and r[1]=='mean')
        rows[at] = (*rows[at][:3],f'{Decimal(rows[at][3])+rng.choice([-9,7])}',rows[at][4])
        return at,way
    return len(rows)-1,way

def consistent(rng, root):
    "Nothing is wrong, and nothing is found; shares and means follow from their parts"
    n,acc,rows = _truth(rng)
    return right(_study_faults(root/'t.csv', rows, None))

def planted(rng, root):
    "One wrong number is found, and of the others at most those that it contradicts"
    n,acc,rows = _truth(rng)
    at,way = _plant(rng, n, acc, rows)
    return right(_study_faults(root/'t.csv', rows, at))

def _study_faults(f, rows, at):
    f.write_text(HEAD+''.join(','.join(r)+',x\n' for r in rows))
    t = audit_table(f)
    wrong = [*t.index[t.verdict=='inconsistent']]
    if at is None and wrong: yield f'{[rows[i] for i in wrong]} are right, and inconsistent: {t.reason[wrong[0]]}'
    if at is not None and at not in wrong: yield f'{rows[at]} is wrong, and {t.verdict[at]}: {t.reason[at]}'
    if at is not None and any(rows[i][1] not in (rows[at][1],'mean') for i in wrong):
        yield f'wrong is {rows[at]}, found {[rows[i] for i in wrong]}'
    for i,r in enumerate(rows):
        follows = r[1]=='mean' or r[2]=='relative' and r[1]!='net0'
        if at is None and follows and t.verdict[i]!='confirmed': yield f'{r} follows from the others, and is {t.verdict[i]}'

def malformed(rng, root):
    "Files that are no such table: one error that names the file, and the line where there is one"
    n,acc,rows = _truth(rng)
    lines = [HEAD.strip()]+[','.join(r)+',x' for r in rows]
    way,k = rng.choice(['header','word','long','empty','head only','bytes','nul','semicolons']),rng.randrange(2, len(lines))
    say = 't.csv'
    if way=='header': lines[0] = lines[0].replace(rng.choice(['table','row','quantity','value','unit']), 'Q')
    elif way=='word': lines[k] = f'main,x,accuracy,{rng.choice(["high","","nan","3.5%","1..2"])},%,x'; say = f'line {k+1}'
    elif way=='long': lines[k] += ',1,2'
    elif way=='empty': lines = ['']
    elif way=='head only': lines = lines[:1]
    elif way=='semicolons': lines = [o.replace(',', ';') for o in lines]
    b = '\n'.join(lines).encode()
    if way=='bytes': b = rng.randbytes(rng.randint(1,300))
    if way=='nul': b = b[:9]+b'\0\xff'+b[9:]
    (root/'t.csv').write_bytes(b)
    return refused(refusal(lambda: audit_table(root/'t.csv'), 't.csv', say, kinds=ValueError))
