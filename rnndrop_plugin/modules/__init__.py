"""torch.nn modules with recurrent dropout. Nothing here needs fairseq."""

from rnndrop_plugin.modules.recurrent import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN"]
