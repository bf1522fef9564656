"""Recurrent modules, cells in loops, and gates by hand."""

import torch
from torch import nn

from .parts import Tokens, conv, embed, head, tail, tokens
from .registry import structure


class Recurrent(Tokens):
    """One recurrent module over batch-first tokens."""

    def make(self) -> nn.RNNBase:
        raise NotImplementedError  # each structure gives its own

    def __init__(self):
        super().__init__()
        self.recurrent = self.make()

    def middle(self, x):
        return self.recurrent(x)[0]


@structure(tokens)
class Lstm(Recurrent):
    """Four gates `(4 d)` of the hidden width, in two weights and two biases."""

    out = 20

    def make(self):
        return nn.LSTM(32, 20, batch_first=True)


@structure(tokens)
class Gru(Recurrent):
    """Three gates; the reset gate acts between the two products."""

    out = 20

    def make(self):
        return nn.GRU(32, 20, batch_first=True, bias=False)


@structure(tokens)
class RnnRelu(Recurrent):
    """No gates, and relu for tanh."""

    out = 20

    def make(self):
        return nn.RNN(32, 20, nonlinearity="relu", batch_first=True)


@structure(tokens)
class LstmDeepBidirectional(Recurrent):
    """The second layer reads both directions side by side."""

    out = 40

    def make(self):
        return nn.LSTM(32, 20, num_layers=2, bidirectional=True, batch_first=True)


@structure(tokens)
class LstmProjected(Recurrent):
    """The hidden state is a projection of the cell state: two widths."""

    out = 12

    def make(self):
        return nn.LSTM(32, 20, proj_size=12, batch_first=True)


@structure(tokens)
class GruPlacesFirst(nn.Module):
    """Places first, and only the last hidden states of both directions are read."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = embed(32), head(40)
        self.gru = nn.GRU(32, 20, bidirectional=True)

    def forward(self, x):
        _, hidden = self.gru(self.stem(x).transpose(0, 1))
        return self.tail(torch.cat([hidden[0], hidden[1]], -1))


@structure(lambda: (tokens(), torch.randn(2, 8)))
class LstmInitialStates(nn.Module):
    """Initial states: one is computed by a linear layer, one is a parameter."""

    def __init__(self):
        super().__init__()
        self.stem, self.tail = embed(32), head(20)
        self.lstm, self.start = nn.LSTM(32, 20, batch_first=True), nn.Linear(8, 20)
        self.cell = nn.Parameter(torch.zeros(1, 1, 20))

    def forward(self, x, context):
        cell = self.cell.expand(-1, x.shape[0], -1).contiguous()
        return self.tail(self.lstm(self.stem(x), (self.start(context)[None], cell))[0])


@structure(lambda: (tokens(), tokens(4, 8)))
class EncoderDecoderStates(nn.Module):
    """The encoder's last states start the decoder: their hidden widths are one."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.tail = embed(32), embed(24, 8), head(20)
        self.encoder, self.decoder = nn.LSTM(32, 20, batch_first=True), nn.LSTM(24, 20, batch_first=True)

    def forward(self, x, y):
        _, state = self.encoder(self.left(x))
        return self.tail(self.decoder(self.right(y), state)[0])


@structure(tokens)
class LstmCellLoop(Tokens):
    """nn.LSTMCell over the places, states of zeros made in forward, outputs stacked."""

    out = 20

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(32, 20)

    def middle(self, x):
        h, c = x.new_zeros(x.shape[0], 20), x.new_zeros(x.shape[0], self.cell.hidden_size)
        outputs = []
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
            outputs.append(h)
        return torch.stack(outputs, 1)


@structure(tokens)
class GruCellLoop(Tokens):
    """nn.GRUCell that starts from nothing; only its last state is read."""

    out = 20

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(32, 20)

    def middle(self, x):
        h = None
        for place in range(x.shape[1]):
            h = self.cell(x[:, place], h)
        return h


@structure(tokens)
class LstmByHand(Tokens):
    """Two linear layers to four gates, chunked at each step."""

    out = 20

    def __init__(self):
        super().__init__()
        self.inner, self.hidden = nn.Linear(32, 80), nn.Linear(20, 80)

    def middle(self, x):
        h = c = x.new_zeros(x.shape[0], 20)
        for step in x.unbind(1):
            i, f, g, o = (self.inner(step) + self.hidden(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


@structure(tokens)
class ElmanConcat(Tokens):
    """The state is concatenated with the input of a layer that makes the state."""

    out = 20

    def __init__(self):
        super().__init__()
        self.step, self.start = nn.Linear(52, 20), nn.Parameter(torch.zeros(20))

    def middle(self, x):
        h = self.start.expand(x.shape[0], -1)
        for step in x.unbind(1):
            h = torch.tanh(self.step(torch.cat([step, h], -1)))
        return h


@structure(lambda: torch.randn(2, 3, 3, 8, 8))
class ConvLstm(nn.Module):
    """A convolution of the frame and the state side by side makes four gates."""

    def __init__(self):
        super().__init__()
        self.stem, self.gates, self.tail = conv(3, 16), conv(16 + 12, 48), tail(12)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 12, *x.shape[3:])
        for frame in x.unbind(1):
            i, f, o, g = self.gates(torch.cat([self.stem(frame).relu(), h], 1)).split(12, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.tail(h)


@structure(tokens)
class StateSpaceScan(Tokens):
    """A selective scan by hand: per channel and per state, inner width `(d)` and states that stay (Mamba)."""

    def __init__(self):
        super().__init__()
        self.inner, self.conv = nn.Linear(32, 96), nn.Conv1d(48, 48, 3, padding=2, groups=48)
        self.select, self.step = nn.Linear(48, 4 + 2 * 6), nn.Linear(4, 48)
        self.decay, self.skip = nn.Parameter(torch.randn(48, 6)), nn.Parameter(torch.ones(48))
        self.project = nn.Linear(48, 32)

    def middle(self, x):
        u, gate = self.inner(x).chunk(2, -1)
        u = nn.functional.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        rank, b, c = self.select(u).split([4, 6, 6], -1)
        delta = nn.functional.softplus(self.step(rank))
        state, outputs = 0, []
        for t in range(x.shape[1]):
            fade = torch.exp(-delta[:, t, :, None] * self.decay.exp())
            state = fade * state + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
            outputs.append((state * c[:, t, None]).sum(-1))
        y = torch.stack(outputs, 1) + u * self.skip
        return x + self.project(y * nn.functional.silu(gate))
