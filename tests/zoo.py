"""The layer in other people's networks. `python tests/zoo.py` adds what `results/zoo.csv` does not hold yet.

`python tests/zoo.py resnet` tries again those whose names contain a word. Weights are random and nothing is downloaded.
"""
import gc,importlib,re,sys,tempfile,warnings
from functools import partial
from importlib.metadata import version
import mils  # noqa: F401   # before PyTorch, which reads how threads wait when it is loaded
import numpy as np,pandas as pd,torch
from torch import nn
from mils.channels import convert
from mils.core import write_atomic
from mils.export import export
from mils.graphs import tensors_of
from mils.imageset import ChannelStats
from mils.tables import results_dir

STATS = ChannelStats(np.zeros(3), np.ones(3), np.array([[1,.93,.84],[.93,1,.94],[.84,.94,1]]))
SETS = 'RGB','GB','RB','R'
MASK = torch.tensor([[c in s for c in 'RGB'] for s in SETS])
CHECKS = 'converts','exact','mixed','absent','folds','kept','exports'
TOLERANCE = 2e-3                    # of the largest output: random networks of a hundred layers make much of a rounding

# The networks: name, family, how it is made, and what to try: options, side of the pictures
def _library(name):
    try: return importlib.import_module(name)
    except ImportError: return None

def torchvision_networks():
    models = importlib.import_module('torchvision.models')
    for name in models.list_models(module=models):
        make = partial(models.get_model, name, weights=None, num_classes=10)
        extra = dict(init_weights=False) if name in ('googlenet','inception_v3') else {}
        yield name,re.match('[a-z]+', name)[0],make,[(extra,64), (dict(image_size=64),64), (extra,224), (extra,299)]

_sizes = ('test nano atto femto pico zepto xxxs xxs xxtiny xxsmall xt xs tiny t0 s0 b0 a0 micro mini small lite ti t s12 s m0 - m base b '
          'large l 3b 1b g gopt so400m so150m so150m2 h xl huge giant').split()
def _rank(name):
    "Small members of a family come first, as far as their names tell"
    words = re.split('[_.]', name)
    size = min((_sizes.index(w) for w in words if w in _sizes), default=_sizes.index('-'))
    return size,[int(n) for n in re.findall(r'\d+', name)],name

HUGE = 'deepseek_vit','mobilenetv5'                    # families whose smallest member has hundreds of millions of weights
def timm_networks():
    "One of each module, and one of each convolution of another class or beside the stem"
    timm = _library('timm')
    if not timm: return
    families = importlib.import_module('timm.models._registry')._module_to_models
    listed = {*timm.list_models()}
    small = {family:min(listed&{*names}, key=_rank) for family,names in sorted(families.items()) if family not in HUGE}
    small |= dict(mobileone='mobileone_s0', repvgg='repvgg_a0', tf_efficientnet='tf_efficientnet_b0', tf_mixnet='tf_mixnet_s')
    for family,name in small.items():
        side = timm.get_pretrained_cfg(name).input_size[-1] if timm.get_pretrained_cfg(name) else 224
        yield name,family,partial(timm.create_model, name, num_classes=10),[({},64), (dict(img_size=64),64), ({},side)]

def smp_networks():
    smp = _library('segmentation_models_pytorch')
    if not smp: return
    encoders = 'resnet18','mobileone_s0','timm-efficientnet-b0','mit_b0','vgg11','densenet121','mobilenet_v2','dpn68','tu-convnext_atto'
    kinds = [(a,'resnet18') for a in smp.MODEL_ARCHITECTURES_MAPPING if a!='dpt']
    for kind,encoder in (*kinds, *(('unet',e) for e in encoders[1:]), ('dpt','tu-vit_tiny_patch16_224')):
        yield f'{kind}/{encoder}',kind,partial(smp.create_model, kind, encoder, encoder_weights=None, classes=3),[({},64), ({},224)]

def transformers_networks():
    hf = _library('transformers')
    if not hf: return
    names = importlib.import_module('transformers.models.auto.modeling_auto').MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    def make(kind, cls, layers=None):
        config = hf.AutoConfig.for_model(kind, **({} if layers is None else dict(num_hidden_layers=layers)))
        return getattr(hf, cls)(config)
    for kind,classes in names.items():
        for cls in ([classes] if isinstance(classes, str) else classes):
            yield cls,kind,partial(make, kind, cls),[(dict(layers=2),64), ({},64), (dict(layers=2),224), ({},224)]

TOO_LARGE = {'ShieldGemma2ForImageClassification'}
UNMADE = dict(ImageGPTForImageClassification='it takes colours by number, not pictures',
              ShieldGemma2ForImageClassification='it has billions of parameters, more than memory holds',
              DinatForImageClassification='it needs natten, a library that is not installed here')

LIBRARIES = dict(torchvision=torchvision_networks, timm=timm_networks, segmentation_models_pytorch=smp_networks,
                 transformers=transformers_networks)
def networks():
    "Library, name, family, how to make it, and what to try"
    for library,each in LIBRARIES.items():
        for row in each(): yield library,*row

# What a network gives, and whether two answers are the same
def numbers(y): return [t for t in tensors_of(y) if t.is_floating_point()]
def far(got, want, tol=TOLERANCE):
    "The largest difference as a share of the largest output where it is above the tolerance, or a word for what else is wrong"
    got,want = numbers(got),numbers(want)
    if tol and want[0].dtype==torch.bfloat16: tol = .1
    if [t.shape for t in got]!=[t.shape for t in want]: return 'other shapes'
    for a,b in zip(got, want):
        if not a.isfinite().all(): return 'not finite'
        off = ((a-b).abs().max()/b.abs().max().clamp(min=1e-6)).item()
        if off>tol: return f'off by {off:.2g} of the largest output'
def rows_of(y, i): return [t[i:i+1] for t in numbers(y)]
def places(s): return ['RGB'.index(c) for c in s]
def words(e): return ' '.join(str(e).split())[:300] or type(e).__name__

GIANTS = 'regnet_y_128gf','regnet_y_32gf','vit_h_14','vit_l_16','vit_l_32','convnext_large'          # made in half the memory
def made(name, make, tries):
    "A network that takes pictures of a size, and that size; the last error where none does"
    for options,side in tries:
        try:
            torch.manual_seed(0)
            torch.set_default_dtype(torch.bfloat16 if name in GIANTS else torch.float32)
            net = make(**options).eval()
            net(torch.randn(2,3,side,side).to(next(net.parameters()).dtype))
            return net,side
        except Exception as e: error = e
        finally: torch.set_default_dtype(torch.float32)
    raise error

class Trial:
    "One network, frozen and hooked, then converted: what the checks look at"
    def __init__(self, plain, side):
        self.x,self.fold,self.calls = torch.randn(len(SETS), 3, side, side),None,0
        self.x = self.x.to(next(plain.parameters()).dtype)
        plain.requires_grad_(False)
        for m in plain.modules():
            if isinstance(m, nn.Conv2d) and m.in_channels==3: m.register_forward_hook(self.count)
        self.before,self.state = plain(self.x),plain.state_dict()
        stems = [m.weight.clone() for m in plain.modules() if isinstance(m, nn.Conv2d) and m.in_channels==3]
        self.net = convert(plain, stats=STATS)
        self.stem = stems[0]
        self.calls = 0
        self.full = self.net(self.x)
        self.hooks = self.calls
        self.mixed = self.net(self.x, MASK)
    def count(self, *args): self.calls += 1

# The checks: each returns nothing, or what is wrong
def check_exact(o): return far(o.full, o.before, 0)
def check_mixed(o):
    for i,s in ((1,'GB'),(3,'R')):
        if wrong := far(o.net(o.x[i:i+1,places(s)], channels=s), rows_of(o.mixed, i)): return f'{s}: {wrong}'
def check_absent(o): return far(o.net(torch.where(MASK[:,:,None,None], o.x, torch.nan), MASK), o.mixed)
def check_folds(o):
    o.fold = o.net.fold('BG')
    if wrong := far(o.fold(o.x[1:2,places('BG')]), rows_of(o.mixed, 1)): return f'BG: {wrong}'
def check_kept(o):
    "Frozen, hooked and loaded before: so it is afterwards, as a fold too"
    if any(p.requires_grad for p in o.net.parameters()): return 'it was frozen, and is not'
    if o.hooks!=len(o.net.stems): return f'{o.hooks} of {len(o.net.stems)} hooks were called'
    state = o.net.net.state_dict()
    lost = [k for k,v in o.state.items() if k not in state or state[k].data_ptr()!=v.data_ptr()]
    if lost: return f'the state lost {lost[0]}'
    if not torch.equal(o.net.stem.weight, o.stem): return 'the weight of the stem changed'
    if o.fold is None: return
    if any(p.requires_grad for p in o.fold.parameters()): return 'it was frozen, and its fold is not'
    names = {k.removeprefix('net.') for k in o.fold.state_dict()}
    if all(k.startswith(o.net.path) for k in names^{*o.state}): return
    return f'the state of its fold differs in {sorted(names^{*o.state})[0]}'

@torch.no_grad()
def row(library, name, family, make, tries):
    "What holds for a network: `pass`, or `refused` with the reason, or `fault`"
    about = dict(library=library, model=name, family=family, version=version(library.replace('_','-')), size=0, parameters=0)
    r = {**about, **dict.fromkeys(CHECKS, ''), 'reason':''}
    try: net,r['size'] = made(name, make, [] if name in TOO_LARGE else tries)
    except Exception as e: return {**r, 'reason':f'not made: {UNMADE.get(name) or words(e)}'}
    r['parameters'] = sum(p.numel() for p in net.parameters())
    try: o = Trial(net, r['size'])
    except (ValueError,TypeError) as e: return {**r, 'converts':'refused', 'reason':words(e)}
    except Exception as e: return {**r, 'converts':'fault', 'reason':f'{type(e).__name__}: {words(e)}'}
    r['converts'] = 'pass'
    for check in (check_exact,check_mixed,check_absent,check_folds,check_kept):
        column = check.__name__.removeprefix('check_')
        try: wrong = check(o)
        except ValueError as e: r[column],r['reason'] = 'refused',r['reason'] or f'{column}: {words(e)}'
        except Exception as e: r[column],r['reason'] = 'fault',r['reason'] or f'{column}: {type(e).__name__}: {words(e)}'
        else: r[column],r['reason'] = ('fault',f'{column}: {wrong}') if wrong else ('pass',r['reason'])
    return r

# Exported, which takes longest: some of each kind
EXPORTED = set("""squeezenet1_1 resnet18 alexnet mobilenet_v3_small shufflenet_v2_x0_5 mnasnet0_5 regnet_x_400mf vit_b_32
    efficientnet_b0 convnext_tiny swin_t test_byobnet test_convnext test_efficientnet test_resnet test_vit test_nfnet test_coatnet
    test_mambaout test_vit_relpos
    mobileone_s0 repvgg_a0 repghostnet_050 efficientvit_b0 levit_128 fastvit_s12 tf_efficientnet_b0 xcit_nano_12_p8_224 unet/resnet18
    fpn/resnet18 linknet/resnet18
    deeplabv3plus/resnet18 unet/mobileone_s0 ViTForImageClassification ResNetForImageClassification ConvNextForImageClassification
    SegformerForImageClassification""".split())

def add_export(r, make, tries):
    "Whether the fold for GB runs in onnxruntime, for pictures of any size or of this one"
    try:
        net,side = made(r['model'], make, tries)
        with tempfile.TemporaryDirectory() as tmp:
            done = export(convert(net, stats=STATS), f'{tmp}/net.onnx', torch.randn(2,3,side,side), 'GB')
        r['exports'] = 'any size' if done['size']=='any' else 'one size'
        if done['why']: r['reason'] = r['reason'] or f'exports: one size, for {done["why"]}'
    except (ValueError,ImportError) as e: r['exports'],r['reason'] = 'refused',r['reason'] or f'exports: {words(e)}'
    except Exception as e: r['exports'],r['reason'] = 'fault',r['reason'] or f'exports: {type(e).__name__}: {words(e)}'

def main(again=()):
    "Row by row, so that what is done is not done again"
    path = results_dir()/'zoo.csv'
    old = pd.read_csv(path, keep_default_na=False).to_dict('records') if path.exists() else []
    known = {(o['library'],o['model']):o for o in old if not any(w in o['model'] for w in again)}
    def save():
        rows = [known[k] for k in order if k in known]+[o for k,o in known.items() if k not in order]
        write_atomic(path, pd.DataFrame(rows).to_csv(index=False))
        gc.collect()                                # networks and the hooks in them hold each other
    several = [*networks()]
    order = [(library,name) for library,name,*_ in several]
    for library,name,*rest in sorted(several, key=lambda o: o[1] in GIANTS):         # the largest come last
        if (library,name) in known: continue
        known[library,name] = r = row(library, name, *rest)
        print(*(f'{v}' for v in r.values() if v!=''), flush=True)
        save()
    for library,name,family,*rest in several:
        r = known[library,name]
        if name not in EXPORTED or r['exports'] or r['converts']!='pass': continue
        add_export(r, *rest)
        print(library, name, r['exports'], r['reason'], flush=True)
        save()

if __name__=='__main__':
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    main(sys.argv[1:])
