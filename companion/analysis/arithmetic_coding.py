"""An arithmetic coder on integers (Witten, Neal and Cleary 1987), to turn a bound in bits into bytes that decode."""

from collections.abc import Iterable, Sequence

import numpy

_BITS = 32
_TOP, _HALF, _QUARTER = (1 << _BITS) - 1, 1 << (_BITS - 1), 1 << (_BITS - 2)
PRECISION = 16  # frequencies sum to 2^16


def cumulative(probs: numpy.ndarray) -> numpy.ndarray:
    """Return cumulative integer frequencies `[..., K + 1]` of `probs` `[..., K]`: each at least 1, in all 2^16."""
    codes = probs.shape[-1]
    counts = numpy.floor(probs / probs.sum(-1, keepdims=True) * ((1 << PRECISION) - codes)).astype(numpy.int64) + 1
    rest = (1 << PRECISION) - counts.sum(-1)
    largest = counts.argmax(-1)[..., None]
    numpy.put_along_axis(counts, largest, numpy.take_along_axis(counts, largest, -1) + rest[..., None], -1)
    return numpy.concatenate([numpy.zeros_like(counts[..., :1]), counts.cumsum(-1)], -1)


class Encoder:
    """Turns symbols, each under its own table, into one string of bits."""

    def __init__(self) -> None:
        self.low, self.high, self.pending = 0, _TOP, 0
        self.bits: list[int] = []

    def _emit(self, bit: int) -> None:
        self.bits.append(bit)
        self.bits.extend([1 - bit] * self.pending)
        self.pending = 0

    def put(self, symbols: Iterable[int], tables: Iterable[Sequence[int]]) -> None:
        """Encode `symbols`, each under its cumulative table."""
        for symbol, table in zip(symbols, tables, strict=True):
            span = self.high - self.low + 1
            self.high = self.low + (span * table[symbol + 1] >> PRECISION) - 1
            self.low = self.low + (span * table[symbol] >> PRECISION)
            while True:
                if self.high < _HALF:
                    self._emit(0)
                elif self.low >= _HALF:
                    self._emit(1)
                    self.low, self.high = self.low - _HALF, self.high - _HALF
                elif self.low >= _QUARTER and self.high < _HALF + _QUARTER:
                    self.pending += 1
                    self.low, self.high = self.low - _QUARTER, self.high - _QUARTER
                else:
                    break
                self.low, self.high = 2 * self.low, 2 * self.high + 1

    def finish(self) -> list[int]:
        """Return all bits, with the two that tell the last interval."""
        self.pending += 1
        self._emit(0 if self.low < _QUARTER else 1)
        return self.bits


class Decoder:
    """Reads symbols back, given the same tables in the same order."""

    def __init__(self, bits: Sequence[int]) -> None:
        self.bits, self.place = bits, 0
        self.low, self.high, self.value = 0, _TOP, 0
        for _ in range(_BITS):
            self._shift()

    def _shift(self) -> None:
        bit = self.bits[self.place] if self.place < len(self.bits) else 0
        self.value, self.place = 2 * self.value + bit, self.place + 1

    def get(self, tables: Iterable[Sequence[int]]) -> list[int]:
        """Decode one symbol per cumulative table."""
        found = []
        for table in tables:
            span = self.high - self.low + 1
            target = ((self.value - self.low + 1 << PRECISION) - 1) // span
            symbol = int(numpy.searchsorted(table, target, side="right")) - 1
            found.append(symbol)
            self.high = self.low + (span * int(table[symbol + 1]) >> PRECISION) - 1
            self.low = self.low + (span * int(table[symbol]) >> PRECISION)
            while True:
                if self.high < _HALF:
                    drop = 0
                elif self.low >= _HALF:
                    drop = _HALF
                elif self.low >= _QUARTER and self.high < _HALF + _QUARTER:
                    drop = _QUARTER
                else:
                    break
                self.low, self.high, self.value = self.low - drop, self.high - drop, self.value - drop
                self.low, self.high = 2 * self.low, 2 * self.high + 1
                self._shift()
        return found
