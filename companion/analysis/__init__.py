"""Measuring a trained network: spectra, margins, calibration, curvature."""
