"""Quantization in torch: levels, fake-quantized convolutions, calibration samples."""
