"Names of channels and masks, against a few lines that say what they mean"
import functools
import torch
from campaign.cases import refusal,refused,right
from mils.channels import convert
from mils.core import channel_set,channel_sets,set_name
from mils.specs import parse_channels

LETTERS = 'RGBNéß中 DAPI_-0 x.'
def _name(rng): return ''.join(rng.choice(LETTERS) for _ in range(rng.choice([1,1,2,3,8])))
def _legal(o): return bool(o) and not set(o)&set('+,') and o==o.strip()

def names(rng, root):
    "A set of names is written, read again and the same; what cannot be written so is refused when it is made"
    known = [_name(rng) for _ in range(rng.randint(1,6))]
    if rng.random()<.1: known[0] = rng.choice(['','A+B','A,B','+',',',' '])
    legal = all(map(_legal, known)) and len({*known})==len(known)
    if not legal: return refused(refusal(lambda: channel_set(known, known), kinds=ValueError))
    some = rng.sample(known, rng.randint(1,len(known)))
    faults = []
    if channel_set(some, known)!=tuple(some): faults.append(f'{some} of {known} is {channel_set(some, known)}')
    text = set_name(some)
    if channel_set(text, known)!=tuple(some): faults.append(f'{some} is written {text!r}, which is read as {channel_set(text, known)}')
    if parse_channels(text)!=tuple(some): faults.append(f'{text!r} is read as {parse_channels(text)}')
    every = channel_sets(known)
    if len({*map(set_name, every)})!=2**len(known)-1: faults.append(f'two sets of {known} are written alike')
    return right(faults)

def wrong_names(rng, root):
    "Unknown, repeated, missing or without an order"
    known = rng.choice([['R','G','B'], ['R','NIR'], ['bright field','DNA','é']])
    way = rng.choice(['unknown','twice','none','set','text'])
    wrong = dict(unknown=[*known,'Q'], twice=[known[0]]*2, none=[], set={*known}, text='Q')[way]
    return refused(refusal(lambda: channel_set(wrong, known), *(['Q'] if way in ('unknown','text') else []), kinds=ValueError))

@functools.lru_cache(None)
def _net():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                              torch.nn.Linear(6, 3))
    return convert(net.eval(), ['R','G','B','NIR'])

@torch.no_grad()
def masks(rng, root):
    "Each picture of a batch is what the network says of its set alone, whatever stands in the channels that are absent"
    net,n = _net(),rng.randint(1,5)
    torch.manual_seed(rng.randrange(2**31))
    x,mask = torch.rand(n, 4, 9, 9),torch.rand(n, 4)<.5
    mask[torch.arange(n),torch.randint(0, 4, (n,))] = True
    got = net(torch.where(mask[:,:,None,None], x, rng.choice([torch.nan,torch.inf,1e30,-7.])), mask)
    faults = []
    for i in range(n):
        rows = mask[i].nonzero()[:,0].tolist()
        rng.shuffle(rows)
        alone = [net.channels[k] for k in rows]
        for how,want in (('a call',net(x[i:i+1,rows], channels=alone)), ('the fold',net.fold(alone)(x[i:i+1,rows]))):
            if not torch.allclose(got[i:i+1], want, rtol=1e-4, atol=1e-5): faults.append(f'{alone}: {how} gives {want}, the mask {got[i]}')
    return right(faults)

@torch.no_grad()
def wrong_masks(rng, root):
    "Masks without a channel, of another shape or type"
    net,n = _net(),rng.randint(1,4)
    x,mask = torch.rand(n, 4, 9, 9),torch.ones(n, 4, dtype=torch.bool)
    way = rng.choice(['empty','wide','narrow','long','flat','numbers','both','short x','unknown'])
    if way=='empty': mask[rng.randrange(n)] = False
    new = dict(wide=torch.ones(n, 5, dtype=torch.bool), narrow=mask[:,:3], long=torch.ones(n+2, 4, dtype=torch.bool), flat=mask[0],
               numbers=mask.float()*2).get(way, mask)
    call = dict(channels='RGB') if way=='both' else {}
    if way=='short x': x = x[:,:rng.choice([1,2,3])]
    if way=='unknown': return refused(refusal(lambda: net(x, channels=['R','Q']), 'Q', kinds=ValueError))
    return refused(refusal(lambda: net(x, new, **call), kinds=ValueError))
