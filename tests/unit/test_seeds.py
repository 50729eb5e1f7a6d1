"""Named streams: what a number is called must not decide what is drawn."""

import numpy
import torch

from companion.seeds import generator, numpy_generator, random_state


def test_a_number_of_numpys_names_the_stream_of_the_number():
    for made in (numpy.int64(3), numpy.int32(3)):
        assert torch.equal(
            torch.rand(4, generator=generator(0, "x", made)), torch.rand(4, generator=generator(0, "x", 3))
        )
        assert numpy_generator(0, "x", made).random() == numpy_generator(0, "x", 3).random()
    assert numpy_generator(0, "x", "3").random() != numpy_generator(0, "x", 3).random()


def test_random_states_are_numbers_of_their_streams():
    numbers = {random_state(seed, "x", k) for seed in range(3) for k in range(3)}
    assert len(numbers) == 9 and all(0 <= number < 2**32 for number in numbers)
    assert random_state(0, "x") == random_state(0, "x")
