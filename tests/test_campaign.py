"What the campaign of faults and made inputs found, a small test of each kind; and a few of its inputs, so that it stays in order"
import os,random,re,subprocess,sys
from pathlib import Path
import numpy as np,pandas as pd,pytest
from campaign import archives,channels,lists,pictures,tables
from campaign.cases import tried
from mils.cache import cached
from mils.content import checksums
from mils.config import Config
from mils.core import channel_set,write_atomic
from mils.decode import Unreadable
from mils.manifest import read_manifest
from mils.models import models,register_model
from mils.pixels import Pixels
from mils.planes import read_planes
from mils.relations import audit_table
from mils.runs import train_run
from mils.sweeps import sweep_runs
from mils.trained import load_run
from mils.tables import collect_runs,read_table,results_dir,write_results
from test_data import course,says,write

INPUTS = {f.__name__:f for f in (lists.junk, lists.mistakes, archives.damaged, archives.cut, archives.directory, archives.hostile,
    pictures.whole, pictures.broken, pictures.channels, pictures.broken_channels, channels.names, channels.wrong_names,
    channels.masks, channels.wrong_masks, tables.any_table, tables.consistent, tables.planted, tables.malformed)}

@pytest.mark.parametrize('kind', INPUTS)
def test_made_inputs_are_right_or_refused(kind):
    for seed in range(4): assert not tried(INPUTS, kind, seed).faults, f'python tests/campaign --case {kind}:{seed}'

@pytest.mark.parametrize('module,name,kind', [('campaign.lists','read_manifest','junk'), ('campaign.lists','read_manifest','mistakes'),
    ('campaign.archives','read_manifest','damaged'), ('campaign.tables','audit_table','any_table'),
    ('campaign.tables','audit_table','consistent')])
def test_an_error_for_everything_is_a_fault(monkeypatch, module, name, kind):
    def no(path): raise ValueError(f'{path}: train.txt line 1: classes.txt line 1: never')
    monkeypatch.setattr(f'{module}.{name}', no)
    assert any(tried(INPUTS, kind, seed).faults for seed in range(12))

def test_a_wrong_label_is_a_fault(monkeypatch):
    def turned(path):
        m = read_manifest(path)
        m.labels[0] = 1-m.labels[0]
        return m
    monkeypatch.setattr('campaign.lists.read_manifest', turned)
    assert sum(bool(tried(INPUTS, 'junk', seed).faults) for seed in range(20))>4

# --- channels

def npy(x):
    import io
    f = io.BytesIO()
    np.save(f, x)
    return f.getvalue()

@pytest.mark.parametrize('old,new', [(b'(3,', b'({3'), (b'False', b'Fal{e'), (b"'<u2'", b"'<\xff2'"), (b'(3, 8', b'(9999999999999, 8'[:6])])
def test_a_damaged_header_of_an_array_is_no_picture(old, new):
    b = npy(np.zeros((3,8,9), '<u2'))
    assert old in b
    with pytest.raises(Unreadable): read_planes(b.replace(old, new))

def test_channels_of_one_name_are_refused(tmp_path):
    import zipfile
    with zipfile.ZipFile(tmp_path/'a.npz', 'w') as z:
        for k in ('DNA.npy','DNA.npz.npy','x/DNA.npy'): z.writestr(k, npy(np.zeros((4,4), 'u1')))
    with says('3 files with 2 names', exc=Unreadable): read_planes((tmp_path/'a.npz').read_bytes())
    with says('0 files', exc=Unreadable): read_planes(b'PK\5\6'+bytes(18))

@pytest.mark.parametrize('name', [' ','DNA ',' DNA'])
def test_names_of_channels_have_no_space_around_them(name):
    with says('no space around'): channel_set(['R',name], ['R',name])

# --- what is remembered

def test_a_picture_that_takes_the_place_and_time_of_another_is_read(tmp_path):
    root = write(tmp_path/'in', course(12, fmt='BMP'))
    before = checksums(m := read_manifest(root), range(12), tmp_path/'c')
    f,t = root/'images/3.png',(root/'images/3.png').stat()
    (tmp_path/'new').write_bytes(f.read_bytes()[::-1])
    os.utime(tmp_path/'new', ns=(t.st_atime_ns,t.st_mtime_ns))
    (tmp_path/'new').rename(f)
    assert f.stat().st_mtime_ns==t.st_mtime_ns and f.stat().st_size==t.st_size
    assert (checksums(read_manifest(root), range(12), tmp_path/'c')!=before).nonzero()[0].tolist()==[3] and len(m)==12

def flipped(b, rng):
    k = rng.randrange(len(b))
    return b[:k]+bytes([b[k]^1<<rng.randrange(8)])+b[k+1:]

def test_a_turned_bit_in_what_is_remembered_is_never_believed(tmp_path):
    for g in 'ab':
        for i in range(12):
            x = np.random.default_rng(i).integers(0, 900, (3,8,8)).astype('u2')+99*(g=='b')
            write(tmp_path/'in', {f'{g}/{i}.npy':npy(x)})
    def load(): return cached(read_manifest(tmp_path/'in'), 8, cache_dir=tmp_path/'c', channels='XYZ')
    want,rng = load(),random.Random(0)
    for f in [*(tmp_path/'c').glob('files/*.json'), *(tmp_path/'c').glob('ranges/*.json')]:
        b = f.read_bytes()
        for _ in range(40):
            f.write_bytes(flipped(b, rng))
            got = load()
            assert (got.key,got.ranges)==(want.key,want.ranges) and (got.images==want.images).all()
    assert len(list((tmp_path/'c').glob('pixels/*')))==1

def test_a_turned_bit_in_the_log_of_a_build_is_never_believed(tmp_path):
    p,rng = Pixels(tmp_path, 64, 8),random.Random(0)
    done = {0:('ab',[[5,'truncated']]), 1:('cd',[[40,[2]]])}
    p.write_log(done)
    b = p.log.read_bytes()
    for _ in range(200):
        p.log.write_bytes(flipped(b, rng))
        assert p.read_log().items()<=done.items() or all(p.read_log()[k]==done[k] for k in p.read_log())

# --- tables

def test_a_run_stands_in_the_tables_with_all_its_rows_or_not_at_all(tmp_path, monkeypatch):
    t = {k:pd.DataFrame(dict(run=['x'], split=['test'])) for k in ('runs','epochs','channels','gradients','predictions')}
    for n in range(5):
        left = [n]
        def dies(path, data):
            left[0] -= 1
            if left[0]<0: raise KeyboardInterrupt
            write_atomic(path, data)
        monkeypatch.setattr('mils.tables.write_atomic', dies)
        with pytest.raises(KeyboardInterrupt): write_results(t, tmp_path/str(n))
        assert not (tmp_path/str(n)/'runs.csv').exists()

def test_a_table_that_was_cut_is_named(tmp_path):
    text = 'run,top1\na,0.25\nb,0.75\n'
    for k in range(1, len(text)):
        (tmp_path/'runs.csv').write_text(text[:k])
        if text[k-1]=='\n': assert read_table(tmp_path/'runs.csv').top1.tolist()==[.25,.75][:text[:k].count('\n')-1]
        else:
            with says('runs.csv', 'damaged'): read_table(tmp_path/'runs.csv')

@pytest.mark.parametrize('b,say', [(b'', 'No columns'), (b'\xff\xfe\0', 'CSV'),
                                   (b'table,row,quantity,value,unit\na,b,c,1,\na,b,c,1,,x,y\n', 'line 3'),
                                   (b'table,row,quantity,value,unit\n\na,b,c,1,%\n\na,b,c,one,%\n', 'line 5')])
def test_an_error_of_an_audit_names_file_and_line(tmp_path, b, say):
    (tmp_path/'t.csv').write_bytes(b)
    with says('t.csv', say): audit_table(tmp_path/'t.csv')

def test_epochs_that_are_missing_from_a_record_are_told(tiny, tmp_path):
    run = train_run(Config(epochs=2, overrides=dict(bs=60)), tiny, tmp_path)
    b = (run/'metrics.jsonl').read_bytes()
    for k in (0, 30, len(b)//3, b.index(b'\n'), b.index(b'\n')+1, len(b)-3):
        (run/'metrics.jsonl').write_bytes(b[:k])
        with says('metrics.jsonl'): collect_runs(tmp_path)
    (run/'metrics.jsonl').write_bytes(b)
    assert len(collect_runs(tmp_path)['epochs'])==2
    for name in ('config.json','DONE'):
        b = (run/name).read_bytes()
        (run/name).write_bytes(b[:-9])
        with says(name, 'damaged'): load_run(run)
        (run/name).write_bytes(b)

def test_every_fault_that_was_found_has_its_test():
    names = {k for f in Path(__file__).parent.glob('test_*.py') for k in re.findall(r'^def (test_\w+)', f.read_text(), re.M)}
    t = pd.read_csv(results_dir()/'campaign'/'mended.csv')
    assert len(t) and set(t.test)<=names

def test_half_a_file_of_a_killed_process_does_not_stay_for_ever(tmp_path):
    script = "import os,sys,mils.core; mils.core.os.replace = lambda *a: os.kill(os.getpid(), 9); mils.core.write_atomic(sys.argv[1], 'x')"
    assert subprocess.run([sys.executable, '-c', script, str(tmp_path/'a.csv')]).returncode==-9
    left, = tmp_path.iterdir()
    write_atomic(tmp_path/'a.csv', 'y')
    assert left.exists()                                           # somebody may be writing it now
    os.utime(left, (1,1))
    write_atomic(tmp_path/'a.csv', 'z')
    assert [o.name for o in tmp_path.iterdir()]==['a.csv']

def deadly(n_classes=10, c_in=3, size=32): os.kill(os.getpid(), 9)

def test_a_killed_process_of_a_sweep_is_told_with_what_to_do(tiny, tmp_path):
    register_model(deadly)
    cfgs = [Config(model='deadly', epochs=1), Config(epochs=1, overrides=dict(bs=60))]
    try:
        with says('was killed', 'the same command continues', exc=OSError): sweep_runs(cfgs, tiny, tmp_path, jobs=2)
    finally: models.pop('deadly')
    assert sweep_runs(cfgs[1:], tiny, tmp_path)=={}
