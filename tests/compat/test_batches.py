import torch
from fairseq.data import Dictionary, LanguagePairDataset, data_utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from rnndrop_plugin.compat import batches


class Sentences(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return torch.tensor([4, 5, 2])

    def __len__(self):
        return 20


def iterators(get_batch_iterator, epoch: int):
    words = Dictionary()
    task = TranslationTask(TranslationConfig(), words, words)
    dataset = LanguagePairDataset(Sentences(), [3] * 20, words, Sentences(), [3] * 20, words)
    dataset.epochs = []
    dataset.set_epoch = dataset.epochs.append
    options = {"max_sentences": 4, "seed": 1, "data_buffer_size": 0}
    first = get_batch_iterator(task, dataset, epoch=epoch, **options)
    return first, get_batch_iterator(task, dataset, epoch=epoch + 1, **options)


def contents(iterator):
    return [list(batch) for batch in iterator.frozen_batches]


def test_fairseq_makes_other_batches_where_a_run_goes_on():
    (begun, _), (resumed, _) = (iterators(batches.upstream_get_batch_iterator, epoch) for epoch in (1, 3))
    assert contents(begun) != contents(resumed)


def test_a_run_goes_on_with_its_batches():
    (begun, again), (resumed, later) = (iterators(batches.get_batch_iterator, epoch) for epoch in (1, 3))
    assert begun is again and resumed is later
    assert contents(begun) == contents(resumed)
    assert (begun.epoch, resumed.epoch) == (begun.dataset.epochs[-1], resumed.dataset.epochs[-1]) == (1, 3)


def test_batches_of_an_epoch_of_its_own_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(TranslationTask, "can_reuse_epoch_itr", lambda *_: False)
    begun, second = iterators(batches.get_batch_iterator, 1)
    assert contents(begun) != contents(second) and second.epoch == 2
    with data_utils.numpy_seed(1 + 2):
        assert sum(contents(second), []) == begun.dataset.ordered_indices().tolist()
