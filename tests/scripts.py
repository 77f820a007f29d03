"The scripts of `benchmarks/` as modules, and what they train without processes of its own"
import importlib.util,sys
from pathlib import Path
import mils.bench

def script(name):
    "`benchmarks/NAME.py` as a module"
    path = Path(__file__).resolve().parent.parent/'benchmarks'/f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'{name}_script', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module                        # where dataclasses look for it
    spec.loader.exec_module(module)
    return module

def trained_here(way, cfg, folder, size, cache, device, **how):
    "What a process of its own would answer"
    ds = mils.bench.cached(mils.bench.read_manifest(folder), size, cache_dir=cache)
    how['workers'] = 0
    return mils.bench.ways[way](mils.bench.Config(**cfg), ds, Path(folder), mils.bench.torch.device(device), **how)
