"""Pieces a second in training: fairseq's lstm beside rnndrop's networks, on the same batches in alternation.

    python examples/multi30k/speed.py data-bin/multi30k

A batch is read and its gradient computed (without the optimizer) three times by each network, and the fastest counts.
Time is that of the CPU, on one thread.
"""

import argparse
import logging
import time

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import rnndrop_plugin

FLAGS = (
    "--task translation --encoder-embed-dim 128 --encoder-hidden-size 128 --encoder-bidirectional "
    "--decoder-embed-dim 128 --decoder-hidden-size 256 --decoder-out-embed-dim 128 --share-all-embeddings "
    "--dropout 0.2 --label-smoothing 0.1 --optimizer adam --cpu"
).split()
OURS = "--criterion rnndrop_cross_entropy --arch"
NETWORKS = {
    "fairseq's lstm": "--criterion label_smoothed_cross_entropy --arch lstm",
    "lstm_rnndrop_seq2seq, fairseq's criterion": "--criterion label_smoothed_cross_entropy --arch lstm_rnndrop_seq2seq",
    "lstm_rnndrop_seq2seq": f"{OURS} lstm_rnndrop_seq2seq",
    "the same, --update-dropout 0.25": f"{OURS} lstm_rnndrop_seq2seq --update-dropout 0.25",
    "the same, --no-input-feed": f"{OURS} lstm_rnndrop_seq2seq --update-dropout 0.25 --no-input-feed",
    "gru_rnndrop_seq2seq, --update-dropout 0.25": f"{OURS} gru_rnndrop_seq2seq --update-dropout 0.25",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder that prepare.sh has made")
    parser.add_argument("--batches", type=int, default=20, help="how many batches of 1000 pieces (default: 20)")
    args = parser.parse_args()
    rnndrop_plugin.register()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)

    built = {}
    for name, flags in NETWORKS.items():
        namespace = options.parse_args_and_arch(options.get_training_parser(), [args.data, *FLAGS, *flags.split()])
        cfg = convert_namespace_to_omegaconf(namespace)
        task = tasks.setup_task(cfg.task)
        built[name] = task.build_model(cfg.model).train(), task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    epoch = task.get_batch_iterator(task.dataset("train"), max_tokens=1000, seed=1).next_epoch_itr()
    batches = [next(epoch) for _ in range(args.batches)]

    seconds = dict.fromkeys(NETWORKS, 0.0)
    for batch in batches:
        for name, (model, criterion) in built.items():
            times = []
            for _ in range(3):
                start = time.process_time()
                loss, _, _ = criterion(model, batch)
                loss.backward()
                times.append(time.process_time() - start)
                model.zero_grad()
            seconds[name] += min(times)
    pieces = sum(batch["ntokens"] for batch in batches)
    first = next(iter(seconds.values()))
    for name, spent in seconds.items():
        print(f"{name:50} {pieces / spent:6.0f} pieces a second  {first / spent:4.2f}")


if __name__ == "__main__":
    main()
