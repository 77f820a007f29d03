"What every fastai user does with a `Learner` works with ours, and our layer works in every fastai program"
import pickle,random
import matplotlib; matplotlib.use('Agg')
from mils.chroma import chroma
from mils.derived import derive
from mils.channels import ChannelAdaptive,convert
from mils.batches import Batches
from mils.sampling import ChannelSampling,OneSet
from mils.config import Config
from mils.learner import get_learner
import matplotlib.pyplot as plt,numpy as np,pytest,torch
from PIL import Image
from fastai.vision.all import (accuracy,accuracy_multi,ActivationStats,aug_transforms,ClassificationInterpretation,CSVLogger,CutMix,
    DataBlock,DataLoader,EarlyStoppingCallback,error_rate,get_image_files,GradientAccumulation,GradientClip,ImageBlock,ImageDataLoaders,
    IntToFloatTensor,Learner,load_learner,MixUp,MultiCategoryBlock,ProgressCallback,RandomErasing,Recorder,ReduceLROnPlateau,Resize,
    resnet18,SaveModelCallback,ShowGraphCallback,TensorCategory,TensorImage,top_k_accuracy,vision_learner)

KINDS = dict(plain=dict(), dynamic=dict(dynamic=True, sampling='sample'), GB=dict(channels='GB'))
METRICS = [accuracy,top_k_accuracy]

@pytest.fixture(scope='module')
def ds(): return chroma(n_train=120, n_val=50, n_test=40)

def new_learner(ds, path, kind='plain', **kw):
    cfg = Config(**KINDS[kind], precision='float32', epochs=2, overrides=dict(bs=40))
    return get_learner(cfg, ds, device='cpu', path=path, metrics=METRICS, **kw)

@pytest.fixture(scope='module', params=KINDS)
def kind(request): return request.param

@pytest.fixture(scope='module')
def trained(ds, kind, tmp_path_factory):
    learn = new_learner(ds, tmp_path_factory.mktemp(kind), kind)
    learn.fit(2)
    return learn

@pytest.fixture
def learn(ds, kind, tmp_path): return new_learner(ds, tmp_path, kind)

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

def weights(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)
def titles(): return [ax.get_title() for ax in plt.gcf().axes if ax.get_title()]
def files(ds, path, n=3):
    for i in range(n): Image.fromarray(ds.images[i]).resize((50,40)).save(path/f'{i}.png')
    return sorted(path.glob('*.png'))

# --- the data

def test_loaders(trained, ds):
    dls = trained.dls
    assert isinstance(dls.train, DataLoader) and isinstance(trained, Learner)
    assert list(dls.vocab)==list(ds.classes) and dls.c==ds.n_classes and dls.n_inp==1
    x,y = dls.one_batch()
    assert type(x) is TensorImage and type(y) is TensorCategory and len(x)==len(y)==40 and dls.bs==40
    x,y = dls.valid_ds[3]
    assert type(x) is TensorImage and type(y) is TensorCategory and len(dls.train_ds)==120
    assert dls.train.new(bs=7).one_batch()[0].shape[0]==7
    assert len(dls.new_empty().train)==0
    assert len(dls.train.new(shuffle=False, drop_last=False))==3

def test_items(trained, ds):
    train,valid = trained.dls.train_ds,trained.dls.valid_ds
    assert [int(y) for _,y in train[:3]]==train.labels[:3].tolist() and len(valid[[0,2]])==2 and len(valid[:])==50
    own = valid.of(train.items.iloc[[70,3]])                            # of another split, as fastai's interpretation asks
    for (x,y),i in zip(own, (70,3)): assert torch.equal(x, train[i][0]) and y==train[i][1]
    assert torch.equal(own.of(own.items.iloc[[1]])[0][0], train[3][0])

def test_what_is_no_picture_is_told(trained, ds, tmp_path):
    for item in (7, None, [], np.zeros(2)):
        with pytest.raises(ValueError, match='is no picture'): trained.predict(item)
    with pytest.raises(FileNotFoundError): trained.predict(tmp_path/'missing.png')
    with pytest.raises(ValueError, match='is one picture'): trained.dls.test_dl(str(files(ds, tmp_path)[0]))

def test_pickles(trained):
    a,b = (pickle.loads(pickle.dumps(o)) for o in (trained.dls, trained))
    assert torch.equal(a.valid.one_batch()[0], trained.dls.valid.one_batch()[0]) and same(weights(b), weights(trained))

def test_a_rate_that_a_callback_sets_is_taken(learn):
    learn.fit(2, 1e-3, cbs=ReduceLROnPlateau(monitor='valid_loss', patience=1, min_delta=10))
    assert np.allclose([h['lr'] for h in learn.opt.hypers], 1e-4)

def test_show_batch(trained, kind):
    trained.dls.show_batch(max_n=4)
    assert len(titles())==4
    if kind=='GB': assert all(t.startswith('GB\n') for t in titles())
    if kind=='dynamic': assert {t.split('\n')[0] for t in titles()}<={'RGB','RG','RB','GB','R','G','B'} and all('\n' in t for t in titles())
    if kind!='plain':
        for ax in plt.gcf().axes:
            shown,there = np.asarray(ax.images[0].get_array()),ax.get_title().split('\n')[0]
            for i,c in enumerate('RGB'): assert (shown[...,i].max()>0)==(c in there)
    trained.dls.valid.show_batch(max_n=2, unique=True)

def test_what_is_shown_is_what_is_there(trained, ds):
    b = trained.dls.valid.one_batch()
    image,label = trained.dls.valid.decode_batch(b, 1)[0]
    i = ds.splits['val'][0]
    shown = image.colours().permute(1,2,0)*255
    here = [k for k,c in enumerate('RGB') if c in image.channels]
    np.testing.assert_allclose(shown[...,here], ds.images[i][...,here], atol=.01)
    assert label==ds.classes[ds.labels[i]]

def test_derived_channels_are_shown(ds, tmp_path):
    d8 = derive(ds)
    Batches(d8, 'train', channels='HV', bs=8).show_batch(max_n=2)
    assert titles()[0].startswith('HV\n')

def test_transforms_of_batches(ds, tmp_path):
    learn = new_learner(ds, tmp_path)
    plain,_ = next(iter(learn.dls.train))
    learn.dls.add_tfms([IntToFloatTensor(), *aug_transforms(), RandomErasing(p=1.)], 'after_batch', 'train')
    other,_ = next(iter(learn.dls.train))
    assert other.shape==plain.shape and not torch.equal(other, plain) and other.std()<3
    learn.fit(1)

# --- training

def test_fit_follows_the_recipe_and_a_rate_that_is_asked_for(ds, kind, tmp_path):
    learn = new_learner(ds, tmp_path, kind)
    learn.fit(2)
    lrs = np.array(learn.recorder.lrs)
    assert len(lrs)==6 and lrs.max()>2*lrs[0] and len(learn.recorder.values)==2 and len(learn.recorder.values[0])==4
    assert [r['epoch'] for r in learn.record.rows]==[1,2]
    assert np.isclose(learn.recorder.values[-1][1], learn.record.rows[-1]['val_loss'], rtol=1e-4)
    learn.recorder.plot_loss(skip_start=0); learn.recorder.plot_sched()
    learn.fit(1, 1e-4)
    assert np.allclose(learn.recorder.lrs, 1e-4) and [r['epoch'] for r in learn.record.rows]==[1,2,3]

def test_fit_one_cycle_and_flat_cos(learn):
    learn.fit_one_cycle(1, 1e-2)
    assert np.isclose(max(learn.recorder.lrs), 1e-2, rtol=.3)
    learn.fit_flat_cos(1, 1e-3, wd=.1)
    assert {h['wd'] for h in learn.opt.hypers}=={.1,0.}

def test_fine_tune_trains_the_last_layer_first(learn):
    before = weights(learn)
    learn.freeze()
    learn.fit_one_cycle(1)
    changed = {k for k,p in learn.model.named_parameters() if p.ndim>1 and not torch.equal(p, before[k])}
    assert changed=={[k for k,p in learn.model.named_parameters() if p.ndim>1][-1]}        # fastai goes on training norms
    learn.fine_tune(1)
    assert not any(torch.equal(p, before[k]) for k,p in learn.model.named_parameters() if p.ndim>1 and 'attention' not in k)

@pytest.mark.parametrize('opt', ['adamw','sgd','muon'])
def test_every_optimiser_cycles(ds, tmp_path, opt):
    cfg = Config(precision='float32', overrides=dict(bs=40, opt=opt, lr=1e-3))
    learn = get_learner(cfg, ds, device='cpu', path=tmp_path)
    learn.fit_one_cycle(1)
    assert len(learn.recorder.lrs)==3

def test_lr_find_leaves_no_trace(ds, kind, tmp_path):
    fits = []
    for look in (False,True):
        learn = new_learner(ds, tmp_path, kind)
        if look:
            before,state,python = weights(learn),torch.get_rng_state(),random.getstate()
            found = learn.lr_find(num_it=8, end_lr=.1)
            assert 1e-7<found.valley<1 and same(before, weights(learn))
            assert torch.equal(state, torch.get_rng_state()) and python==random.getstate() and learn.record.rows==[]
        learn.fit(1)
        fits.append(weights(learn))
    assert same(*fits)

def test_validate_and_metrics(trained):
    loss,top1,top5 = trained.validate()
    last = trained.record.rows[-1]
    assert np.allclose([loss,top1,top5], [last[k] for k in ('val_loss','val_top1','val_top5')], atol=1e-5)
    assert len(trained.record.rows)==2
    trained.metrics = [error_rate]
    assert np.isclose(trained.validate()[1], 1-top1, atol=1e-5)
    trained.metrics = METRICS

def test_a_validation_in_between_changes_nothing(ds, kind, tmp_path):
    a,b = (new_learner(ds, tmp_path, kind) for _ in range(2))
    a.fit(2)
    with b.no_logging(): b.validate(); b.get_preds(); b.show_results()
    b.fit(2)
    assert same(weights(a), weights(b))
    assert [r['val_loss'] for r in a.record.rows]==[r['val_loss'] for r in b.record.rows]

# --- predictions

def test_get_preds(trained, ds, tmp_path):
    p,y = trained.get_preds()
    assert p.shape==(50,ds.n_classes) and torch.allclose(p.sum(1), torch.ones(50), atol=1e-5)
    assert torch.equal(y, torch.as_tensor(ds.labels[ds.splits['val']]))
    paths = files(ds, tmp_path)
    forward,back = (trained.get_preds(dl=trained.dls.test_dl(o))[0] for o in (paths,paths[::-1]))
    assert torch.allclose(forward, back.flip(0), atol=1e-6)
    x,p,y,decoded,losses = trained.get_preds(with_input=True, with_decoded=True, with_loss=True)
    assert torch.equal(decoded, p.argmax(1)) and len(losses)==50
    assert trained.get_preds(ds_idx=0)[0].shape[0]==120

def test_predict(trained, ds, tmp_path):
    image = ds.images[0]
    big = files(ds, tmp_path)[0]
    first = trained.predict(image)
    for item in (Image.fromarray(image), torch.from_numpy(image).permute(2,0,1)):
        again = trained.predict(item)
        assert again[0]==first[0] and torch.equal(again[2], first[2])
    label,i,p = trained.predict(big)
    assert torch.equal(p, trained.predict(str(big))[2]) and torch.equal(p, trained.predict(Image.open(big))[2]) and label==ds.classes[i]
    assert len(trained.predict(image, with_input=True))==4

def test_show_results_and_summary(trained):
    trained.show_results(max_n=4)
    assert len(titles())==4
    text = str(trained.summary())
    assert 'Total params' in text and 'CrossEntropy' in text

def test_tta(ds, kind, tmp_path):
    learn = new_learner(ds, tmp_path, kind)
    learn.fit(1)
    p,y = learn.tta(n=2)
    plain,_ = learn.get_preds()
    assert p.shape==plain.shape and not torch.allclose(p, plain) and torch.equal(y, learn.get_preds()[1])

def test_interpretation(trained, ds):
    interp = ClassificationInterpretation.from_learner(trained)
    m = interp.confusion_matrix()
    assert m.shape==(ds.n_classes,)*2 and m.sum()==50
    losses,idx = interp.top_losses(3)
    assert (losses[:-1]>=losses[1:]).all() and len(interp.top_losses(3, items=True)[2])==3
    interp.plot_top_losses(4); interp.plot_confusion_matrix(); interp.show_results([0,1])
    of_train = ClassificationInterpretation.from_learner(trained, ds_idx=0)
    losses,idx = of_train.top_losses(2)
    x,_,y,*_ = of_train[idx]
    assert y.tolist()==trained.dls.train_ds.labels[idx].tolist()
    of_train.plot_top_losses(2)
    assert isinstance(interp.most_confused(), list)

# --- on disk

def test_export_and_load_learner(trained, ds):
    trained.export()
    before = trained.predict(ds.images[0])
    back = load_learner(trained.path/'export.pkl')
    after = back.predict(ds.images[0])
    assert after[0]==before[0] and torch.equal(after[2], before[2]) and list(back.dls.vocab)==list(ds.classes)
    p,_ = back.get_preds(dl=back.dls.test_dl(list(ds.images[:3])))
    assert len(p)==3 and len(trained.get_preds()[0])==50

def test_save_and_load(ds, kind, tmp_path):
    learn = new_learner(ds, tmp_path, kind)
    learn.fit(1)
    learn.save('one')
    kept = weights(learn)
    learn.fit(1)
    assert not same(kept, weights(learn))
    learn.load('one')
    assert same(kept, weights(learn))

# --- callbacks

CALLBACKS = dict(
    csv          = lambda: CSVLogger(),
    best         = lambda: SaveModelCallback(monitor='accuracy'),
    early        = lambda: EarlyStoppingCallback(min_delta=100., patience=1),
    mixup        = lambda: MixUp(),
    cutmix       = lambda: CutMix(),
    accumulation = lambda: GradientAccumulation(80),
    clip         = lambda: GradientClip(),
    activations  = lambda: ActivationStats())

@pytest.mark.parametrize('name', CALLBACKS)
def test_callbacks(ds, kind, tmp_path, name):
    learn = new_learner(ds, tmp_path, kind)
    with learn.no_logging(): learn.fit(3, cbs=CALLBACKS[name]())
    if name=='csv': assert (tmp_path/'history.csv').read_text().startswith('epoch,train_loss,valid_loss,accuracy,top_k_accuracy,time\n0,')
    if name=='best': assert (tmp_path/'models/model.pth').exists()
    assert len(learn.record.rows)==(2 if name=='early' else 3)
    assert all(np.isfinite(r['val_loss']) for r in learn.record.rows)

def test_mixup_with_several_sets_a_picture(ds, tmp_path):
    cfg = Config(dynamic=True, sampling='sample', views=3, precision='float32', overrides=dict(bs=40))
    for cb in (MixUp(),CutMix()): get_learner(cfg, ds, device='cpu', path=tmp_path).fit(1, cbs=cb)

def test_tensorboard(ds, kind, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai.callback.tensorboard import TensorBoardCallback
    learn = new_learner(ds, tmp_path, kind)
    learn.fit(1, cbs=TensorBoardCallback(tmp_path/'log', trace_model=True))
    assert list((tmp_path/'log').iterdir()) and len(learn.record.rows)==1

@pytest.mark.parametrize('precision', ['float32','bfloat16'])
def test_other_arithmetic(ds, kind, tmp_path, precision):
    cfg = Config(**KINDS[kind], precision=precision, overrides=dict(bs=40))
    for change in ('to_fp16','to_bf16','to_fp32'):
        learn = get_learner(cfg, ds, device='cpu', path=tmp_path)
        getattr(learn, change)()
        learn.fit(1)
        assert np.isfinite(learn.validate()[0]) and not torch.is_autocast_enabled('cpu')

# --- what is seen while it trains

def test_progress(ds, tmp_path, monkeypatch):
    import mils.epochs
    for notebook,quiet,table,bar in ((True,'',True,False), (False,'',False,True), (True,'1',False,False)):
        monkeypatch.setenv('TQDM_DISABLE', quiet)
        monkeypatch.setattr(mils.epochs, 'in_notebook', lambda: notebook)
        learn = new_learner(ds, tmp_path)
        assert isinstance(learn.recorder, Recorder)
        assert hasattr(learn, 'progress')==table and hasattr(learn, 'bar')==bar

def test_table_of_epochs(ds, tmp_path, monkeypatch, capsys):
    import mils.epochs
    monkeypatch.delenv('TQDM_DISABLE')
    monkeypatch.setattr(mils.epochs, 'in_notebook', lambda: True)
    learn = new_learner(ds, tmp_path, cbs=ShowGraphCallback())
    learn.fit(1)
    assert 'train_loss' in capsys.readouterr().out and isinstance(learn.progress, ProgressCallback)

# --- the other way round: our layer in a fastai program

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root,few = tmp_path_factory.mktemp('folder'),chroma(n_train=400, n_val=10, n_test=10)
    for i in few.splits['train']:
        if few.labels[i]>2: continue
        (root/few.classes[few.labels[i]]).mkdir(exist_ok=True)
        Image.fromarray(few.images[i]).save(root/few.classes[few.labels[i]]/f'{i}.png')
    return root

def loaders(folder):
    return ImageDataLoaders.from_folder(folder, valid_pct=.3, seed=0, item_tfms=Resize(32), batch_tfms=aug_transforms(),
                                        bs=16, num_workers=0, device='cpu')

def plain_resnet(dls): return resnet18(num_classes=dls.c)

PROGRAMS = dict(
    vision_learner = lambda dls,**kw: vision_learner(dls, resnet18, pretrained=False, cbs=ChannelSampling(), metrics=accuracy, **kw),
    convert        = lambda dls,**kw: Learner(dls, convert(plain_resnet(dls)), cbs=ChannelSampling(), metrics=accuracy, **kw),
    views          = lambda dls,**kw: Learner(dls, plain_resnet(dls), cbs=[ChannelSampling(views=2, distill=.3), MixUp()],
                                              metrics=accuracy, **kw))

@pytest.mark.parametrize('program', PROGRAMS)
def test_fastai_program(folder, tmp_path, program):
    dls = loaders(folder)
    learn = PROGRAMS[program](dls, path=tmp_path)
    assert isinstance(learn.model, ChannelAdaptive)
    with learn.no_bar(), learn.no_logging():
        if program=='vision_learner': learn.fine_tune(1)
        else: learn.fit_one_cycle(1)
        learn.lr_find(num_it=6)
        full,red = learn.validate(),learn.validate(cbs=OneSet('R'))
        assert len(full)==2 and full!=red
        some = dls.valid_ds.items[0]
        label,i,p = learn.predict(some)
        learn.show_results(max_n=4); learn.summary(); learn.tta(n=1)
        ClassificationInterpretation.from_learner(learn).plot_top_losses(2)
        learn.export()
        back = load_learner(tmp_path/'export.pkl')
        with back.no_bar(): assert torch.equal(back.predict(some)[2], p)
    folded = learn.model.eval().fold('GB')
    x = dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    with torch.no_grad(): torch.testing.assert_close(folded(x[:,1:]), learn.model(x[:,1:], channels='GB'), atol=1e-4, rtol=1e-4)

def test_several_labels_a_picture(folder, tmp_path):
    block = DataBlock((ImageBlock,MultiCategoryBlock), get_items=get_image_files, get_y=lambda o: [o.parent.name], item_tfms=Resize(32))
    dls = block.dataloaders(folder, bs=16, num_workers=0, device='cpu')
    learn = Learner(dls, resnet18(num_classes=dls.c), metrics=accuracy_multi, cbs=[ChannelSampling(views=2),MixUp()], path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.values[0]).all()

def test_our_loaders_in_a_fastai_learner(trained, kind, tmp_path):
    if kind=='GB': return                                               # a ResNet has three channels
    learn = Learner(trained.dls, resnet18(num_classes=trained.dls.c), metrics=accuracy, path=tmp_path)       # the loss is that of the data
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.values[0]).all()
