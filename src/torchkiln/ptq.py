"""ptq: post-training quantization to int8, by the names of torch_tensorrt.ptq.

calibrator = torchkiln.ptq.DataLoaderCalibrator(loader, algorithm="entropy", cache_file="calib.json")
engine = torchkiln.compile(model, inputs, enabled_precisions={torch.int8, torch.half}, calibrator=calibrator)
"""

from __future__ import annotations

from .compiler import calibrate
from .quantize.calibration import Calibration, TensorRange
from .quantize.calibrator import CacheCalibrator, CalibrationAlgo, Calibrator, DataLoaderCalibrator
from .quantize.choose_amax import ALGORITHMS
from .quantize.options import QuantizeOptions
from .quantize.torchao_quantizer import quantizer

__all__ = [
    "ALGORITHMS",
    "CacheCalibrator",
    "Calibration",
    "CalibrationAlgo",
    "Calibrator",
    "DataLoaderCalibrator",
    "QuantizeOptions",
    "TensorRange",
    "calibrate",
    "quantizer",
]
