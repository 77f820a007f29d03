"Sampling of channel sets, views, distillation and Muon"
import pytest,torch
from fastai.callback.core import Callback
from tensors import assert_same
from mils.core import channel_sets,set_name
from mils.chroma import chroma
from mils.models import small_cnn
from mils.optim import orthogonal
from mils.sampling import ChannelSampling
from mils.config import Config
from mils.learner import get_learner
from mils.weights import load_state,save_state

@pytest.fixture(scope='module')
def ds(): return chroma(n_train=120, n_val=40, n_test=40)

class Seen(Callback):
    "Keep what the network is given"
    order = 8
    def __init__(self): self.masks,self.labels,self.losses = [],[],[]
    def before_batch(self):
        if self.training: self.masks.append(self.xb[1] if len(self.xb)>1 else None); self.labels.append(self.y.clone())
    def after_loss(self):
        if self.training: self.losses.append(self.loss_grad.item())

def seen(ds, epochs=1, **kw):
    learn = get_learner(Config(epochs=epochs, overrides=dict(bs=40), **kw), ds)
    learn.add_cb(cb := Seen())
    learn.fit(epochs)
    return cb

ARMS = [dict(), dict(channels='GB'), dict(dynamic=True, sampling='sample'), dict(dynamic=True, sampling='batch', generator='rescale'),
        dict(dynamic=True, sampling='dropout', attention=True), dict(dynamic=True, sampling='sample', held_out=('RB','G'))]
def test_every_arm_sees_the_same_pictures_in_the_same_order(ds):
    first,*others = [torch.cat(seen(ds, 2, **a).labels) for a in ARMS]
    assert len(first)==240
    for o in others: assert_same(first, o)

def test_views_repeat_the_batch_with_other_sets(ds):
    one,three = seen(ds, dynamic=True, sampling='sample'),seen(ds, dynamic=True, sampling='sample', views=3)
    for y,yy,m in zip(one.labels, three.labels, three.masks):
        assert_same(y.repeat(3), yy)
        assert len(m)==120
        assert not torch.equal(m[:40], m[40:80])

def test_distillation_teaches_from_the_full_view(ds):
    a,b = (seen(ds, dynamic=True, sampling='sample', views=2, distill=d) for d in (0.,.5))
    assert all(m[:40].all() for m in b.masks) and not all(m[:40].all() for m in a.masks)
    learn = get_learner(Config(dynamic=True, sampling='sample', views=2, distill=1., overrides=dict(bs=40)), ds)
    sampling = next(c for c in learn.cbs if isinstance(c, ChannelSampling))
    pred = torch.randn(8, 5, requires_grad=True)
    learn.model.train(); learn.training = True
    learn.xb,learn.yb,learn.pred,learn.loss_grad = (pred,),(torch.zeros(8).long(),),pred,pred.sum()*0
    sampling.after_loss()
    learn.loss_grad.backward()
    assert pred.grad[:4].abs().sum()==0 and pred.grad[4:].abs().sum()>0          # the teacher does not learn from its pupil

@pytest.mark.parametrize('sampling', ['sample','batch','dropout'])
def test_held_out_sets_are_never_drawn(ds, sampling):
    held = ('RB','G')
    masks = torch.cat(seen(ds, 4, dynamic=True, sampling=sampling, held_out=held).masks)
    drawn = {set_name([c for c,o in zip('RGB',r) if o]) for r in masks.tolist()}
    assert masks.any(1).all() and not drawn&set(held)
    if sampling=='sample': assert drawn=={set_name(s) for s in channel_sets()}-set(held)
    if sampling=='batch': assert all((m==m[0]).all() for m in masks.split(40))

SAMPLED = dict(dynamic=True, sampling='sample')

@pytest.mark.parametrize('kw,words', [
    (dict(generator='covarance'), 'covariance'),
    (dict(views=2), 'sampling'),
    (dict(distill=.5, **SAMPLED), 'views'),
    (dict(held_out=('X',), **SAMPLED), 'possible: R, G, B'),
    (dict(held_out=tuple(map(set_name, channel_sets())), **SAMPLED), 'every')])
def test_impossible_settings(kw, words):
    with pytest.raises(ValueError, match=words): Config(**kw)

def test_orthogonal():
    torch.manual_seed(0)
    for shape in ((8,27),(27,8),(16,16)):
        s = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert .5<s.min() and s.max()<1.4

def trained_and_resumed(cfg, ds, folder, teacher=None):
    "Two learners: one trained in a go, one that goes on after the first epoch"
    def learner(**kw): return get_learner(cfg, ds, teacher=teacher, **kw)
    whole = learner(write=lambda l,rows: save_state(l, folder/f'{len(rows)}', dict(rows=rows)))
    whole.fit(cfg.epochs)
    again = learner()
    again.record.rows = load_state(again, folder/'1')['rows']
    again.fit(cfg.epochs, start_epoch=1)
    return whole,again

def test_muon_learns_and_resumes_to_the_bit(ds, tmp_path):
    whole,again = trained_and_resumed(Config(epochs=3, overrides=dict(bs=40, opt='muon', lr=5e-3)), ds, tmp_path)
    assert whole.record.rows[-1]['train_loss']<whole.record.rows[0]['train_loss']
    for a,b in zip(whole.model.parameters(), again.model.parameters()): assert_same(a, b)

SMALL = dict(model='strict4', options=dict(width=.25, parts='fade'))
LEVERS = [(dict(average=.9), {}), (dict(average=.9, opt='muon'), {}), (dict(mixup=.4), {}), (dict(cutmix=1.), {}), (dict(small=.5), {}),
          ({}, SMALL), (dict(teacher='small_cnn'), SMALL)]
@pytest.mark.parametrize('lever,kw', LEVERS)
def test_levers_resume_to_the_bit(ds, tmp_path, lever, kw):
    cfg = Config(epochs=3, overrides=dict(bs=40, **lever), **kw)
    teacher = small_cnn(ds.n_classes, size=32) if cfg.teacher else None
    whole,again = trained_and_resumed(cfg, ds, tmp_path, teacher)
    for a,b in zip(whole.model.state_dict().values(), again.model.state_dict().values()): assert_same(a, b)

def test_a_teacher_is_not_forgotten(ds):
    with pytest.raises(ValueError, match='small_cnn is to teach'): get_learner(Config(overrides=dict(teacher='small_cnn')), ds)
