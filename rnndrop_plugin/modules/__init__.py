"""torch.nn modules with recurrent dropout, and layers to put before and after them. Nothing here needs fairseq."""

from rnndrop_plugin.modules.cells import GRUCell, LSTMCell, RNNCell
from rnndrop_plugin.modules.characters import CharacterCNN
from rnndrop_plugin.modules.context import ConcatContext, ConvContext
from rnndrop_plugin.modules.crf import CRF
from rnndrop_plugin.modules.dropout import Dropout, EmbeddingDropout
from rnndrop_plugin.modules.layers import GRU, LSTM, RNN

__all__ = [
    "CRF",
    "GRU",
    "LSTM",
    "RNN",
    "CharacterCNN",
    "ConcatContext",
    "ConvContext",
    "Dropout",
    "EmbeddingDropout",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
]
