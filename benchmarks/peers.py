"""Other trainers beside ours: fastai's own loaders and learner, timm's training script, and the usual pipeline

    python benchmarks/peers.py --data PATH --classes 0-49 --timm CLONE [--photo_size 375] [--epochs 4] [--rounds 3] [--record]

All train the same network on the same files, with the same epochs, batches, AdamW, peak learning rate, weight decay, label smoothing and
strength of augmentation, in turn, each in a process of its own. CLONE is a checkout of github.com/huggingface/pytorch-image-models, whose
train.py is no part of the package timm; it knows our networks through a small module that is written for it. Without --timm it is left
out. A row a training: pictures a second of the epochs after the first, training alone, and the accuracy after the last.
"""
import argparse,json,os,re,subprocess,sys,tempfile,time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from mils.core import network_name
from mils.models import create_model
from mils.config import Config
from mils.specs import parse_classes
from mils.identity import machine_and_date
from mils.bench import _one_training,add_rows,prepared,train_once
from fastai.vision.all import (accuracy,Adam,Callback,CategoryBlock,CrossEntropyLossFlat,FlipItem,ImageDataLoaders,Learner,Normalize,
                               RandomResizedCrop,set_seed)
from fastai.callback.channelslast import ChannelsLast
import pandas as pd,torch
from PIL import Image

WAYS = ('ours','usual','fastai','timm')

def listed(folder, split):
    "The files of a split, from `folder` on, and their labels"
    lines = (Path(folder)/f'{split}.txt').read_text().splitlines()
    pairs = [line.rsplit(' ', 1) for line in lines]
    return [(name, int(label)) for name,label in pairs]

def known_to_peers(job, ds):
    "What a peer is told: as `prepared` says, and what the pictures are like"
    workers = job['workers']
    if workers is None: workers = os.cpu_count()
    return dict(job, workers=workers, n_classes=ds.n_classes, mean=ds.stats.mean.tolist(), std=ds.stats.std.tolist())

# peers have no shift: they crop at random and scale to the network's size

def zoom(shift):
    "The smallest share of a picture that a random crop keeps, so that its middle moves by up to `shift` of the side"
    return (1-2*shift)**2

def filter_of(job):
    "The filter that scales crops: parts of thumbnails are scaled up, and bilinear would blur them"
    if job['resize']: return 'bilinear'
    return 'bicubic'

# fastai

RESAMPLES = dict(bilinear=Image.BILINEAR, bicubic=Image.BICUBIC)

class Clock(Callback):
    "A row an epoch: seconds of its training, and pictures a second"
    def before_fit(self): self.rows = []
    def before_train(self): self.start,self.n = time.perf_counter(),0
    def after_batch(self):
        if self.training: self.n += len(self.y)
    def after_train(self):
        seconds = time.perf_counter()-self.start
        self.rows.append(dict(seconds=seconds, images_per_s=self.n/seconds, input_share=float('nan')))

def in_bf16(net, device):
    "Let `net` compute in bfloat16: fastai's own mixed precision does so on CUDA alone"
    forward = torch.autocast(device, torch.bfloat16)(net.forward)
    net.forward = lambda x: forward(x).float()

def fastai_loaders(cfg, job):
    "fastai's loaders of the files; a validation picture that is not square is squeezed"
    s,size = cfg.settings,job['size']
    rows = [(name, label, split=='val') for split in ('train','val') for name,label in listed(job['folder'], split)]
    df = pd.DataFrame(rows, columns=['name','label','is_valid'])
    crop = RandomResizedCrop(size, min_scale=zoom(s['shift']), ratio=(1,1), val_xtra=0, resamples=(RESAMPLES[filter_of(job)],Image.NEAREST))
    return ImageDataLoaders.from_df(df, job['folder'], fn_col='name', label_col='label', valid_col='is_valid', y_block=CategoryBlock,
        item_tfms=[crop, FlipItem(.5*s['flip'])], batch_tfms=Normalize.from_stats(job['mean'], job['std']), bs=s['bs'], val_bs=2*s['bs'],
        num_workers=job['workers'], device=torch.device(job['device']))

def train_fastai(cfg, job):
    "fastai's `Learner` and `fit_one_cycle`; a row an epoch"
    s = cfg.settings
    set_seed(cfg.seed)
    net = create_model(cfg.model, job['n_classes'], **{'size':job['size'], **cfg.options})
    if cfg.precision=='bfloat16': in_bf16(net, job['device'])
    clock = Clock()
    learn = Learner(fastai_loaders(cfg, job), net, CrossEntropyLossFlat(label_smoothing=s['smoothing']),
        partial(Adam, sqr_mom=.999, eps=1e-8), s['lr'], wd=s['wd'], moms=(.9,.9,.9), metrics=accuracy, cbs=[ChannelsLast(),clock])
    with learn.no_bar(),learn.no_logging(): learn.fit_one_cycle(cfg.epochs)
    return [dict(row, val_top1=values[-1]) for row,values in zip(clock.rows, learn.recorder.values)]

def child():
    "What a process of its own does: it reads a job in JSON, and its last line is the rows"
    told = json.load(sys.stdin)
    print('\n'+json.dumps(train_fastai(Config(**told['cfg']), told['job'])))

def fastai_alone(cfg, job):
    "`train_fastai` in a new process"
    told = json.dumps(dict(cfg=asdict(cfg), job=job))
    r = subprocess.run([sys.executable, __file__, 'child'], input=told, capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f'training with fastai failed:\n{r.stderr}')
    return json.loads(r.stdout.splitlines()[-1])

# timm

PLUGIN = '''
from timm.models import register_model
from mils.models import create_model

@register_model
def network_of_mils(num_classes, **kwargs): return create_model({model!r}, num_classes, **{options!r})
'''

START = 'import plugin,runpy,sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'

LAST_OF_EPOCH = re.compile(r'Train: (\d+) \[ *(\d+)/\d+ \(100%\)\].*?\([\d.]+s, +([\d.]+)/s\)')

def class_folders(job, root):
    "Links to the files in a folder a class, as timm reads them"
    names = [f'{k:04d}' for k in range(job['n_classes'])]
    (root/'classes.txt').write_text('\n'.join(names))
    for split in ('train','val'):
        for name in names: (root/split/name).mkdir(parents=True)
        for name,label in listed(job['folder'], split):
            path = Path(job['folder']).resolve()/name
            (root/split/names[label]/path.name).symlink_to(path)

def timm_words(cfg, job, root):
    "What is typed after train.py"
    s,size = cfg.settings,job['size']
    warm = max(1, round(cfg.epochs/4))                        # of whole epochs; the schedule of ours rises for a quarter
    words = dict(model='network_of_mils', num_classes=job['n_classes'], data_dir=root, train_split='train', val_split='val',
        class_map=root/'classes.txt', input_size=(3,size,size), mean=job['mean'], std=job['std'], crop_pct=1, interpolation='bilinear',
        train_interpolation=filter_of(job), scale=(zoom(s['shift']),1), ratio=(1,1), hflip=.5*s['flip'], color_jitter_prob=0,
        opt='adamw', lr=s['lr'], weight_decay=s['wd'], smoothing=s['smoothing'], batch_size=s['bs'], validation_batch_size=2*s['bs'],
        sched='cosine', epochs=cfg.epochs-warm, warmup_epochs=warm, warmup_lr=s['lr']/25, min_lr=s['lr']/1e4,
        device=job['device'], workers=job['workers'], seed=cfg.seed, output=root, experiment='run', checkpoint_hist=1, log_interval=10**9)
    typed = []
    for k,v in words.items():
        several = v if isinstance(v, (tuple,list)) else [v]
        typed += ['--'+k.replace('_','-'), *map(str, several)]
    typed += ['--warmup-prefix','--sched-on-updates','--channels-last']
    if cfg.precision=='bfloat16': typed += ['--amp','--amp-dtype','bfloat16']
    return typed

def timm_command(cfg, job, clone, root):
    "Write what timm needs into `root`; what starts its training script there"
    class_folders(job, root)
    options = {'size':job['size'], **cfg.options}
    (root/'plugin.py').write_text(PLUGIN.format(model=cfg.model, options=options))
    return [sys.executable, '-c', START, str(Path(clone).resolve()/'train.py'), *timm_words(cfg, job, root)]

def read_log(log, summary, batch):
    "A row an epoch, from what the script printed and from its table"
    rows = []
    for _,last,rate in LAST_OF_EPOCH.findall(log):
        n = (int(last)+1)*batch
        rows.append(dict(seconds=n/float(rate), images_per_s=float(rate), input_share=float('nan')))
    return [dict(row, val_top1=top1/100) for row,top1 in zip(rows, pd.read_csv(summary).eval_top1)]

def train_timm(cfg, job, clone):
    "timm's train.py; a row an epoch"
    with tempfile.TemporaryDirectory(prefix='mils-timm-') as tmp:
        root = Path(tmp)
        r = subprocess.run(timm_command(cfg, job, clone, root), cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if r.returncode: raise RuntimeError(f'train.py of timm failed:\n{r.stdout}')
        return read_log(r.stdout, root/'run'/'summary.csv', cfg.settings['bs'])

# all of them

def train(way, cfg, job, ds, clone=None):
    "Train one way; its row"
    if way in ('ours','usual'): row = train_once(way, cfg, job)
    else:
        if way=='fastai': rows = fastai_alone(cfg, known_to_peers(job, ds))
        else: rows = train_timm(cfg, known_to_peers(job, ds), clone)
        row = dict(round=cfg.seed, way=way, **_one_training(rows))
    precision = 'float32' if way=='usual' else cfg.precision
    return {k:v for k,v in row.items() if k!='input_share'} | dict(precision=precision)

def conditions(cfg, ds, photo_size):
    "What was compared, and on what machine"
    n = {f'n_{k}':len(ds.splits[k]) for k in ('train','val')}
    return dict(network=network_name(cfg.model, cfg.options), size=ds.size, photo_size=photo_size, **n, epochs=cfg.epochs,
        batch=cfg.settings['bs'], threads=torch.get_num_threads(), fastai=version('fastai'), timm=version('timm'), **machine_and_date())

def summary(t):
    "Pictures a second, how many times as fast ours is, and the accuracy, a row a way"
    by_way = t.groupby('way', sort=False)
    rate,top1 = by_way.images_per_s.median(),by_way.val_top1.mean()
    table = pd.DataFrame({'images/s':rate.round(), 'val top-1':top1.map('{:.2%}'.format)})
    if 'ours' in rate:
        table['ours is faster by'] = (rate.ours/rate).round(2)
        table['points below ours'] = (100*(top1.ours-top1)).round(2)
    return table.to_string()

def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='chroma', help='a folder or zip with images, or chroma')
    p.add_argument('--classes', help='labels to keep, such as 0-49; default: all')
    p.add_argument('--timm', help='a clone of github.com/huggingface/pytorch-image-models; without it timm is left out')
    p.add_argument('--photo_size', type=int, default=0, help='write the pictures as JPEGs of this size first; 0: as they are')
    p.add_argument('--size', type=int, default=64, help='pixels of the side at which the network sees them')
    p.add_argument('--epochs', type=int, default=4, help='of each training, 2 or more; the first is not timed')
    p.add_argument('--rounds', type=int, default=3, help='trainings of each way')
    p.add_argument('--n_train', type=int, help='training images; default: all')
    p.add_argument('--n_val', type=int, help='validation images; default: all')
    p.add_argument('--only', help='ways, such as ours,fastai; default: '+','.join(WAYS))
    p.add_argument('--record', action='store_true', help='into results/speed/peers.csv, which the report reads')
    a = p.parse_args(words)
    ways = a.only.split(',') if a.only else [w for w in WAYS if w!='timm' or a.timm]
    if unknown := set(ways)-set(WAYS): p.error(f'--only {unknown.pop()}; possible: {", ".join(WAYS)}')
    if 'timm' in ways and not (a.timm and (Path(a.timm)/'train.py').is_file()): p.error('--timm needs a clone that holds train.py')
    if a.epochs<2: p.error('--epochs: 2 or more, for the first is not timed')
    rows = []
    with tempfile.TemporaryDirectory(prefix='mils-peers-') as tmp:
        job,ds,_ = prepared(a.data, tmp, a.size, a.n_train, a.n_val, a.photo_size, parse_classes(a.classes))
        told = conditions(Config(epochs=a.epochs), ds, a.photo_size)
        for r in range(a.rounds):
            for way in ways:
                rows.append(train(way, Config(epochs=a.epochs, seed=r), job, ds, a.timm) | told)
                print('{round} {way}: {images_per_s:,.0f} images/s, {val_top1:.2%}'.format(**rows[-1]), flush=True)
                if a.record: add_rows(pd.DataFrame(rows[-1:]), 'peers')
    t = pd.DataFrame(rows)
    print(summary(t))
    return t

if __name__=='__main__':
    if sys.argv[1:]==['child']: child()
    else: main()
