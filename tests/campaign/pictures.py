"Pictures in every form that formats have, each of which shows a number; whole ones are right, others are refused or right"
import io
import numpy as np
from PIL import Image
from campaign.cases import Told,right
from fuzz_field import number
from mils.decode import Unreadable
from mils.planes import read_planes

def drawn(rng, n, side):
    "A picture of the number `n`, perhaps with something left and right or above and below of the middle"
    bits = np.array([n>>i&1 for i in range(16)], np.uint8).reshape(4,4)*255
    x = np.kron(bits, np.ones((side//4,side//4), np.uint8))
    more = rng.choice([0,0,side//4,side])
    return np.pad(x, [(0,0),(more,more)] if rng.random()<.5 else [(more,more),(0,0)], constant_values=rng.choice([0,90,255]))

FORMS = [(fmt,mode) for fmt,modes in dict(PNG='L RGB RGBA P 1 LA I;16', JPEG='L RGB CMYK', GIF='P L', BMP='RGB L P 1',
    TIFF='RGB L 1 CMYK I;16 P RGBA', WEBP='RGB RGBA L', PPM='RGB L 1').items() for mode in modes.split()]

def _options(rng, fmt, mode):
    "Any way of saving it"
    if fmt=='JPEG': return dict(quality=rng.choice([70,90,98]), progressive=rng.random()<.4, optimize=rng.random()<.3)
    if fmt=='PNG': return dict(compress_level=rng.randrange(10), optimize=rng.random()<.2)
    if fmt=='WEBP': return dict(lossless=rng.random()<.6, quality=95, method=0)
    if fmt=='TIFF' and mode in ('RGB','L','RGBA'): return dict(compression=rng.choice([None,'tiff_lzw','tiff_deflate','packbits']))
    return {}

TURNS = {1:None, 2:'FLIP_LEFT_RIGHT', 3:'ROTATE_180', 4:'FLIP_TOP_BOTTOM', 5:'TRANSPOSE', 6:'ROTATE_90', 7:'TRANSVERSE', 8:'ROTATE_270'}

def saved(rng, n):
    "The bytes of a picture of `n`, its format, and whether the format tells of any damage"
    fmt,mode = rng.choice(FORMS)
    x = drawn(rng, n, rng.choice([16,32,48,160]))
    im,more = Image.fromarray(x),_options(rng, fmt, mode)
    if mode=='I;16': im = Image.fromarray(x.astype(np.uint16)*257)
    elif mode in ('LA','RGBA'):
        im = im.convert(mode)
        if rng.random()<.5: im.putalpha(Image.fromarray(255-x))           # what is black is seen, the rest is white paper
    elif mode=='P': im = im.convert('RGB').quantize(16)
    else: im = im.convert(mode)
    if fmt in ('JPEG','PNG','WEBP','TIFF') and rng.random()<.3 and im.mode!='I;16':
        turn = rng.randint(1,8)
        e = Image.Exif()
        e[0x0112] = turn
        if TURNS[turn]: im = im.transpose(Image.Transpose[TURNS[turn]])
        more['exif'] = e
    f = io.BytesIO()
    im.save(f, fmt, **{k:v for k,v in more.items() if v is not None})
    return f.getvalue(),f'{fmt} {mode} {sorted(more)}',fmt=='PNG'

def whole(rng, root):
    "In any format"
    n = rng.randrange(1, 2**16-1)
    b,how,_ = saved(rng, n)
    try: got = number(b)
    except Unreadable as e: return right([f'{how}: a whole picture is refused: {e}'])
    return right([] if got==n else [f'{how}: shows {n:016b}, seen {got:016b}'])

def broken(rng, root):
    "Cut, cut and filled up, with wrong bytes, or none at all"
    n = rng.randrange(1, 2**16-1)
    b,how,strict = saved(rng, n)
    way,k = rng.choice(['cut','cut','zeros','bit','none','text','foreign','junk']),rng.randrange(max(1, len(b)//20), len(b))
    if way=='cut': bad = b[:k]
    elif way=='zeros': bad = b[:k]+bytes(len(b)-k)
    elif way=='bit': bad = b[:k]+bytes([b[k]^1<<rng.randrange(8)])+b[k+1:]
    elif way=='junk': bad = b[:k]+rng.randbytes(rng.randint(1,40))+b[k:]
    else: bad = dict(none=b'', text=b'<html>'+b, foreign=b'\0\0\0\x1cftyp'+rng.choice([b'avif',b'heic'])+b[12:])[way]
    try: got = number(bad)
    except Unreadable: return Told('refused', [])
    if way in ('none','text','foreign'): return right([f'{how} {way}: no picture, and {got} is seen'])
    tells = strict or way=='cut' and how.split()[0]!='PPM'
    return right([f'{how} {way} at {k} of {len(b)}: shows {n:016b}, seen {got:016b}'] if tells and got!=n else [])

# --- any channels

def _array(rng):
    "A picture of any channels, and whether it is one at all"
    c,dtype = rng.randint(1,6),rng.choice(['u1','u2','f4','>u2','i4','f8','?'])
    shape = rng.randint(8,20),rng.randint(8,20)
    r = np.random.default_rng(rng.randrange(2**32))
    return r.integers(0, 2 if dtype=='?' else 200, (c,*shape)).astype(dtype)

def _stored(rng, x):
    "Its bytes: an array, a zip of arrays, a TIFF; and the names"
    f,way = io.BytesIO(),rng.choice(['npy','npz','tif','named'])
    if way=='npy': np.save(f, np.moveaxis(x, 0, -1) if rng.random()<.5 and len(x)<8 else x)
    elif way=='npz': np.savez_compressed(f, x)
    elif way=='named': np.savez(f, **{f'c {i}':o for i,o in enumerate(x)})
    else:
        import tifffile
        y = x.astype('u1') if x.dtype==bool else x
        tifffile.imwrite(f, y, photometric='minisblack', compression=rng.choice([None,'zlib','lzw']), byteorder=rng.choice('<>'))
    return f.getvalue(),way

def _planes_faults(x, got, way):
    want = [o.astype(np.uint8)*(255 if way!='tif' else 1) if o.dtype==bool else o for o in x]
    if len(got.data)!=len(want): yield f'{way}: {len(got.data)} channels, expected {len(want)}'
    elif any(a.shape!=b.shape or (a!=b).any() for a,b in zip(got.data, want)): yield f'{way}: other values than were stored'
    elif way=='named' and len(x)>1 and got.names!=tuple(f'c {i}' for i in range(len(x))): yield f'{way}: names {got.names}'

def channels(rng, root):
    "Files with any channels: whole ones give what was stored"
    x = _array(rng)
    b,way = _stored(rng, x)
    return right(_planes_faults(x, read_planes(b), way))

def broken_channels(rng, root):
    "Cut ones are refused; with wrong bytes they are refused, or have the right form"
    x = _array(rng)
    b,way = _stored(rng, x)
    how,k = rng.choice(['cut','head','byte','type']),rng.randrange(len(b))
    if how=='cut': bad = b[:k]
    elif how=='head': bad = bytearray(b); bad[rng.randrange(6, min(len(b), 200))] = rng.randrange(256); bad = bytes(bad)
    elif how=='byte': bad = b[:k]+bytes([b[k]^1<<rng.randrange(8)])+b[k+1:]
    else:
        f = io.BytesIO()
        np.save(f, rng.choice([np.zeros((4,4), complex), np.array(['a','b']), np.zeros((2,2), 'M8[s]'), np.zeros((0,4)), np.zeros(5),
                               np.zeros((2,2,2,2)), np.zeros((3,4), [('a','u1'),('b','u2')]), np.zeros((3,3), 'V4')]))
        bad = f.getvalue()
    try: got = read_planes(bad)
    except Unreadable: return Told('refused', [])
    if how=='type': return right([f'no picture, and {[o.shape for o in got.data]} is read'])
    if how=='cut' and way!='tif': return right([f'{way} cut at {k} of {len(b)} is read'])
    if how=='byte' and way in ('npz','named'): return right(_planes_faults(x, got, way))
    return right([] if all(o.ndim==2 and o.dtype in (np.uint8,np.uint16,np.float32) for o in got.data) else [f'{way}: no channels'])

