"The layer in other people's networks: a handful each time, all of them with `pytest -m zoo tests/test_zoo.py`, in minutes"
import pandas as pd,pytest
from mils.tables import results_dir
from zoo import CHECKS,networks,row

FEW = 'squeezenet1_1','test_byobnet','test_nfnet','test_vit','mobileone_s0','tf_efficientnet_b0','csatv2','gemma4_vit_167m'
ALL = {f'{library}: {name}':(library,name,*rest) for library,name,*rest in networks()}
def is_few(key): return ALL[key][1] in FEW

def silent(r):
    "What a row does not say: a check that went wrong, or a refusal without a reason"
    values = {k:r[k] for k in CHECKS if r[k]!=''}
    faults = [k for k,v in values.items() if v not in ('pass','refused','any size','one size')]
    if ('refused' in values.values() or not values) and not r['reason']: faults.append('no reason')
    return faults

def check(key):
    r = row(*ALL[key])
    assert not silent(r), r
    assert r['converts']!='refused' or 'convolution' in r['reason'] or 'reads the picture' in r['reason'], r['reason']

@pytest.mark.parametrize('key', [k for k in ALL if is_few(k)])
def test_a_few_networks(key): check(key)

@pytest.mark.zoo
@pytest.mark.parametrize('key', [k for k in ALL if not is_few(k)])
def test_the_zoo(key): check(key)

def test_the_recorded_table_is_whole_and_has_no_silent_row():
    t = pd.read_csv(results_dir()/'zoo.csv', keep_default_na=False)
    assert not {r.model:silent(r._asdict()) for r in t.itertuples() if silent(r._asdict())}
    missing = {(library,name) for library,name,*_ in ALL.values() if library in ('torchvision','timm')}-{*zip(t.library, t.model)}
    assert not missing, f'python tests/zoo.py adds {missing}'
    assert (t.exports!='').any()
    for library,n in dict(torchvision=80, timm=100).items(): assert (t.library==library).sum()>=n
