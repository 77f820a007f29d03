"One training in several processes: the steps of one process, the same bits after any interruption, and an end in any case"
import os,signal,sys,threading,time
from multiprocessing import active_children,forkserver,get_context
from pathlib import Path
import pandas as pd,pytest,torch
from torch import nn
from tensors import assert_same
from fastai.callback.core import Callback
from mils.chroma import chroma
from mils.cli import main
from mils.config import Config
from mils.core import write_atomic
from mils.ddp import in_group,sharing
from mils.identity import run_name
from mils.learner import get_learner
from mils.models import create_model,models,register_model,small_cnn
from mils.processes import run_together
from mils.runs import train_run
from mils.weights import load_state,save_state

cpu,HERE = torch.device('cpu'),'forkserver'         # processes come from one that has loaded PyTorch
get_context(HERE).set_forkserver_preload(['mils.cli','mils.runs','mils.chroma','pytest'])
one_worker = pytest.mark.xdist_group('ddp')

def small_set(): return chroma(n_train=70, n_val=41, n_test=20)
def config(bs=32, epochs=3, precision='float32', **kw):
    return Config(epochs=epochs, precision=precision, overrides=dict(bs=bs, **kw.pop('overrides', {})), **kw)

DYNAMIC = dict(dynamic=True, sampling='sample')
CASES = {
    'small_cnn': config(), 'shares differ': config(bs=31), 'dropout': config(model='wide_resnet', options=dict(width=1), bs=15, epochs=1),
    'channel sets': config(bs=31, attention=True, held_out=('RB','G'), **DYNAMIC), 'views': config(bs=33, views=2, distill=.5, **DYNAMIC),
    'mixup': config(overrides=dict(mixup=.4, average=.9)), 'cutmix': config(bs=31, overrides=dict(cutmix=1., small=.5)),
    'mixed views': config(bs=33, views=2, overrides=dict(mixup=.4), **DYNAMIC), 'teacher': config(overrides=dict(teacher='small_cnn')),
    'muon': config(overrides=dict(opt='muon')), 'frozen': config(bs=31, **DYNAMIC), 'unused': config()}

class Double(Callback):
    "Compute in float64, so that nothing but rounding can hide"
    order = 1
    def before_fit(self):
        for net in (self.model, *(cb.teacher for cb in self.learn.cbs if hasattr(cb, 'teacher'))): net.double()
    def before_batch(self):
        self.learn.xb = tuple(o.double() if o.is_floating_point() else o for o in self.xb)
        for cb in self.learn.cbs:
            if hasattr(cb, 'lam'): cb.lam = cb.lam.double()

def learner(name, cfg, ds):
    torch.manual_seed(1)
    teacher = create_model('small_cnn', 20, size=32) if cfg.teacher else None
    learn = get_learner(cfg, ds, cpu, teacher=teacher)
    if name=='frozen': learn.model.stem.requires_grad_(False)
    if name=='unused': learn.model.unused = nn.Parameter(torch.ones(3))
    return learn

def learned(learn, within=None):
    "Losses and hits of each epoch, and all weights"
    n = learn.cfg.epochs
    if within:
        with within(learn): learn.fit(n)
    else: learn.fit(n)
    rows = [[r[k] for k in ('train_loss','val_loss','val_top1','val_top5')] for r in learn.record.rows]
    return torch.tensor(rows, dtype=torch.float64),{k:v for k,v in learn.model.state_dict().items() if isinstance(v, torch.Tensor)}

def trained_in_double(name, within=None):
    learn = learner(name, CASES[name], small_set())
    learn.add_cb(Double())
    return learned(learn, within)

def each_case(rank, ranks, folder):
    "What each process of a group learns"
    with in_group(rank, ranks, f'{folder}/store', cpu):
        found = {name:trained_in_double(name, sharing) for name in CASES}
        found['float32'] = learned(learner('', CASES['small_cnn'], small_set()), sharing)
        found['bfloat16'] = learned(learner('', config(precision='bfloat16'), small_set()), sharing)
    torch.save(found, f'{folder}/{rank}.pt')

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')
    run_together(each_case, 2, (2,folder), method=HERE)
    return [torch.load(folder/f'{rank}.pt') for rank in range(2)]

@one_worker
@pytest.mark.parametrize('name', CASES)
def test_two_processes_take_the_steps_of_one(name, two):
    rows,weights = trained_in_double(name)
    for found,_ in (o[name] for o in two): torch.testing.assert_close(found, rows, rtol=1e-8, atol=0)
    for k,v in weights.items(): torch.testing.assert_close(two[0][name][1][k], v, rtol=1e-6, atol=1e-7)

@one_worker
def test_losses_in_single_precision(two):
    "Rounding grows from step to step: AdamW takes a whole step where a gradient is nothing but rounding"
    for name,cfg,most in (('float32',CASES['small_cnn'],1e-3), ('bfloat16',config(precision='bfloat16'),.02)):
        rows,_ = learned(learner('', cfg, small_set()))
        assert (two[0][name][0]/rows-1)[:,:2].abs().max()<most

@one_worker
def test_all_processes_have_the_same_network(two):
    for name,(rows,weights) in two[0].items():
        assert torch.equal(rows, two[1][name][0]), name
        for k,v in weights.items(): assert_same(v, two[1][name][1][k])

def three_and_on(rank, ranks, folder):
    "Four epochs; and two, a stop, two"
    cfg,ds = config(epochs=4, **DYNAMIC),small_set()
    with in_group(rank, ranks, f'{folder}/store', cpu):
        whole = learned(learner('', cfg, ds), sharing)
        first,second = (learner('', cfg, ds) for _ in range(2))
        def stop(learn, rows):
            if len(rows)==2 and rank==0: save_state(learn, f'{folder}/state', dict(rows=rows))
        first.record.write = stop
        learned(first, sharing)
        torch.distributed.barrier()
        second.record.rows = load_state(second, f'{folder}/state')['rows']
        with sharing(second): second.fit(4, start_epoch=2)
    if rank: return
    rows = torch.tensor([[r['train_loss'],r['val_loss']] for r in second.record.rows], dtype=torch.float64)
    assert torch.equal(rows, whole[0][:,:2])
    for k,v in whole[1].items(): assert_same(second.model.state_dict()[k], v)

@one_worker
def test_three_processes_go_on_to_the_bit(tmp_path): run_together(three_and_on, 3, (3,tmp_path), method=HERE)

# Runs
LONG = config(epochs=8, **DYNAMIC)
SAME = ['epoch','train_loss','val_loss','val_top1','val_top5','lr']

def supervise(root, say):
    "Train a run in two processes, tell their ids, and what went wrong"
    def tell():
        while len(ps := active_children())<2: time.sleep(.01)
        write_atomic(f'{say}.ids', ' '.join(str(p.pid) for p in ps))
    if sys.version_info<(3,14): forkserver._forkserver.ensure_running = lambda: None      # ours, where PyTorch is loaded, makes these too
    threading.Thread(target=tell, daemon=True).start()
    try: train_run(LONG, small_set(), root, 'cpu', processes=2)
    except RuntimeError as e: write_atomic(f'{say}.error', str(e))

def gone(pids):
    def alive(pid):
        try: return Path(f'/proc/{pid}/stat').read_text().split()[2] not in 'ZX'
        except FileNotFoundError: return False
    return not any(map(alive, pids))

def interrupted(root, say, kill):
    "Start, wait for another epoch, kill; seconds until all have ended"
    metrics = root/run_name(LONG, small_set())/'metrics.jsonl'
    def rows(): return metrics.read_text().count('\n') if metrics.exists() else 0
    before,p = rows(),get_context(HERE).Process(target=supervise, args=(root,say))
    p.start()
    try:
        while rows()==before and p.is_alive(): time.sleep(.005)
        ranks = [int(o) for o in Path(f'{say}.ids').read_text().split()]
        start = time.time()
        kill(p.pid, ranks)
        p.join(60)
        while not gone(ranks) and time.time()-start<60: time.sleep(.05)
        assert p.exitcode is not None and gone(ranks)
        return time.time()-start
    finally: p.kill()

@one_worker
def test_killed_and_continued_is_the_same_to_the_bit(tmp_path):
    "All at once, the one that started the others, and one of two"
    def everyone(p, ranks):
        for pid in (p, *ranks): os.kill(pid, signal.SIGKILL)
    def starter(p, ranks): os.kill(p, signal.SIGKILL)
    def second(p, ranks): os.kill(max(ranks), signal.SIGKILL)
    calm = train_run(LONG, small_set(), tmp_path/'calm', 'cpu', processes=2)
    killed = tmp_path/'killed'
    for kill in (everyone,starter,second):
        assert interrupted(killed, tmp_path/kill.__name__, kill)<20
    assert 'of 2 was ended by SIGKILL, so the others were ended too' in (tmp_path/'second.error').read_text()
    assert not list(killed.glob('*/DONE')) and list(killed.glob('*/state.safetensors'))
    run = train_run(LONG, small_set(), killed, 'cpu', processes=2)
    a,b = (pd.read_json(o/'metrics.jsonl', lines=True) for o in (calm,run))
    pd.testing.assert_frame_equal(a[SAME], b[SAME], check_exact=True)
    assert list(a.gradients)==list(b.gradients)
    assert (calm/'model.safetensors').read_bytes()==(run/'model.safetensors').read_bytes()
    pd.testing.assert_frame_equal(*(pd.read_parquet(o/'predictions.parquet') for o in (calm,run)), check_exact=True)

@one_worker
def test_a_command_trains_in_two_processes(tmp_path, monkeypatch, capsys):
    "It makes the folder that one process makes, of the same name, with the same losses"
    monkeypatch.setattr('mils.sets.load_data', lambda *args,**kw: small_set())
    words = ['train','small_cnn','--epochs','2','--set','bs=31:teacher=small_cnn','--precision','float32']
    for n in '12': assert main([*words,'--runs',str(tmp_path/n),'--processes',n])==0
    one,two = ({p.parent.name:pd.read_json(p, lines=True) for p in (tmp_path/n).glob('*/metrics.jsonl')} for n in '12')
    assert one.keys()==two.keys() and len(one)==2
    for name,rows in one.items():
        assert [g[0] for g in rows.gradients[0]]==[g[0] for g in two[name].gradients[0]]
        assert (two[name][SAME]/rows[SAME]-1)[['train_loss','val_loss','lr']].abs().max().max()<1e-3
        assert {p.name for p in (tmp_path/'1'/name).iterdir()}=={p.name for p in (tmp_path/'2'/name).iterdir()}
    assert capsys.readouterr().err==''

@one_worker
def test_what_cannot_be_shared_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('mils.sets.load_data', lambda *args,**kw: small_set())
    def told(*words):
        assert main(['train','small_cnn','--runs',str(tmp_path),*words])==1
        return capsys.readouterr().err
    assert told('--processes','0')=='mils: processes=0; expected 1 or more\n'
    assert told('--processes','2','--set','bs=1')=='mils: a batch of 1 for 2 processes; expected a picture or more for each\n'
    monkeypatch.setattr('mils.runs.default_device', lambda: torch.device('cuda'))
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    assert told('--processes','2')=='mils: processes=2; expected 1 or fewer, a GPU for each\n'

def test_a_network_of_this_session_cannot_be_shared(tmp_path):
    @register_model
    def of_this_session(n_classes, c_in=3, size=32): return small_cnn(n_classes, c_in, size)
    try:
        with pytest.raises(ValueError, match='other processes cannot see it.*or train in one process'):
            train_run(config(model='of_this_session'), small_set(), tmp_path, 'cpu', processes=2)
    finally: models.pop('of_this_session')
