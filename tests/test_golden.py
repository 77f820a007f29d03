"Golden traces: a few steps of training of all that is registered, see `nbs/06m_golden.ipynb`"
from unittest.mock import patch
import pytest,torch
from mils.generators import generators
from mils.models import models
from mils.optim import opts,schedules
from mils.sampling import samplings
from mils.config import recipes
from mils.golden import (golden_configs,golden_distance,golden_suspects,golden_table,golden_tolerance,golden_trace,golden_versions,
    version_place)

def missing():
    "What is registered and has no trace, in a sentence that helps"
    names = [n for n in golden_configs() if n not in golden_table().index]
    return ''.join(f"\n{n} has no golden trace: python tests/golden.py --record {n.split()[1]}" for n in names)

def verdict(names):
    "What is wrong with traces, and which version is to be raised; empty where all is well"
    kept = golden_table()
    if raised := [n for n in names if kept.versions[n]!=golden_versions(n)]:
        return f"versions were raised; record their traces anew: python tests/golden.py --record {' '.join(map(repr, raised))}"
    distances = {n:golden_distance(golden_trace(n), kept.loc[n]) for n in names}
    far = {n:d[d>golden_tolerance] for n,d in distances.items() if (d>golden_tolerance).any()}
    if not far: return ''
    found = ''.join(f"\n{n}: {', '.join(f'{k} by {v:.1e}' for k,v in d.items())}" for n,d in far.items())
    raise_ = '\n'.join(map(version_place, golden_suspects(far)))
    return (f'results moved, relative to their size:{found}\nIf that is meant, raise\n{raise_}\n'
            'and record them anew: python tests/golden.py --record NAME')

def test_all_that_is_registered_has_a_trace(): assert not missing(), missing()

def test_no_trace_of_what_is_gone():
    gone = set(golden_table().index)-set(golden_configs())
    assert not gone, f'remove these rows of tests/golden.csv, or name again what they trace: {sorted(gone)}'

def other_draws():
    "Traces of networks whose first weights this torch, or this processor, draws otherwise; the notebook says why"
    torch.manual_seed(0)
    names = set()
    if abs(torch.nn.init.trunc_normal_(torch.empty(5), std=.02)[0]-.0308)>1e-3: names.add('model mini_swin')
    if not torch.backends.cpu.get_cpu_capability().startswith('AVX'): names |= {'model resnet34','model dense_efficient'}
    return names

def test_results_are_those_of_the_declared_versions():
    names = set(golden_configs())&set(golden_table().index)-other_draws()
    assert not (found := verdict(sorted(names))), found

@pytest.mark.parametrize('registry,name,trace', [
    (models,'tiny_net','model tiny_net'), (generators,'mine','generator mine'), (samplings,'thirds','sampling thirds'),
    (recipes,'long','recipe long'), (schedules,'flat','schedule flat'), (opts,'lion','optimiser lion')])
def test_something_new_is_missed(registry, name, trace):
    "Whatever is registered is asked for, and the sentence says how to add it"
    like = next(v for k,v in registry.items() if k!='none')
    with patch.dict(registry, {name:like}): assert missing()==f'\n{trace} has no golden trace: python tests/golden.py --record {name}'

@pytest.mark.parametrize('setting,value', [('wd',.04), ('shift',3/32), ('smoothing',.11), ('lr',1.9e-3), ('flip',False)])
def test_a_constant_of_training_cannot_change_unseen(setting, value):
    with patch.dict(recipes, same=recipes['same']|{setting:value}): found = verdict(['recipe same', 'recipe seed'])
    assert 'recipe same: ' in found and 'recipe seed: ' not in found and '`training` in `versions`, nbs/' in found

def test_a_network_and_a_generator_cannot_change_unseen():
    small = models['small_cnn']
    def without_bias(n_classes, c_in=3, size=64, width=1, last=None):
        net = small(n_classes, c_in, size, width, last)
        net[-1].bias = None
        return net
    with patch.dict(models, small_cnn=without_bias): assert 'model small_cnn: ' in verdict(['model small_cnn'])
    with patch.dict(generators, rescale=generators['zero_fill']): found = verdict(['generator rescale', 'generator bank'])
    assert 'generator rescale: ' in found and 'generator bank: ' not in found
    assert 'version= of generator rescale where it is registered, nbs/' in found

def test_a_raised_version_asks_for_a_new_trace():
    with patch.dict(models.versions, small_cnn=2): found = verdict(['model small_cnn', 'model strict2'])
    assert found=="versions were raised; record their traces anew: python tests/golden.py --record 'model small_cnn'"
