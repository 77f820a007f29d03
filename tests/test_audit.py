"Reported numbers: every one has a row and a verdict, and the arithmetic behind the verdicts is right"
import itertools,re,shutil
from decimal import Decimal,ROUND_HALF_DOWN,ROUND_HALF_UP
from pathlib import Path
import nbformat,numpy as np,pandas as pd,pytest
from hypothesis import given,settings,strategies as st
from campaign.tables import table_faults
from mils import models
from mils.tables import results_dir
from mils.claims import interval_ends,read_claims,stated,verdicts
from mils.formulas import evaluate,formula_parts
from mils.granularity import allowed_sizes,chance_reachable,check_granularity,reachable
from mils.spreads import spread_readings,spreads
from mils.relations import audit_table
from mils.study import study_formulas
from mils.recounts import check_recounts
from mils.measured import our_figures
from mils.audit import conflicts,key_numbers,ledger,section_pages
from mils.cli import main

repo = Path(__file__).resolve().parent.parent
reported = repo/'results'/'reported'
header = 'table,row,quantity,value,unit,source\n'

@pytest.fixture(scope='module')
def led(): return ledger()

# ---- the ledger is complete

def test_every_reported_row(led):
    mine = led[led.document=='reported.csv']
    lines = (reported/'reported.csv').read_text().splitlines()
    assert len(mine)==len(lines)-1
    for o in mine.itertuples(): assert lines[o.line-1]==f'{o.table},{o.row},{o.quantity},{o.value},{o.unit},{o.source}'

def test_every_number_of_the_summary(led):
    "Found here by another rule: all digits, and then those away that belong to a name"
    mine = led[led.document=='key-numbers.md']
    for n,line in enumerate((reported/'key-numbers.md').read_text().splitlines(), 1):
        line = re.sub(r'ResNet34|4Layer|Top-5', '', line)
        digits = [re.sub(',','',d) for d in re.findall(r'\d[\d,.]*(?:e-\d+)?', line)]
        got = [re.sub('[^0-9.e-]', '', v.lstrip('+-±<~')) for v in mine.value[mine.line==n]]
        assert got==[d.rstrip('.') for d in digits], line

def test_every_row_has_a_verdict_a_reason_and_a_section(led):
    assert set(led.verdict)<=set(verdicts) and set(led.section)<=set(section_pages)
    for section,page in section_pages.items():
        at, = (repo/'nbs').glob(f'08?_{page}.ipynb')
        headings = [h for c in nbformat.read(at, 4).cells if c.cell_type=='markdown' for h in re.findall(r'^## (.+)$', c.source, re.M)]
        assert section in {re.sub(r'[^a-z0-9]+','-', h.lower()) for h in headings}, (section,page)
    assert led.reason.str.len().min()>10 and not led.reason.str.contains('nan|None').any()

@pytest.mark.parametrize('claim,verdict,say', [
    ('baseline.target.accuracy', 'confirmed', '48.397 to 48.407'),
    ('baseline.resnet34.params', 'confirmed', '21,335,972'),
    ('baseline.wide_resnet.train_time_saved', 'confirmed', '606 to 608'),
    ('task_a_methods.dynamic.mean_accuracy_all_modes', 'inconsistent', '30.47, with two digits swapped, would follow'),
    ('dataset.all.val_samples', 'inconsistent', '1/450'),
    ('architectures_other.dense_efficient.accuracy', 'inconsistent', '40.22'),
    ('records.wide_resnet.best_param_efficiency', 'inconsistent', 'number 10'),
    ('wide_resnet_ablation.width2.params', 'consistent', '4,662,500'),
    ('wide_resnet_ablation.width8.params', 'consistent', 'fit one rule'),
    ('architectures.wide_resnet.flops', 'consistent', 'strides and stem are not stated'),
    ('efficiency.wide_resnet.flops', 'consistent', '6.23 G'),
    ('baseline.wide_resnet.layer_reduction', 'confirmed', '1 - 4/34 is 88.2 %'),
    ('records.all.experiments_min', 'not checkable', 'what counts as an experiment'),
    ('task_a_modes.RGB.accuracy_pm', 'consistent', '450 pictures: no reading; 900 pictures: standard deviation'),
    ('task_a_modes.RB.accuracy_pm', 'consistent', '450 pictures: no reading; 900 pictures: standard deviation'),
    ('architectures.wide_resnet.accuracy', 're-measured', 'ours is'),
    ('dataset.public_course_split.val_samples', 'consistent', '1/450'),
    ('dataset.all.samples_per_class_val', 'consistent', 'is inconsistent'),
    ('architectures.mini_swin.params', 'not checkable', 'not described'),
    ('task_a_modes.G.accuracy', 're-measured', 'ours is')])
def test_known_verdicts(led, claim, verdict, say):
    table,row,quantity = claim.split('.')
    o = led[(led.document=='reported.csv')&(led.table==table)&(led.row==row)&(led.quantity==quantity)].iloc[0]
    assert (o.verdict,say in o.reason)==(verdict,True), o.reason

def test_an_accuracy_that_450_pictures_can_give():
    c = read_claims(reported/'reported.csv')
    told = {c.claim[i]:(v,r) for i,v,r in check_granularity(c)}
    assert told['architectures.wide_resnet.accuracy'][0]=='consistent' and '259/450' in told['architectures.wide_resnet.accuracy'][1]

def test_a_rank_is_no_surer_than_what_is_ranked(led):
    "Rank 5 rests on an accuracy that another document contradicts; ranks 1 to 4 stay whichever is right"
    ranks = led[led.quantity.str.startswith('rank(')].drop_duplicates('quantity').sort_values('value')
    assert ranks.verdict.tolist()==['confirmed']*4+['consistent']
    assert 'architectures.dense_efficient.accuracy is inconsistent' in ranks.reason.iloc[-1]

def test_two_documents_that_disagree_are_one_conflict(led):
    found = conflicts(led[led.document=='reported.csv'])
    assert len(found['architectures and architectures_other'])==8 and len(found)==5
    mended = led[(led.document=='reported.csv')&(led.table!='architectures_other')&(led.verdict=='inconsistent')]
    assert all(len(g)==1 for g in conflicts(mended).values())

def test_no_size_that_the_accuracies_reject_excuses_a_spread(led):
    spread = led[(led.document=='reported.csv')&(led.quantity=='accuracy_pm')]
    assert len(spread)==17 and not spread.reason.str.contains('12,000').any()
    for v in '0.23','0.19': assert not spread_readings(v, 450, 3) and 'standard deviation' in spread_readings(v, 900, 3)
    assert allowed_sizes(read_claims(reported/'reported.csv'))==[450,900]

def test_a_spread_on_a_rejected_size_is_inconsistent(tmp_path):
    "12,000 pictures are stated as well, and twenty accuracies on 450 speak against them"
    v = accuracies(np.random.default_rng(3), 450, 20)
    extra = 'data,val,images,12000,,x\nmain,net0,runs,3,,x\nmain,net0,accuracy_pm,{},pp,x\n'
    for pm,verdict in (('0.23','inconsistent'), ('0.22','consistent')):
        t = check(tmp_path, table(v, extra=extra.format(pm)))
        assert t.verdict[t.quantity=='accuracy_pm'].tolist()==[verdict]

@pytest.mark.parametrize('name,verdict', [('3.21','consistent'), ('0.001','inconsistent')])
def test_arithmetic_of_a_network_that_is_half_described(name, verdict, tmp_path):
    "Fewer multiply-adds than parameters have no network"
    (tmp_path/'t.csv').write_text((reported/'reported.csv').read_text().replace('wide_resnet,flops,3.21', f'wide_resnet,flops,{name}'))
    c = read_claims(tmp_path/'t.csv')
    assert {v for i,v,_ in check_recounts(c) if c.quantity[i]=='flops'}=={verdict}

def test_sizes_that_grow_with_no_rule(tmp_path):
    (tmp_path/'t.csv').write_text((reported/'reported.csv').read_text().replace('width2,params,4.8', 'width2,params,9.9'))
    c = read_claims(tmp_path/'t.csv')
    told = {c.row[i]:v for i,v,_ in check_recounts(c) if c.table[i]=='wide_resnet_ablation'}
    assert told=={'width2':'inconsistent', 'width8':'inconsistent'}

def test_no_formula_is_of_our_own_making(led):
    assert not any(c.startswith('records.all.experiments') for c in study_formulas)

def test_formulas_name_claims():
    known = set(read_claims(reported/'reported.csv').claim)
    for k,f in study_formulas.items(): assert {k,*(p for p in formula_parts(f) if '*' not in p)}<=known

def test_summary_out_of_step(led, tmp_path):
    "An edited summary is told, not mismatched"
    for f in 'key-numbers.md','key-numbers.csv': shutil.copy(reported/f, tmp_path)
    text = (tmp_path/'key-numbers.md').read_text()
    rows = led[led.document=='reported.csv'].assign(claim=lambda t: t.table+'.'+t.row+'.'+t.quantity)
    (tmp_path/'key-numbers.md').write_text(text.replace('3.7×', '3.8×'))
    with pytest.raises(ValueError, match='3.8'): key_numbers(rows, tmp_path)
    (tmp_path/'key-numbers.md').write_text(text+'\n17 more')
    with pytest.raises(ValueError, match='numbers'): key_numbers(rows, tmp_path)

def test_summary_that_differs(led, tmp_path):
    rows = led[led.document=='reported.csv'].assign(claim=lambda t: t.table+'.'+t.row+'.'+t.quantity)
    for f in 'key-numbers.md','key-numbers.csv':
        changed = (reported/f).read_text().replace('21.3M','22.3M').replace('21,21.3,','21,22.3,')
        (tmp_path/f).write_text(changed)
    t = key_numbers(rows, tmp_path)
    assert t[t.value=='22.3'].verdict.tolist()==['inconsistent'] and '21.3' in t[t.value=='22.3'].reason.iloc[0]

# ---- rows appear where results and networks do

def test_every_planned_figure_is_measured():
    "No row is lost because a network got another name"
    assert len(our_figures())==len(pd.read_csv(reported/'measured.csv'))

def test_results_of_task_b_appear(monkeypatch, tmp_path):
    out = tmp_path/'results'
    shutil.copytree(reported, out/'reported'); shutil.copytree(results_dir()/'task-a', out/'task-b')
    runs = pd.read_csv(out/'task-b'/'runs.csv')
    plain = ~runs.dynamic&(runs.channels=='RGB')&(runs.epochs==5)
    runs.loc[plain,['network','epochs']] = ['wide_resnet width=4',10]
    runs.to_csv(out/'task-b'/'runs.csv', index=False)
    monkeypatch.setenv('MILS_RESULTS', str(out))
    m = our_figures().set_index('claim')
    assert set(m.index)=={'architectures.wide_resnet.accuracy','baseline.wide_resnet.top5_accuracy'}
    assert m.value.iloc[0]==pytest.approx(runs.test_top1[plain].mean(), abs=1e-5)
    assert m.value.iloc[1]==pytest.approx(runs.test_top5[plain].mean(), abs=1e-5)
    led = ledger()
    assert (led[(led.table=='architectures')&(led.row=='wide_resnet')&(led.quantity=='accuracy')].verdict=='re-measured').all()
    assert (led[led.table=='task_a_modes'].verdict!='re-measured').all()

def test_only_networks_that_are_described_are_counted_again():
    c = read_claims(reported/'reported.csv')
    rows = {c.row[i] for i,_,r in check_recounts(c) if c.table[i]=='architectures'}
    assert rows=={'wide_resnet'} and {'mini_swin','attention_cnn'}<=set(models.list_models())

# ---- intervals

decimals = st.integers(1, 3).flatmap(lambda d: st.integers(1, 10**(d+2)).map(lambda v: f'{v/10**d:.{d}f}'))

formulas = ['100*(a.x.v/b.x.v - 1)', 'a.x.v - b.x.v', 'a.x.v/b.x.v', 'mean(a.x.v, b.x.v, c.x.v)', '(a.x.v + b.x.v)*c.x.v',
    'most(*.*.v)', 'least(a.x.v, b.x.v, c.x.v)']
@given(st.tuples(decimals, decimals, decimals), st.sampled_from(formulas), st.tuples(*[st.floats(-1, 1)]*3))
@settings(max_examples=200, deadline=None)
def test_intervals_against_brute_force(texts, formula, where):
    formula = formula.replace('*.*.v', 'a.x.v, b.x.v, c.x.v')
    mids,halves = [float(t) for t in texts],[.5*10**-len(t.partition('.')[2]) for t in texts]
    known = {f'{k}.x.v':stated(t) for k,t in zip('abc', texts)}
    if any(interval_ends(x)[0]<=0 for x in known.values()): return
    lo,hi = interval_ends(evaluate(formula, known))
    functions = dict(mean=lambda *o: sum(o)/len(o), most=max, least=min)
    plain = lambda a,b,c: eval(re.sub(r'([abc])\.x\.v', r'\1', formula), dict(functions, a=a, b=b, c=c))
    slack = 1e-9*(1+abs(lo)+abs(hi))
    assert lo-slack<=plain(*(m+h*w for m,h,w in zip(mids, halves, where)))<=hi+slack        # any true values stay inside
    corners = [plain(*(m+h*s for m,h,s in zip(mids, halves, signs))) for signs in itertools.product((-1,1), repeat=3)]
    assert (min(corners),max(corners))==pytest.approx((lo,hi), rel=1e-9, abs=1e-9)       # and it is no wider than it must be

@given(decimals)
@settings(max_examples=100, deadline=None)
def test_stated_holds_what_is_written_so(text):
    lo,hi = interval_ends(stated(text))
    e = len(text.partition('.')[2])
    for x in np.linspace(lo, hi, 9)[1:-1]: assert f'{x:.{e}f}'==text

# ---- granularity

def rounded(k, n, e):
    "k of n in percent with e digits, a half rounded down and up"
    v = Decimal(100*k)/Decimal(n)
    return {str(v.quantize(Decimal(1).scaleb(-e), rounding=r)) for r in (ROUND_HALF_DOWN,ROUND_HALF_UP)}

@given(st.integers(1, 400), st.integers(0, 2), st.integers(0, 10**4))
@settings(max_examples=150, deadline=None)
def test_reachable_against_brute_force(n, e, v):
    text = str(Decimal(min(v, 100*10**e)).scaleb(-e))
    if Decimal(text)==0: text = f'{0:.{e}f}'
    everything = {t for k in range(n+1) for t in rounded(k, n, e)}
    assert bool(reachable(text, n))==(text in everything)
    assert all(reachable(t, n) for t in everything)

@pytest.mark.parametrize('n,e', [(450,2), (7,1), (16,1), (200,1), (900,2), (12000,2)])
def test_chance_against_brute_force(n, e):
    every = [f'{v/10**e:.{e}f}' for v in range(100*10**e+1)]
    assert chance_reachable(n, e)==pytest.approx(np.mean([bool(reachable(t, n)) for t in every]))

def test_chance_given_the_truth():
    "Three runs over 450: one in three lands on the grid of one"
    fits = [bool(reachable(f'{100*k/1350:.2f}', 450)) for k in range(1351)]
    assert chance_reachable(450, 2, 1350)==pytest.approx(np.mean(fits), abs=.002)

@given(st.lists(st.integers(0, 8), min_size=3, max_size=3), st.sampled_from(list(spreads)))
@settings(max_examples=60, deadline=None)
def test_spreads_of_real_runs_are_possible(k, reading):
    s = spreads[reading](np.array([k])/450*100)[0]
    assert reading in spread_readings(f'{s:.2f}', 450, 3)

# ---- anybody's table

def accuracies(rng, n, m=12): return [f'{100*k/n:.2f}' for k in rng.integers(n//4, n, m)]

def table(values, n=450, extra=''):
    return header+f'data,test,images,{n},,x\n'+''.join(f'main,net{i},accuracy,{v},%,x\n' for i,v in enumerate(values))+extra

def check(tmp_path, text):
    (tmp_path/'t.csv').write_text(text)
    return audit_table(tmp_path/'t.csv')

def kept(values, wrong=None):
    percent = [100*float(v)/float(values[0]) for v in values]
    if wrong is not None: percent[wrong] += 4
    return ''.join(f'main,net{i},relative,{p:.1f},%,x\n' for i,p in enumerate(percent))

@pytest.mark.parametrize('seed', range(3))
def test_consistent_table_passes(tmp_path, seed):
    v = accuracies(np.random.default_rng(seed), 450)
    mean = np.mean([float(o) for o in v])
    extra = f'main,mean,accuracy,{mean:.2f},%,x\nagain,net0,accuracy,{v[0]},%,x\nmain,net0,accuracy_pm,0.22,pp,x\nmain,net0,runs,3,,x\n'
    t = check(tmp_path, table(v, extra=kept(v)+extra))
    wrong = t[t.verdict=='inconsistent']
    assert not len(wrong), wrong[['claim','value','reason']].to_string()
    assert t[(t.row=='mean')].reason.iloc[0].startswith('the mean')
    assert (t[(t.quantity=='relative')&(t.row!='net0')].verdict=='confirmed').all()

@pytest.mark.parametrize('change,row,quantity', [
    (lambda v: table([*v[:4], '57.60', *v[5:]]), 'net4', 'accuracy'),                               # 57.60 is no multiple of 1/450, 1/900
    (lambda v: table(v, extra=kept(v, wrong=5)), 'net5', 'relative'),
    (lambda v: table(v, extra='other,net3,accuracy,12.00,%,x\n'), 'net3', 'accuracy'),
    (lambda v: table(v, extra='main,mean,accuracy,12.00,%,x\n'), 'mean', 'accuracy'),
    (lambda v: table(v, n=10000, extra='data,val,images,450,,x\n'), 'test', 'images'),
    (lambda v: table(v, extra='main,net0,runs,3,,x\nmain,net0,accuracy_pm,0.16,pp,x\n'), 'net0', 'accuracy_pm'),
    (lambda v: table([*v, '133.00']), 'net12', 'accuracy')])
def test_planted_inconsistency_is_found(tmp_path, change, row, quantity):
    v = accuracies(np.random.default_rng(7), 450)
    t = check(tmp_path, change(v))
    bad = t[t.verdict=='inconsistent']
    assert ((bad.row==row)&(bad.quantity==quantity)).any(), t[['claim','value','verdict','reason']].to_string()
    assert len(bad)<=2

def test_other_column_names(tmp_path):
    v = accuracies(np.random.default_rng(1), 450)
    a,b = check(tmp_path, table(v)),check(tmp_path, table(v).replace('row,quantity', 'item,measure'))
    pd.testing.assert_frame_equal(a, b)

def test_audit_command(tmp_path, capsys):
    v = accuracies(np.random.default_rng(2), 450)
    f = tmp_path/'t.csv'
    f.write_text(table(v)); assert main(['audit',str(f)])==0
    assert '13 numbers: 13 consistent' in capsys.readouterr().out
    f.write_text(table([*v, '57.60'])); assert main(['audit',str(f)])==1
    out,err = capsys.readouterr()
    assert out.splitlines()[0].startswith('inconsistent  main.net12.accuracy  57.60 %: ') and not err

@pytest.mark.parametrize('text,say', [
    (header.replace('value','valeu')+'a,b,c,1,,x\n', "did you mean 'valeu'?"),
    (header+'a,b,accuracy,high,%,x\n', "line 2: 'high' is no number"),
    (header+'a,b,c,1,,x\na,b,loss,nan,nats,x\n', "line 3: 'nan'"),
    (header+'a,b,accuracy,33.56%,%,x\n', 'for example 33.56'),
    (header, 'holds no row'), ('', 'No columns'),
    (header+'a,b,c,1,,x,y\n', 'rows longer than its header'), ('\x00\x01', 'column')])
def test_audit_of_bad_files_is_one_line(tmp_path, capsys, text, say):
    f = tmp_path/'t.csv'
    f.write_text(text)
    assert main(['audit',str(f)])==1
    out,err = capsys.readouterr()
    assert not out and err.startswith('mils: ') and say in err and len(err.splitlines())==1, err

@pytest.mark.parametrize('name', ['no.csv','.'])
def test_audit_of_no_file(tmp_path, capsys, name):
    assert main(['audit',str(tmp_path/name)])==1
    assert 'is no file' in capsys.readouterr().err

quantities = ['accuracy','delta','n','params_ratio','params','accuracy_pm','runs']
values = st.one_of(decimals, st.integers(0, 10**6).map(str), st.text('0.-e%<+', max_size=4))
units = st.sampled_from(['','%','pp'])
any_row = st.tuples(st.sampled_from('ab'), st.sampled_from(['x','y','mean']), st.sampled_from(quantities), values, units)
@given(st.lists(any_row, max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_table_has_the_verdicts_that_its_numbers_allow_or_an_error_at_its_first_mistake(tmp_path_factory, rows):
    f = tmp_path_factory.mktemp('t')/'t.csv'
    f.write_text(header+''.join(','.join(r)+',x\n' for r in rows))
    assert not list(table_faults(f, rows))

def test_a_ratio_to_nothing_is_no_error(tmp_path):
    t = check(tmp_path, header+'a,x,params,5,,x\na,y,params,0,,x\na,x,param_ratio,2.0,,x\n')
    assert t.verdict.eq('not checkable').all()
