"What a case is: something is made by its seed, tried, and compared with what its maker knows to be right"
import random,shutil,tempfile,time,traceback
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

class Skip(Exception): "A case that cannot be tried on this machine; the message is the reason"

class Told(NamedTuple):
    "What came of a case"
    outcome:str  # `right` for a right result, `refused` for an error that is right, `skipped`, `fault`
    faults:list  # in words
    events:int=1  # inputs or moments that were tried
    seconds:float=0.
    why:str=''  # it was skipped

def right(faults, events=1): return _told('right', faults, events)
def refused(faults, events=1): return _told('refused', faults, events)
def _told(outcome, faults, events):
    faults = [str(o)[:2000] for o in faults]
    return Told('fault' if faults else outcome, faults, events)

@contextmanager
def folder(keep=None):
    "A folder for one case; copied to `keep` afterwards"
    root = Path(tempfile.mkdtemp(prefix='campaign'))
    try: yield root
    finally:
        if keep: shutil.copytree(root, keep, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(root, ignore_errors=True)

SLOW = 10                      # seconds of the processor for an input that is tiny

def tried(kinds, kind, seed, keep=None, slow=SLOW):
    "`Told` of the case of this kind and seed; any exception that the case did not expect is a fault"
    start,cpu = time.time(),time.process_time()
    with folder(keep) as root:
        try: told = kinds[kind](random.Random(f'{kind} {seed}'), root)
        except Skip as e: told = Told('skipped', [], 0, why=str(e))
        except Exception: told = Told('fault', [traceback.format_exc(limit=-6)])
    if slow and time.process_time()-cpu>slow:
        told = Told('fault', [*told.faults, f'it took {time.process_time()-cpu:.0f} s of the processor'])
    return told._replace(seconds=time.time()-start)

def refusal(f, *words, kinds=(ValueError,OSError), where=()):
    "Faults of an error that has to come, with all of these words and one of `where`"
    try: got = f()
    except kinds as e:
        if lacks := [o for o in words if o not in str(e)]: yield f'the error does not tell {lacks}: {type(e).__name__}: {e}'
        if where and not any(o in str(e) for o in where): yield f'the error does not say where: {type(e).__name__}: {e}'
    else: yield f'no error, but {str(got)[:300]}; expected one that tells {words or where}'
