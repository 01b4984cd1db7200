"""fanin: get the starting weights of a neural network right, and prove it.

>>> import torch, fanin
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> fanin.check(model, torch.randn(32, 8)).ok
True
"""

from fanin.checking import check, recording
from fanin.errors import FaninError
from fanin.findings import Finding
from fanin.report import Report

__all__ = ["FaninError", "Finding", "Report", "__version__", "check", "recording"]

__version__ = "0.1.0"
