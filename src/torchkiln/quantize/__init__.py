"""quantize: post-training calibration. Which layers become int8, what range their inputs have, and the quantize/dequantize pairs that say so."""
