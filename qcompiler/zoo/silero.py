"""silero-vad: is someone speaking in these 32 ms? Spectrum, convolutions and an LSTM cell."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.zoo.packages import data_file
from qcompiler.zoo.randomize import noise

PACKAGE = "silero_vad"
# Samples at 16 kHz: each call takes 512 new ones after the 64 last ones of the call before.
SAMPLES, CONTEXT = 512, 64
WINDOW, HOP = 256, 128
BINS = WINDOW // 2 + 1
# (channels out, stride) of the four convolutions after the spectrum.
ENCODER = ((128, 1), (64, 2), (64, 2), (128, 1))
HIDDEN = 128


class SileroVad(nn.Module):
    """float32 audio [N, 576] and state [2, N, 128] -> speech probability [N, 1] and new state."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 2 * BINS, WINDOW, HOP, bias=False)
        layers: list[nn.Module] = []
        channels = BINS
        for out, stride in ENCODER:
            layers += [nn.Conv1d(channels, out, 3, stride, 1), nn.ReLU()]
            channels = out
        self.encoder = nn.Sequential(*layers)
        self.cell = nn.LSTMCell(channels, HIDDEN)
        self.decoder = nn.Sequential(nn.ReLU(), nn.Conv1d(HIDDEN, 1, 1), nn.Sigmoid())

    def forward(self, audio: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(audio.unsqueeze(1), (0, WINDOW // 4), mode="reflect")
        real, imaginary = self.spectrum(padded).split(BINS, dim=1)
        x = self.encoder(torch.sqrt(real**2 + imaginary**2)).squeeze(-1)
        hidden, cell = self.cell(x, (state[0], state[1]))
        probability = self.decoder(hidden.unsqueeze(-1)).squeeze(-1)
        return probability, torch.stack((hidden, cell))


# Our layer -> the name it has in the published model.
NAMES = {
    "spectrum.weight": "stft.forward_basis_buffer",
    **{
        f"encoder.{2 * i}.{leaf}": f"encoder.{i}.reparam_conv.{leaf}"
        for i in range(len(ENCODER))
        for leaf in ("weight", "bias")
    },
    **{
        f"cell.{leaf}": f"decoder.rnn.{leaf}"
        for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
    "decoder.1.weight": "decoder.decoder.2.weight",
    "decoder.1.bias": "decoder.decoder.2.bias",
}


def load_silero() -> SileroVad:
    """The pretrained 16 kHz model in eval mode; ImportError when its package is not installed."""
    # The package's safetensors hold the weights of another version.
    published = torch.jit.load(data_file(PACKAGE, "data", "silero_vad.jit")).state_dict()
    model = SileroVad()
    model.load_state_dict({key: published[f"_model.{NAMES[key]}"] for key in model.state_dict()})
    return model.eval()


def initial_state(batch: int = 1) -> Tensor:
    """The state before the first call: float32 zeros [2, batch, 128]."""
    return torch.zeros(2, batch, HIDDEN)


def speech_probabilities(model: nn.Module, audio: Tensor) -> Tensor:
    """Probability of speech in each whole 32 ms of `audio`, float32 [samples] at 16 kHz."""
    chunks = F.pad(audio, (CONTEXT, 0)).unfold(0, CONTEXT + SAMPLES, SAMPLES)
    state, found = initial_state(), []
    for chunk in chunks:
        probability, state = model(chunk.unsqueeze(0), state)
        found.append(probability[0, 0])
    return torch.stack(found)


def silero_vad() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Pretrained silero-vad, 36 ms of noise and the initial state."""
    return load_silero(), (0.1 * noise(1, CONTEXT + SAMPLES), initial_state())
