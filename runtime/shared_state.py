"""What all code of a process shares, put back as it was, so that a second run in a process begins as the first one did."""

import logging
import os
import random
import signal
import sys

import numpy as np
import torch


class SharedState:
    """The state of a process when this was made: environment, folder, signals, logging, generators, and what PyTorch keeps.

    Compiled graphs are none of it: a graph is a function of the code and of the shapes that its guards check.
    """

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._folder = os.getcwd()
        self._arguments, self._import_path = list(sys.argv), list(sys.path)
        self._signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._log_handlers, self._log_level = list(logging.getLogger().handlers), logging.getLogger().level
        self._random, self._numpy_random = random.getstate(), np.random.get_state()
        self._torch_seed = torch.initial_seed()
        self._threads = torch.get_num_threads()
        self._dtype = torch.get_default_dtype()
        self._precision = torch.get_float32_matmul_precision()
        self._deterministic = torch.are_deterministic_algorithms_enabled()
        self._has_gradients = torch.is_grad_enabled()

    def restore(self) -> None:
        """Put all of it back. In the main thread alone, as Python changes signal handlers nowhere else."""
        for name in os.environ.keys() - self._environment.keys():
            del os.environ[name]
        os.environ.update(self._environment)
        os.chdir(self._folder)
        sys.argv[:], sys.path[:] = self._arguments, self._import_path
        for number, handler in self._signals.items():
            if handler is not None and signal.getsignal(number) is not handler:  # None: not set by Python
                signal.signal(number, handler)
        logging.getLogger().handlers[:] = self._log_handlers
        logging.getLogger().setLevel(self._log_level)
        random.setstate(self._random)
        np.random.set_state(self._numpy_random)
        torch.manual_seed(self._torch_seed)  # of every device's generator: what a new process has
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.set_default_dtype(self._dtype)
        torch.set_float32_matmul_precision(self._precision)
        if torch.are_deterministic_algorithms_enabled() != self._deterministic:  # the call imports the compiler
            torch.use_deterministic_algorithms(self._deterministic)
        torch.set_grad_enabled(self._has_gradients)
