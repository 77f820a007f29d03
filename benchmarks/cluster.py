"""What Ray costs a sweep on this machine: its start with 50,000 pictures of 64 px, and each run after that

    python benchmarks/cluster.py [--runs 24] [--record]

* **cluster** is what Ray takes to start on one machine.
* **start** is the time from the call to the first moment of the first task on a cluster that is there: the pictures in the object
  store, a process that has loaded PyTorch.
* **run** is what 24 tiny runs take on one processor of a cluster, less what they take without Ray, for each of them.

`load` is what else was at work (processes that wait for one of `cores`): on a busy machine all are longer.
"""
import argparse,os,tempfile,time
from dataclasses import replace
from pathlib import Path

LOCAL = dict(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level='ERROR')

def look(asked, work, mark, earlier, ds, cfg, wait):
    import time
    import mils.runs                                        # noqa: F401 - what training loads
    return 'look',dict(DONE=f'{time.time()} {ds.images.nbytes}'.encode())

def start_seconds(root):
    "Seconds that the cluster takes to start, and a sweep until its first task begins"
    import numpy as np,ray
    from mils import cluster
    from mils.chroma import chroma
    from mils.config import Config
    from mils.sweeps import sweep_runs
    few,train_there = chroma(n_train=100, n_val=20, n_test=20),cluster._train_there
    images = np.random.default_rng(0).integers(0, 256, (50_000,64,64,3), np.uint8)
    rows = {k:np.arange(50_000) for k in few.splits}
    ds = replace(few, images=images, labels=np.zeros(50_000, np.int64), splits=rows, names=[f'{i}.png' for i in range(50_000)])
    cluster._train_there = look
    began = time.time()
    ray.init(**LOCAL)
    ready = time.time()
    sweep_runs([Config()], ds, root, 'cpu', on='ray')
    ray.shutdown()
    cluster._train_there = train_there
    return ready-began, float((root/'look'/'DONE').read_text().split()[0])-ready

def run_seconds(root, n):
    "Seconds that a run takes longer on Ray"
    import ray
    from mils.arms import grid
    from mils.chroma import chroma
    from mils.sweeps import sweep_runs
    ds,seconds = chroma(n_train=160, n_val=40, n_test=40),{}
    tiny = lambda seeds: grid([dict()], seeds=seeds, epochs=2, overrides=dict(bs=40))
    ray.init(**LOCAL)
    for on in ('ray','processes'):
        sweep_runs(tiny([1000]), ds, root/on, 'cpu', on=on)                   # whatever is loaded once is loaded
        began = time.time()
        assert sweep_runs(tiny(range(n)), ds, root/on, 'cpu', on=on)=={}
        seconds[on] = time.time()-began
    ray.shutdown()
    return (seconds['ray']-seconds['processes'])/n

def main(n, record):
    os.environ |= dict(RAY_USAGE_STATS_ENABLED='0', TQDM_DISABLE='1')
    try: import ray  # noqa: F401
    except ImportError: return print('Ray is not installed: pip install "mils[ray]"')
    import pandas as pd
    from mils.bench import add_rows
    from mils.identity import machine_and_date
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as tmp:
        cluster,start = start_seconds(Path(tmp)/'start')
        run = run_seconds(Path(tmp)/'runs', n)
    row = dict(cluster_s=cluster, start_s=start, run_s=run, runs=n, load=load)
    table = pd.DataFrame([row])
    print(table.round(2).to_string(index=False))
    if record: add_rows(table.assign(**machine_and_date('cpu')), 'cluster')

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('--runs', type=int, default=24)
    p.add_argument('--record', action='store_true', help='into results/speed/cluster.csv, which the report reads')
    a = p.parse_args()
    main(a.runs, a.record)
