"""fanin: get the starting weights of a neural network right, and prove it.

>>> import torch, fanin
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> fanin.check(model, torch.randn(32, 8)).ok
True
"""

from fanin.activations import gain
from fanin.assignment import Assignment
from fanin.calibration import Calibration, calibrate_
from fanin.catalogue import SCHEMES as schemes  # noqa: N811 - the public name of the mapping
from fanin.catalogue import Scheme
from fanin.checking import check
from fanin.comparing import Comparison, compare
from fanin.construction import recording
from fanin.errors import FaninError
from fanin.fill import fill_
from fanin.findings import Finding
from fanin.planning import Plan, init_, plan
from fanin.repair import Repair, repair_
from fanin.report import Report
from fanin.verifying import Verification, verify
from fanin.version import __version__

__all__ = [
    "Assignment",
    "Calibration",
    "Comparison",
    "FaninError",
    "Finding",
    "Plan",
    "Repair",
    "Report",
    "Scheme",
    "Verification",
    "__version__",
    "calibrate_",
    "check",
    "compare",
    "fill_",
    "gain",
    "init_",
    "plan",
    "recording",
    "repair_",
    "schemes",
    "verify",
]
