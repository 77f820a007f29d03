"Training throughput: the usual pipeline, ours, and a bare loop, in turn. `mils bench` with a CSV of every training. See README.md"
from fastcore.script import call_parse
from mils.bench import bench
from mils.cli import parse_networks,parse_numbers

@call_parse
def main(
    data:str='chroma',  # `chroma`, or a folder or zip with images
    network:str='small_cnn',  # what is trained
    size:int=64,  # pixels of the side; chroma has 32
    classes:str=None,  # labels to keep, such as 0-49; default: all
    epochs:int=3,  # of each training; the first is not timed
    rounds:int=3,  # trainings of each way, each with its own seed
    n_train:int=None,  # training images; default: all
    photo_size:int=0,  # write the pictures as upscaled JPEGs of this size first; 0 takes the files as they are
    out:str=None,  # CSV for the row of each training
):
    "Time three ways to train the same network on the same files"
    net = parse_networks(network)[0]
    df = bench(data, net['model'], size, epochs, rounds, n_train, photo_size=photo_size, options=net['options'],
               classes=None if classes is None else parse_numbers(classes))
    if out: df.to_csv(out, index=False)
